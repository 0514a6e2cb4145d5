"""Differentiation by the implicit function theorem: the one ``autograd.Function`` of this library.

At z = f(z, θ), with J = ∂f/∂z, a cotangent g of z becomes w = (I − Jᵀ)⁻¹ g, which is the fixed point of the affine
map w -> Jᵀw + g, and then the cotangent (∂f/∂θ)ᵀ w of θ. Since the adjoint equation is itself a fixed-point equation
with operands (z, θ, g), a derivative of the backward is the same Function once more, to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..pytree import Layout, leaves
from ..solution import Solution, warn_unconverged
from ..solvers import GMRES, Solver
from ..solvers.newton import solve_scaled
from .base import Backward, Equation, Report

__all__ = ["Implicit"]


@dataclass(frozen=True, kw_only=True)
class Implicit(Backward):
    """The implicit function theorem: dL/dθ = (∂f/∂θ)ᵀ (I − Jᵀ)⁻¹ dL/dz at the solution, J = ∂f/∂z.

    The adjoint equation is solved by ``solver`` for each sample in units of its cotangent, so the gradient of
    c · L is c times that of L. ``Implicit(solver=Dense())`` is exact, ``Implicit(solver=Picard(damping=...))`` is the
    relaxation of the equilibrium F-adjoint. Memory does not grow with the steps of either solver. Derivatives of
    any order can be taken in reverse mode.

    Where f is not smooth, J is the element of the Clarke Jacobian that autograd uses, and the result an element of
    the conservative Jacobian of the solution, if every I − J is invertible (Bolte, Le, Pauwels and Silveti-Falls
    2021, theorem 2).

    Attributes:
        solver: Solver of the adjoint equation.

    Raises:
        TypeError: If solver is not a Solver.
    """

    solver: Solver = field(default_factory=GMRES)

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver):
            shown = self.solver.__name__ if isinstance(self.solver, type) else repr(self.solver)
            raise TypeError(f"Implicit(solver={shown}): solver must be a Solver, e.g. Implicit(solver=GMRES())")

    def solve(self, equation: Equation, solver: Solver, report: Report | None) -> Solution:  # noqa: D102
        if not torch.is_grad_enabled() or not equation.watch():
            return equation.solve(solver)
        problem = _Forward(equation, solver, self.solver, report)
        value = _fixed_point(problem, *equation.operands)
        solution, problem.solution = problem.solution, None
        assert solution is not None
        return replace(solution, value=equation.layout.tree(value))


class _Problem(Protocol):
    """A fixed-point equation of some operands, which can be solved and differentiated."""

    adjoint: Solver
    report: Report | None

    @property
    def layout(self) -> Layout: ...

    def solve(self, operands: Sequence[Tensor]) -> list[Tensor]: ...

    def apply(self, z: Sequence[Tensor], operands: Sequence[Tensor]) -> list[Tensor]: ...


@dataclass
class _Forward:
    """z = f(z, θ)."""

    equation: Equation
    solver: Solver
    adjoint: Solver
    report: Report | None
    solution: Solution | None = None

    @property
    def layout(self) -> Layout:
        return self.equation.layout

    def solve(self, operands: Sequence[Tensor]) -> list[Tensor]:
        self.solution = self.equation.solve(self.solver)
        return leaves(self.solution.value)

    def apply(self, z: Sequence[Tensor], operands: Sequence[Tensor]) -> list[Tensor]:
        return self.equation.apply(z, operands)


@dataclass
class _Adjoint:
    """w = Jᵀw + g with J = ∂f/∂z of another problem; the operands are (z, θ, g)."""

    of: _Problem
    adjoint: Solver
    report: Report | None

    @property
    def layout(self) -> Layout:
        return self.of.layout

    def _split(self, operands: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        n = len(self.layout.shapes)
        return operands[:n], operands[n : len(operands) - n], operands[len(operands) - n :]

    def solve(self, operands: Sequence[Tensor]) -> list[Tensor]:
        z, theta, g = self._split(operands)
        return _Linearization(self.of, z, theta).solve_adjoint(g)

    def apply(self, z: Sequence[Tensor], operands: Sequence[Tensor]) -> list[Tensor]:
        point, theta, g = self._split(operands)
        point, theta = _aliases(point), _aliases(theta)
        out = self.of.apply(point, theta)
        product = torch.autograd.grad(out, point, z, create_graph=True, materialize_grads=True)
        return [a + b for a, b in zip(product, g, strict=True)]


def _aliases(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors under other names.

    Differentiating with respect to these keeps autograd from walking on, from z through the solution to θ.
    """
    return [t.view_as(t) if t.requires_grad else t for t in tensors]


class _Linearization:
    """f recorded once at (z, θ), for vector-Jacobian products with respect to both."""

    def __init__(self, problem: _Problem, z: Sequence[Tensor], theta: Sequence[Tensor]) -> None:
        self.problem = problem
        with torch.enable_grad():
            self.z = [t.detach().requires_grad_() for t in z]
            independent = all(t.is_leaf for t in theta)  # else one may be computed from another: cut them apart
            self.theta = list(theta) if independent else [t.detach().requires_grad_(t.requires_grad) for t in theta]
            self.out = problem.apply(self.z, self.theta)

    def solve_adjoint(self, g: Sequence[Tensor]) -> list[Tensor]:
        """The w with w = Jᵀw + g, by the problem's adjoint solver."""
        problem, layout = self.problem, self.problem.layout
        differentiable = [t for t in self.out if t.requires_grad]

        def product(w: Tensor) -> Tensor:
            if not differentiable:
                return torch.zeros_like(w)
            cotangents = [c for c, t in zip(layout.unpack(w), self.out, strict=True) if t.requires_grad]
            grads = torch.autograd.grad(
                differentiable,
                self.z,
                cotangents,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            return layout.pack(grads)

        found = solve_scaled(problem.adjoint, product, layout.pack(g))
        w = layout.unpack(found.value)
        if problem.report is not None:
            problem.report(replace(found, value=layout.tree(w)))
        warn_unconverged(
            found,
            problem.adjoint,
            what="gradient of a fixed point (residual of the adjoint equation, in units of the incoming gradient)",
            remedies=f"{type(problem.adjoint).remedies}, given as backward=Implicit(solver=...)",
        )
        return w

    def gradients(self, w: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
        """(∂f/∂θ)ᵀ w for the operands that are wanted. Frees what was recorded."""
        return _gradients(self.out, self.theta, w, wanted, create_graph=False)


def _gradients(
    out: Sequence[Tensor],
    theta: Sequence[Tensor],
    w: Sequence[Tensor],
    wanted: Sequence[bool],
    *,
    create_graph: bool,
) -> list[Tensor | None]:
    pairs = [(t, c) for t, c in zip(out, w, strict=True) if t.requires_grad]
    targets = [t for t, need in zip(theta, wanted, strict=True) if need]
    if not pairs or not targets:
        return [None] * len(theta)
    outputs, cotangents = zip(*pairs, strict=True)
    grads = iter(torch.autograd.grad(outputs, targets, cotangents, create_graph=create_graph, allow_unused=True))
    return [next(grads) if need else None for need in wanted]


class _FixedPoint(torch.autograd.Function):
    """Operands -> leaves of the solution of a problem."""

    @staticmethod
    def forward(problem: _Problem, *operands: Tensor) -> tuple[Tensor, ...]:
        return tuple(problem.solve(operands))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        problem, *operands = inputs
        ctx.problem = problem
        ctx.save_for_backward(*output, *operands)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
        problem: _Problem = ctx.problem
        n, wanted = len(g), ctx.needs_input_grad[1:]
        z, theta = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        if not torch.is_grad_enabled():
            at = _Linearization(problem, z, theta)
            return None, *at.gradients(at.solve_adjoint(g), wanted)
        w = _fixed_point(_Adjoint(problem, problem.adjoint, problem.report), *z, *theta, *g)
        point, parameters = _aliases(z), _aliases(theta)
        return None, *_gradients(problem.apply(point, parameters), parameters, w, wanted, create_graph=True)


def _fixed_point(problem: _Problem, *operands: Tensor) -> tuple[Tensor, ...]:
    value: tuple[Tensor, ...] = _FixedPoint.apply(problem, *operands)  # type: ignore[no-untyped-call]
    return value
