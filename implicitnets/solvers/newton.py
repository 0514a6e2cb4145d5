"""Newton's method, matrix-free, with a linear solver of the user's choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..nonsmooth import Autograd, Selection
from ..solution import Solution, amended
from . import native
from .base import Iterative, Solver, require
from .krylov import GMRES
from .loop import Iterate
from .packed import Affine, PackedMap

__all__ = ["Newton", "solve_scaled"]


@dataclass(frozen=True, kw_only=True)
class Newton(Iterative[None]):
    """z ← z + t d with (I − f'(z)) d = f(z) − z, solved by ``linear``, and t by backtracking.

    Products with f'(z) come from automatic differentiation, so no matrix is written out. Where f is not smooth,
    f'(z) is the element of the Clarke Jacobian that ``selection`` says, and this is the semismooth Newton method (Qi
    and Sun 1993). On a piecewise linear map it ends on the solution, up to rounding, with the first step from a point
    whose pieces are those of the solution, if ``linear`` is exact: ``Newton(linear=Dense())``, or a Krylov method
    of tight tolerance.

    Attributes:
        linear: Solver of the linear equation d = f'(z) d + (f(z) − z), which is a fixed point too, in units of
            the right-hand side. Its tolerance is the factor by which a step may at best reduce the residual.
        halvings: How often a step is halved at the most, until the residual falls.
        selection: The derivative of f at its kinks.

    Raises:
        TypeError: If linear is not a Solver, or selection not a Selection.
        ValueError: If halvings is negative.
    """

    linear: Solver = field(default_factory=lambda: GMRES(rtol=1e-3, max_steps=5))
    halvings: int = 8
    selection: Selection = Autograd()

    remedies: ClassVar[str] = (
        "more steps (max_steps=), a tighter linear solver (linear=GMRES(rtol=1e-6)), or Anderson()"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.linear, Solver):
            raise TypeError(f"Newton(linear={self.linear!r}): linear must be a Solver, e.g. linear=GMRES()")
        if not isinstance(self.selection, Selection):
            raise TypeError(
                f"Newton(selection={self.selection!r}): selection must be a Selection, e.g. nonsmooth.Right()"
            )
        require(self.halvings >= 0, self, "halvings", self.halvings, "at least 0")

    def step(self, f: PackedMap, now: Iterate, state: None) -> Tensor:  # noqa: D102
        direction = solve_scaled(self.linear, f.jacobian_product(now.z, self.selection), now.r).value
        return self._search(f, now, direction)

    def _search(self, f: PackedMap, now: Iterate, direction: Tensor) -> Tensor:
        """Halve the step of each row until its residual falls; what never falls takes the shortest step."""
        start = torch.linalg.vector_norm(now.r, dim=1)
        length = torch.ones_like(start)
        for k in range(self.halvings + 1):
            z = torch.addcmul(now.z, direction, length[:, None])
            if k == self.halvings:
                break
            size = torch.linalg.vector_norm(f(z) - z, dim=1)
            enough = size <= (1 - 1e-4 * length) * start  # the sufficient decrease of Armijo
            if enough.all():
                break
            length = torch.where(enough, length, length / 2)
        return z


def solve_scaled(solver: Solver, linear: object, right: Tensor) -> Solution:
    """The u with u = linear(u) + right in each row, solved for in units of ‖right‖.

    So the absolute tolerance of ``solver`` is relative to the right-hand side, and the solution of c · right is
    c times that of right, however small or large c is. The residual and trace of the record are in these units.
    """
    offset, unit = native.scaled(right.contiguous()) if native.fits(right) else _scaled(right)
    found = solver.run(Affine(linear, offset), torch.zeros_like(offset), fz0=offset)  # type: ignore[arg-type]
    return amended(found, value=found.value * unit)


def _scaled(right: Tensor) -> tuple[Tensor, Tensor]:
    largest = right.abs().amax(1, keepdim=True) if right.shape[1] else right.new_ones((right.shape[0], 1))
    largest = torch.where(largest > 0, largest, 1.0)  # first, so that no square under- or overflows
    size = torch.linalg.vector_norm(right / largest, dim=1, keepdim=True)
    unit = largest * torch.where(size > 0, size, 1.0)
    return right / unit, unit
