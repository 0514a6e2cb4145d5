"""The user's map as solvers see it: matrix in, matrix out, counted, and able to drop finished samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..nonsmooth import Autograd, Selection
from ..pytree import Layout, refuse_in_place, version, versions

__all__ = ["Affine", "PackedMap", "Selectable", "WrittenOut"]


@runtime_checkable
class Selectable(Protocol):
    """A map that can be restricted to some samples: ``f.select(rows)(z[rows])`` equals ``f(z)[rows]``."""

    def select(self, rows: Tensor) -> Callable[[Any], Any]:
        """The map of the samples ``rows`` (int64 indices) alone."""
        ...


@runtime_checkable
class WrittenOut(Protocol):
    """A linear map that can write out its matrices faster than column by column."""

    def matrix(self, like: Tensor) -> Tensor | None:
        """The matrix of each row, ``(rows, size, size)``, for points ``like`` this; None if it can't after all."""
        ...


class Affine:
    """The map z -> linear(z) + offset, whose linear part Krylov methods can use as it is."""

    def __init__(self, linear: Callable[[Tensor], Tensor], offset: Tensor) -> None:
        """Hold ``linear`` (a linear map on matrices ``(batch, size)``) and ``offset`` (one such matrix)."""
        self.linear = linear
        self.offset = offset

    def __call__(self, z: Tensor) -> Tensor:
        """linear(z) + offset."""
        return self.linear(z) + self.offset


class PackedMap:
    """f on matrices ``(rows, size)``.

    It counts the calls of f, remembers its last value (a line search ends on the point that the loop asks for
    next), and checks what f returns.
    """

    def __init__(self, f: Callable[[Any], Any], layout: Layout) -> None:
        self.f = f
        self.layout = layout
        self.evaluations = 0
        self._memo: tuple[Tensor, Tensor] | None = None
        self.cut = False
        self._plain = layout.plain

    def remember(self, z: Tensor, value: Any) -> None:
        """Take the state ``value`` for f(z): the next call with this very tensor costs nothing."""
        self._memo = (z, self._packed(value, z))

    def __call__(self, z: Tensor) -> Tensor:
        """f(z)."""
        if self._memo is None or self._memo[0] is not z:
            self._memo = (z, self.evaluate(z))
        return self._memo[1]

    def evaluate(self, z: Tensor, f: Callable[[Any], Any] | None = None) -> Tensor:
        """f(z), counted and checked."""
        f = self.f if f is None else f
        self.evaluations += 1
        if isinstance(f, Affine):
            return f(z)
        if self._plain:
            now = version(z)
            out = f(z)
            if version(z) != now:
                refuse_in_place([z], [now])
            return self._packed(out, z)
        state = self.layout.unpack(z)
        before = versions(state)
        out = f(self.layout.tree(state))
        refuse_in_place(state, before)
        return self._packed(out, z)

    def _packed(self, value: Any, z: Tensor) -> Tensor:
        """Pack ``value = f(z)`` after checking it."""
        if self._plain and type(value) is Tensor and value.shape == z.shape and value.dtype == z.dtype:
            return value
        return self.layout.pack(self.layout.check(value, z.shape[0]))

    def differential(self, z: Tensor, fz: Tensor) -> Callable[[Tensor], Tensor]:
        """The product v -> Jv for an *affine* map of Jacobian J, given its value ``fz`` at ``z``.

        Unless the map tells its linear part, Jv = (f(z + σv) − f(z)) / σ with σ = ‖f(z)‖ for each sample, which
        for an affine map is exact up to rounding. ``v`` should be of norm 1.
        """
        if isinstance(self.f, Affine):
            linear = self.f.linear

            def product(v: Tensor) -> Tensor:
                self.evaluations += 1
                return linear(v)

            return product
        size = torch.linalg.vector_norm(fz, dim=1, keepdim=True)
        size = torch.where(size > 0, size, torch.ones_like(size))
        return lambda v: (self.evaluate(torch.addcmul(z, v, size)) - fz) / size

    def matrix(self, z: Tensor, fz: Tensor) -> Tensor:
        """The Jacobian of an *affine* map, (rows, size, size), given its value ``fz`` at ``z``."""
        rows, size = z.shape
        if isinstance(self.f, Affine) and isinstance(self.f.linear, WrittenOut):
            whole = self.f.linear.matrix(z)
            if whole is not None:
                self.evaluations += size
                return whole
        product, matrix = self.differential(z, fz), z.new_empty(rows, size, size)
        for j in range(size):
            unit = torch.zeros_like(z)
            unit[:, j] = 1
            matrix[:, :, j] = product(unit)
        return matrix

    def jacobian_product(self, z: Tensor, selection: Selection = Autograd()) -> Callable[[Tensor], Tensor]:
        """The product v -> Jv with J = f'(z), by differentiating the vector-Jacobian product, which is linear.

        f is called once; a product then costs about as much as a backward pass. At a kink J is the element of
        the Clarke Jacobian that ``selection`` says.
        """
        if isinstance(self.f, Affine):
            return self.differential(z, z)
        with torch.enable_grad(), selection.active():
            point = z.detach().requires_grad_()
            out = self.evaluate(point)
            if not out.requires_grad:
                return torch.zeros_like
            u = torch.zeros_like(out, requires_grad=True)
            (vjp,) = torch.autograd.grad(out, point, u, create_graph=True, materialize_grads=True)
        if not vjp.requires_grad:
            return torch.zeros_like

        def product(v: Tensor) -> Tensor:
            return torch.autograd.grad(vjp, u, v, retain_graph=True, materialize_grads=True)[0]

        return product

    def select(self, rows: Tensor, z: Tensor, fz: Tensor) -> bool:
        """Restrict the map to ``rows``; False, and no change, where f can't do without the other samples.

        That f treats its samples apart is tried once, against the value ``fz`` at ``z`` that is already known:
        batch statistics, or an input whose first axis only looks like the batch, are found here.
        """
        if not isinstance(self.f, Selectable):
            return False
        part = self.f.select(rows)
        if not self.cut:
            try:
                value = self.evaluate(z[rows], part)
            except (RuntimeError, ValueError):  # what was cut does not fit: the samples share it
                return False
            expected = fz[rows]
            error = torch.linalg.vector_norm(value - expected)
            if not error <= torch.finfo(fz.dtype).eps ** 0.5 * torch.linalg.vector_norm(expected):
                return False
            self.cut = True
        self.f = part
        self._memo = None
        return True
