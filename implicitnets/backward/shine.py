"""The forward solver's approximate inverse, used once more for the gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..pytree import leaves
from ..solution import Solution, Status, amended
from ..solvers import Affine, Broyden, Solver
from ..solvers.broyden import InverseKept
from .base import Backward, Equation, Report
from .implicit import Implicit

__all__ = ["Shine"]


@dataclass(frozen=True, kw_only=True)
class Shine(Backward):
    """The inverse that Broyden's method has built, H ≈ (I − J)⁻¹, shared with the backward pass (Ramzi et al. 2022).

    Without a solver, w = Hᵀ dL/dz takes the place of the solution of the adjoint equation w = Jᵀw + dL/dz: an
    approximation that costs one vector-Jacobian product, with which its residual is measured and reported. It can be
    far off, since H is accurate only along the steps that were taken; the residual says how far. It has no second
    derivatives, and asking for them is an error.

    With a solver, the adjoint equation is solved, from this w in each sample where it is a better start than zero.
    The gradient and its derivatives are then those of ``Implicit(solver=solver)``.

    The forward solver must be ``Broyden``. Its history, 2 · memory states, is kept until the gradient is taken.

    Attributes:
        solver: Solver of the adjoint equation, or None.

    Raises:
        TypeError: If solver is not a Solver or None, and on use if the forward solver is not Broyden.
        NotImplementedError: On use in forward mode, or under ``torch.func``.

    Warns:
        ConvergenceWarning: When the gradient is taken, without a solver if a residual exceeds ‖dL/dz‖: then w is
            no better than zero. With one, if it does not converge.
    """

    solver: Solver | None = None

    def __post_init__(self) -> None:
        if self.solver is not None and not isinstance(self.solver, Solver):
            shown = self.solver.__name__ if isinstance(self.solver, type) else repr(self.solver)
            raise TypeError(f"Shine(solver={shown}): solver must be a Solver or None, e.g. Shine(solver=GMRES())")

    def solve(self, equation: Equation, solver: Solver, report: Report | None) -> Solution:  # noqa: D102
        if not isinstance(solver, Broyden):
            raise TypeError(f"{self!r} uses the inverse that Broyden's method builds: write solver=Broyden(...)")
        equation.watch()
        if equation.traced:
            raise NotImplementedError(
                f"{self!r} has no derivatives by forward mode or torch.func, where it would be another inverse that is "
                "wanted: use Implicit()"
            )
        keeping = solver.keeping_inverse()
        solution = Implicit(solver=_Shared(forward=keeping, then=self.solver)).solve(equation, keeping, report)
        flat = leaves(solution.value)
        if self.solver is None and any(leaf.requires_grad for leaf in flat):
            flat = _FirstOrder.apply(*flat)  # type: ignore[no-untyped-call]
        return amended(solution, value=equation.layout.tree(flat))


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class _Shared(Solver):
    """Starts an affine equation w = Jᵀw + g at Hᵀg, and goes on with another solver if there is one."""

    forward: InverseKept
    then: Solver | None

    remedies: ClassVar[str] = "Shine(solver=GMRES()), which goes on from there, or GMRES()"

    def __repr__(self) -> str:
        return repr(Shine(solver=self.then))

    def at_least(self, rtol: float) -> Solver:
        return self if self.then is None else replace(self, then=self.then.at_least(rtol))

    @torch.no_grad()
    def run(self, f: Callable[[Any], Any], z0: Any, *, fz0: Any = None) -> Solution:
        assert isinstance(f, Affine)
        g = f.offset
        w = self.forward.transposed_inverse_times(g)
        fw = f(w)
        residual = torch.linalg.vector_norm(fw - w, dim=1)
        good = residual <= torch.linalg.vector_norm(g, dim=1)  # 0 has the residual ‖g‖
        if self.then is None:
            return _judged(w, residual, good)
        start, value = torch.where(good[:, None], w, 0.0), torch.where(good[:, None], fw, g)
        found = self.then.run(f, start, fz0=value)
        return amended(found, evaluations=found.evaluations + 1)


def _judged(w: Tensor, residual: Tensor, good: Tensor) -> Solution:
    failed = torch.where(residual.isfinite(), int(Status.MAX_STEPS), int(Status.NONFINITE))
    return Solution(
        value=w,
        residual=residual,
        steps=torch.zeros_like(failed),
        status=torch.where(good, int(Status.CONVERGED), failed),
        evaluations=1,
    )


class _FirstOrder(torch.autograd.Function):
    """The identity, which lets a gradient through but no derivative of it."""

    @staticmethod
    def forward(ctx: Any, *flat: Tensor) -> tuple[Tensor, ...]:
        return tuple(leaf.view_as(leaf) for leaf in flat)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the gradient of Shine() can't be differentiated, since the inverse in it is no function of the "
                "parameters: use Shine(solver=GMRES()) or Implicit() with create_graph=True"
            )
        return g
