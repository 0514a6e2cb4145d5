"""Exact gradients in constant memory, by an iteration that can be run backwards."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..pytree import Layout, leaves
from ..solution import ConvergenceWarning, Solution
from ..solvers import Solver
from .base import Backward, Equation, Report
from .replay import measured

__all__ = ["Reversible"]

WIDE = torch.float64
"""The two states are held in this type, whatever f computes in: running back magnifies their rounding errors."""


@dataclass(frozen=True, kw_only=True)
class Reversible(Backward):
    """Backpropagation through ``steps`` reversible steps, in memory that does not grow with them.

    The two states y and z, both z0 at first, take turns, with d the ``damping``:

        y ← d · y + (1 − d) · f(z),   then   z ← d · z + (1 − d) · f(y).

    Each can be taken back, y = (y' − (1 − d) · f(z)) / d, so the backward pass finds again the states that the
    forward pass went through, and keeps none (McCallum, Arora and Foster 2025, "Reversible deep equilibrium
    models"). The gradient is the exact one of the z that is returned, not that of the fixed point which it
    approaches.

    It converges where f is a contraction. Near the solution an eigenvalue λ of J is damped by the roots of
    μ² − (2d + (1 − d)² λ²) μ + d²: a real λ must lie in (−1, 1) whatever d is, an imaginary one within
    ±(1 + d) / (1 − d).

    The iteration is this backward's own: the solver is not run, but its rtol and atol say which samples have
    converged. Nor is it run where no gradient is wanted, so the value is the same there.

    Running back multiplies rounding errors by 1 / d a step, up to d⁻ˢᵗᵉᵖˢ in all. So the states are held in float64,
    and since the way back ends at z0, which is known, the error is measured there, each time.

    A forward step calls f twice, one of the backward pass as well, and takes two vector-Jacobian products. The
    gradient's own derivatives are right to any order, but recording for them takes memory that grows with ``steps``.

    Attributes:
        steps: Steps to take, at least 1.
        damping: Share of the old state, in (0, 1).

    Raises:
        ValueError: If an option is out of range.

    Warns:
        ConvergenceWarning: When the gradient is taken, if the way back misses z0 by more than half the digits.
    """

    steps: int = 16
    damping: float = 0.5

    remedies: ClassVar[str] = "more steps (steps=), or Implicit() with a solver"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Reversible(steps={self.steps!r}): steps must be at least 1")
        if not 0 < self.damping < 1:
            raise ValueError(f"Reversible(damping={self.damping!r}): damping must be in (0, 1), or no way leads back")

    def finder(self, solver: Solver) -> Solver | Backward:
        """This itself."""
        return self

    def solve(self, equation: Equation, solver: Solver, report: Report | None) -> Solution:  # noqa: D102
        path = _Path(equation, self)
        if equation.watch():
            z: Sequence[Tensor] = _Reversed.apply(path, *equation.operands)  # type: ignore[no-untyped-call]
        else:
            z = path.unpack(path.forward(equation.operands)[1])
        return measured(equation, z, solver, steps=self.steps, evaluations=2 * self.steps + 1)


class _Path:
    """The iteration, there and back, on matrices ``(batch, size)``."""

    def __init__(self, equation: Equation, how: Reversible) -> None:
        self.equation, self.how, self.keep = equation, how, how.damping
        self.layout: Layout = equation.layout

    def pack(self, flat: Sequence[Tensor]) -> Tensor:
        return self.layout.pack(flat).to(WIDE)

    def unpack(self, matrix: Tensor) -> list[Tensor]:
        return self.layout.unpack(matrix.to(self.layout.dtype))

    def start(self) -> Tensor:
        return self.pack(leaves(self.equation.z0))

    def forward(self, operands: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Y and z after all steps."""
        y = z = self.start()
        for _ in range(self.how.steps):
            y = y.lerp(self._f(z, operands), 1 - self.keep)
            z = z.lerp(self._f(y, operands), 1 - self.keep)
        return y, z

    def backward(self, y: Tensor, z: Tensor, g: Tensor, operands: Sequence[Tensor], wanted: Sequence[bool]) -> Any:
        """The gradients of ⟨g, z⟩ with respect to the operands that are wanted."""
        step, scale = 1 - self.keep, torch.linalg.vector_norm(z, dim=1)
        total = [torch.zeros_like(t) for t, need in zip(operands, wanted, strict=True) if need]
        gy, gz = torch.zeros_like(g), g
        for _ in range(self.how.steps):
            value, pulled = self._pull(y, operands, wanted, step * gz, total)
            z, gy, gz = (z - step * value) / self.keep, gy + pulled, self.keep * gz
            value, pulled = self._pull(z, operands, wanted, step * gy, total)
            y, gz, gy = (y - step * value) / self.keep, gz + pulled, self.keep * gy
        self._check(y, z, scale)
        rest = iter(total)
        return [next(rest) if need else None for need in wanted]

    def _f(self, z: Tensor, operands: Sequence[Tensor]) -> Tensor:
        return self.pack(self.equation.apply(self.unpack(z), operands))

    def _pull(
        self, z: Tensor, operands: Sequence[Tensor], wanted: Sequence[bool], g: Tensor, total: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """f(z), and Jᵀg; adds (∂f/∂θ)ᵀ g to the total."""
        with torch.enable_grad():
            point = [t.detach().requires_grad_() for t in self.unpack(z)]
            out = self.equation.apply(point, operands)
        pairs = [(t, c) for t, c in zip(out, self.unpack(g), strict=True) if t.requires_grad]
        value = self.pack([t.detach() for t in out])
        if not pairs:
            return value, torch.zeros_like(g)
        outputs, cotangents = zip(*pairs, strict=True)
        targets = [*point, *(t for t, need in zip(operands, wanted, strict=True) if need)]
        grads = torch.autograd.grad(outputs, targets, cotangents, materialize_grads=True)
        for so_far, new in zip(total, grads[len(point) :], strict=True):
            so_far.add_(new)
        return value, self.pack(grads[: len(point)])

    def _check(self, y: Tensor, z: Tensor, scale: Tensor) -> None:
        """Compare where the way back has led with z0, in units of ``scale``, the norm of each sample's end.

        Warns:
            ConvergenceWarning: If it has not led there.
        """
        start = self.start()
        scale = scale + torch.linalg.vector_norm(start, dim=1)
        missed = torch.linalg.vector_norm(torch.cat((y - start, z - start), 1), dim=1)
        lost = ~(missed <= torch.finfo(self.layout.dtype).eps ** 0.5 * scale)
        if not bool(lost.any()):
            return
        warnings.warn(
            f"gradient of a fixed point: for {int(lost.sum())} of {lost.numel()} samples the way back of {self.how!r} "
            f"misses z0 by {float((missed / scale).nan_to_num(torch.inf).max()):.2e} of the state, by rounding or "
            "because f is not the same at each call. Their gradient may be off as much. Try fewer steps "
            "(steps=), more damping (damping=), or Unroll(start='z0', checkpoint=True).",
            ConvergenceWarning,
            stacklevel=2,
        )


class _Reversed(torch.autograd.Function):
    """Operands -> leaves of the last z."""

    @staticmethod
    def forward(ctx: Any, path: _Path, *operands: Tensor) -> tuple[Tensor, ...]:
        y, z = path.forward(operands)
        ctx.path = path
        ctx.save_for_backward(y, z, *operands)
        return tuple(path.unpack(z.clone()))

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
        path: _Path = ctx.path
        wanted = ctx.needs_input_grad[1:]
        y, z, *operands = ctx.saved_tensors
        if not torch.is_grad_enabled():
            if not all(t.is_leaf for t in operands):  # one may be computed from another: cut them apart
                operands = [t.detach().requires_grad_(t.requires_grad) for t in operands]
            return None, *path.backward(y, z, path.pack(g), operands, wanted)
        # Under other names, lest autograd walks on, from what is computed here through the operands' own history.
        operands = [t.view_as(t) if t.requires_grad else t for t in operands]
        end = path.unpack(path.forward(operands)[1])
        targets = [t for t, need in zip(operands, wanted, strict=True) if need]
        grads = iter(torch.autograd.grad(end, targets, g, create_graph=True, materialize_grads=True))
        return None, *(next(grads) if need else None for need in wanted)
