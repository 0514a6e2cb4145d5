"""Differentiation by the implicit function theorem: the one ``autograd.Function`` of this library.

At z = f(z, θ), with J = ∂f/∂z, a cotangent g of z becomes w = (I − Jᵀ)⁻¹ g, which is the fixed point of the affine
map w -> Jᵀw + g, and then the cotangent (∂f/∂θ)ᵀ w of θ. Since the adjoint equation is itself a fixed-point equation
with operands (z, θ, g), a derivative of the backward is the same Function once more, to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..nonsmooth import Autograd, Selection
from ..pytree import leaves
from ..solution import Solution, Status, amended
from ..solvers import Solver
from .base import Backward, Equation, Report
from .capture import refuse_traced
from .linear import Adjoint, Linearization, Tangent
from .problems import Forward, Problem
from .surroundings import without_autocast
from .transforms import apply, forward_mode, is_traced, is_wrapped, jvp, primal, refuse_batched, vjp

__all__ = ["Implicit"]


@dataclass(frozen=True, kw_only=True)
class Implicit(Backward):
    """The implicit function theorem: dL/dθ = (∂f/∂θ)ᵀ (I − Jᵀ)⁻¹ dL/dz at the solution, J = ∂f/∂z.

    The linear equation is solved by ``solver`` for each sample in units of its right-hand side, so the gradient of
    c · L is c times that of L. ``Implicit(solver=Dense())`` is exact, ``Implicit(solver=Picard(damping=...))`` is the
    relaxation of the equilibrium F-adjoint. Memory does not grow with the steps of either solver. Derivatives of
    any order and mode can be taken: autograd's, forward mode (dz = (I − J)⁻¹ ∂f/∂θ dθ), and all of ``torch.func``
    in any nesting.

    Where f is not smooth, J is the element of the Clarke Jacobian that ``selection`` picks, and the result an
    element of the conservative Jacobian of the solution, if every I − J is invertible (Bolte, Le, Pauwels and
    Silveti-Falls 2021, theorem 2).

    Attributes:
        solver: Solver of the linear equation. None stands for ``Dense()`` where the state is small (up to 64 entries,
            depending on the batch), and ``Fallback(Anderson(), GMRES())`` elsewhere: on a linear equation, Anderson's
            method is a truncated GMRES (Walker and Ni 2011), which has the least overhead.
        selection: The element of the Clarke Jacobian at a kink.
        unconverged: What a sample that did not converge, forward or backward, adds to a gradient: what was found
            ("warn"), or nothing ("mask"), also where its data are not finite. There is a warning either way.
        contraction: What the record of the linear solve says of the error (I − Jᵀ)⁻¹g is found with: nothing (None);
            a bound, given a Lipschitz constant below 1 of f in z, in the Euclidean norm; or, if "unknown", an
            estimate, which takes some more products (``backward.error_bound``, ``backward.estimate_error``).

    Raises:
        TypeError: If solver is not a Solver, or selection not a Selection.
        ValueError: If another option is none of these.
    """

    solver: Solver | None = None
    selection: Selection = Autograd()
    unconverged: Literal["warn", "mask"] = "warn"
    contraction: float | Literal["unknown"] | None = None

    def __post_init__(self) -> None:
        if self.solver is not None and not isinstance(self.solver, Solver):
            shown = self.solver.__name__ if isinstance(self.solver, type) else repr(self.solver)
            raise TypeError(f"Implicit(solver={shown}): solver must be a Solver, e.g. Implicit(solver=GMRES())")
        if not isinstance(self.selection, Selection):
            raise TypeError(f"Implicit(selection={self.selection!r}): selection must be a Selection, e.g. Midpoint()")
        if self.unconverged not in ("warn", "mask"):
            raise ValueError(f'Implicit(unconverged={self.unconverged!r}): unconverged must be "warn" or "mask"')
        q = self.contraction
        if not (q is None or q == "unknown" or (isinstance(q, (int, float)) and 0 <= q < 1)):
            raise ValueError(f'Implicit(contraction={q!r}): contraction must be None, "unknown", or a number in [0, 1)')

    def solve(self, equation: Equation, solver: Solver, report: Report | None) -> Solution:  # noqa: D102
        if self.unconverged == "mask":
            equation.isolate()
        if not equation.watch():
            return equation.solve(solver)
        problem = Forward(equation, solver, self, report)
        *value, status = apply(_FixedPoint, problem, *leaves(equation.z0), *equation.operands)
        equation.z0 = None  # which the graph would hold
        solution, problem.solution = problem.solution, None
        assert solution is not None
        if self.unconverged == "mask":
            value = [_where(status == Status.CONVERGED, z, z.detach()) for z in value]
        return amended(solution, value=equation.layout.tree(value))


def solve_apart(equation: Equation, solver: Solver, start: Sequence[Tensor]) -> Solution:
    """Solve from there under whatever transforms are at work, so that no derivative runs through the value."""
    problem = Forward(equation, solver, Implicit(), None)
    *value, _ = apply(_FixedPoint, problem, *map(torch.detach, (*start, *equation.operands)))
    assert problem.solution is not None
    return amended(problem.solution, value=equation.layout.tree([t.detach() for t in value]))


class _FixedPoint(torch.autograd.Function):
    """Operands -> leaves of the solution of a problem, and the status of each sample."""

    @staticmethod
    def forward(problem: Problem, *operands: Tensor) -> tuple[Tensor, ...]:
        value, status = problem.solve(operands)
        return *value, status

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        problem, *operands = inputs
        *z, status = output
        ctx.problem = problem
        ctx.mark_non_differentiable(status)
        kept = problem.kept(z, operands)
        ctx.save_for_backward(status, *z, *kept)
        ctx.save_for_forward(status, *z, *kept)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
        problem: Problem = ctx.problem
        g, wanted = g[:-1], ctx.needs_input_grad[1:]
        refuse_batched(g)
        z, theta = _saved(problem, ctx.saved_tensors)
        with without_autocast(z[0].device):
            if not torch.is_grad_enabled() and not any(map(is_traced, (*z, *theta, *g))):
                at = Linearization(problem, z, theta)
                return None, *at.gradients(_masked(problem, *at.solve_adjoint(g)), wanted)
            w = _solve_linear(Adjoint(problem), *z, *theta, *g)
            grads = iter(vjp(*_partial(problem, z, theta, wanted), w))
            return None, *(next(grads) if need else None for need in wanted)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        problem: Problem = ctx.problem
        with forward_mode(), without_autocast(ctx.saved_tensors[0].device):
            saved = [primal(t) for t in ctx.saved_tensors]
            z, theta = _saved(problem, saved)
            f, at = _partial(problem, z, theta, [t is not None for t in tangents])
            if not any(map(is_wrapped, saved)):  # then there is but one tangent, and it was taken out
                refuse_traced(f(*at))
            b = jvp(f, at, [t for t in tangents if t is not None], like=z)
            return *_solve_linear(Tangent(problem), *z, *theta, *b), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], problem: Problem, *operands: Tensor) -> Any:
        dims = in_dims[1:]
        moved = [t if d is None else t.movedim(d, 0) for t, d in zip(operands, dims, strict=True)]
        axes = [None if d is None else 0 for d in dims]
        mapped, moved = problem.mapped(info.batch_size, axes, info.randomness, moved)
        out = apply(_FixedPoint, mapped, *moved)
        return out, (0,) * len(out)


def _solve_linear(problem: Problem, *operands: Tensor) -> list[Tensor]:
    *w, status = apply(_FixedPoint, problem, *operands)
    return _masked(problem, w, status)


def _masked(problem: Problem, w: Sequence[Tensor], status: Tensor) -> list[Tensor]:
    """w, without the samples that did not converge where that was asked for."""
    if problem.rule.unconverged == "warn":
        return list(w)
    return [_where(status == Status.CONVERGED, t, torch.zeros_like(t)) for t in w]


def _where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(rows.reshape(rows.shape + (1,) * (yes.dim() - rows.dim())), yes, no)


def _saved(problem: Problem, saved: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The solution, without the samples that are masked, and the operands."""
    n = len(problem.frame.layout.shapes)
    status, z, theta = saved[0], saved[1 : n + 1], saved[n + 1 :]
    return _masked(problem, z, status), list(theta)


def _partial(
    problem: Problem, z: Sequence[Tensor], theta: Sequence[Tensor], chosen: Sequence[bool]
) -> tuple[Callable[..., list[Tensor]], list[Tensor]]:
    """f at z as a function of the chosen operands, and these."""

    def f(*some: Tensor) -> list[Tensor]:
        values = iter(some)
        return problem.apply(z, [next(values) if mine else t for t, mine in zip(theta, chosen, strict=True)])

    return f, [t for t, mine in zip(theta, chosen, strict=True) if mine]
