"""The fixed-point equations that derivatives of a fixed point lead to: z = f(z, θ), its adjoint, and its tangent.

Each is a function of tensors (operands), can be solved where they are plain, and can be mapped over an axis of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..nonsmooth import Selection
from ..pytree import leaves
from ..solution import Solution, warn_unconverged
from ..solvers import Solver
from ..solvers.newton import solve_scaled
from .base import Equation, Report
from .error import error_bound, estimate_error
from .frame import Frame
from .sync import together
from .transforms import jvp, vjp

__all__ = ["Adjoint", "Forward", "Linearization", "Problem", "Tangent"]

Tensors = Sequence[Tensor]
Axes = Sequence[int | None]


class Rule(Protocol):
    """What problems need of ``Implicit``."""

    @property
    def solver(self) -> Solver: ...
    @property
    def selection(self) -> Selection: ...
    @property
    def unconverged(self) -> str: ...
    @property
    def contraction(self) -> float | str | None: ...


class Problem(ABC):
    """A fixed-point equation z = f(z) of some operands.

    Attributes:
        frame: How its states lie in rows.
        rule: How it is differentiated.
    """

    frame: Frame
    rule: Rule

    @property
    @abstractmethod
    def root(self) -> Forward:
        """The forward problem that it comes from."""

    @abstractmethod
    def solve(self, operands: Tensors) -> tuple[list[Tensor], Tensor]:
        """For plain operands, the leaves of the solution, and which samples converged."""

    @abstractmethod
    def apply(self, z: Tensors, operands: Tensors) -> list[Tensor]:
        """The leaves of f(z), differentiable."""

    @abstractmethod
    def mapped(self, size: int, axes: Axes, randomness: str, operands: Tensors) -> tuple[Problem, list[Tensor]]:
        """``size`` of these side by side, for operands that have a new first axis (0 in ``axes``) or not (None)."""


class Forward(Problem):
    """z = f(z, θ); the operands are where to start, of which the solution is no function, and θ."""

    def __init__(self, equation: Equation, solver: Solver, rule: Rule, report: Report | None) -> None:
        self.equation, self.solver, self.rule, self.report = equation, solver, rule, report
        self.frame = equation.frame
        self.solution: Solution | None = None

    @property
    def root(self) -> Forward:  # noqa: D102
        return self

    def solve(self, operands: Tensors) -> tuple[list[Tensor], Tensor]:  # noqa: D102
        start, theta = self.split(operands)
        self.solution = self.equation.solve(self.solver, self.frame.tree(start), theta)
        return leaves(self.solution.value), self.solution.converged

    def apply(self, z: Tensors, operands: Tensors) -> list[Tensor]:  # noqa: D102
        with self.rule.selection.active():
            return self.equation.apply(z, self.split(operands)[1])

    def mapped(self, size: int, axes: Axes, randomness: str, operands: Tensors) -> tuple[Problem, list[Tensor]]:  # noqa: D102
        return _map(self, size, axes, randomness, operands)

    def split(self, operands: Tensors) -> tuple[Tensors, Tensors]:  # noqa: D102
        n = len(self.frame.layout.shapes)
        return operands[:n], operands[n:]


class _Mapped(Problem):
    """Copies of a forward problem side by side; their samples are solved as those of one batch."""

    def __init__(self, of: Problem, size: int, axes: Axes, randomness: str) -> None:
        self.of, self.axes, self.randomness = of, tuple(axes), randomness
        self.rule, self.frame = of.rule, of.frame.copied(size)

    @property
    def root(self) -> Forward:
        return self.of.root

    def solve(self, operands: Tensors) -> tuple[list[Tensor], Tensor]:
        root, tree = self.root, self.frame.tree
        start = tree(root.split(operands)[0])
        found = root.equation.run(lambda z: tree(self.apply(leaves(z), operands)), start, root.solver, self.frame)
        root.solution = found
        return leaves(found.value), found.converged

    def apply(self, z: Tensors, operands: Tensors) -> list[Tensor]:
        f = torch.func.vmap(
            lambda z, theta: tuple(self.of.apply(z, theta)),
            in_dims=((0,) * len(z), self.axes),
            randomness=self.randomness,
        )
        return list(f(tuple(z), tuple(operands)))

    def mapped(self, size: int, axes: Axes, randomness: str, operands: Tensors) -> tuple[Problem, list[Tensor]]:
        return _map(self, size, axes, randomness, operands)


def _map(of: Problem, size: int, axes: Axes, randomness: str, operands: Tensors) -> tuple[Problem, list[Tensor]]:
    start, theta = of.root.split(operands)
    start = _copies(start, axes, size)
    axes = (*[0] * len(start), *axes[len(start) :])
    return _Mapped(of, size, axes, randomness), [*start, *theta]


def _copies(tensors: Tensors, axes: Axes, size: int) -> list[Tensor]:
    """The tensors, each with the mapped axis."""
    return [t if axis == 0 else t.expand(size, *t.shape) for t, axis in zip(tensors, axes, strict=False)]


class _Linear(Problem):
    """w = Mw + g with M made of J = ∂f/∂z of another problem; the operands are (z, θ, g)."""

    def __init__(self, of: Problem) -> None:
        self.of, self.rule, self.frame = of, of.rule, of.frame

    @property
    def root(self) -> Forward:
        return self.of.root

    def split(self, operands: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
        n = len(self.frame.layout.shapes)
        return operands[:n], operands[n : len(operands) - n], operands[len(operands) - n :]

    def mapped(self, size: int, axes: Axes, randomness: str, operands: Tensors) -> tuple[Problem, list[Tensor]]:
        (z, theta, g), (along_z, along_theta, along_g) = self.split(operands), self.split(axes)
        of, inner = self.of.mapped(size, along_theta, randomness, theta)
        return type(self)(of), [*_copies(z, along_z, size), *inner, *_copies(g, along_g, size)]


class Adjoint(_Linear):
    """w = Jᵀw + g."""

    def solve(self, operands: Tensors) -> tuple[list[Tensor], Tensor]:  # noqa: D102
        z, theta, g = self.split(operands)
        return Linearization(self.of, z, theta).solve_adjoint(g)

    def apply(self, z: Tensors, operands: Tensors) -> list[Tensor]:  # noqa: D102
        point, theta, g = self.split(operands)
        return [a + b for a, b in zip(vjp(lambda *p: self.of.apply(p, theta), point, z), g, strict=True)]


class Tangent(_Linear):
    """w = Jw + g."""

    def solve(self, operands: Tensors) -> tuple[list[Tensor], Tensor]:  # noqa: D102
        z, theta, g = self.split(operands)
        return Linearization(self.of, z, theta).solve_tangent(g)

    def apply(self, z: Tensors, operands: Tensors) -> list[Tensor]:  # noqa: D102
        point, theta, g = self.split(operands)
        product = jvp(lambda *p: self.of.apply(p, theta), point, z, like=point)
        return [a + b for a, b in zip(product, g, strict=True)]


class Linearization:
    """f recorded once at plain (z, θ), for products with its Jacobians."""

    def __init__(self, problem: Problem, z: Tensors, theta: Tensors) -> None:
        self.problem = problem
        with torch.enable_grad():
            self.z = [t.detach().requires_grad_() for t in z]
            independent = all(t.is_leaf for t in theta)  # else one may be computed from another: cut them apart
            self.theta = list(theta) if independent else [t.detach().requires_grad_(t.requires_grad) for t in theta]
            self.out = problem.apply(self.z, self.theta)
        self.differentiable = [t for t in self.out if t.requires_grad]

    def solve_adjoint(self, g: Tensors) -> tuple[list[Tensor], Tensor]:
        """The w with w = Jᵀw + g, by the rule's solver, and which samples converged."""

        def product(w: Tensor) -> Tensor:
            cotangents = self.problem.frame.unpack(w)
            return self.problem.frame.pack(self._grad(self.z, cotangents, retain_graph=True, materialize_grads=True))

        return self._solve(product, g, "gradient")

    def solve_tangent(self, g: Tensors) -> tuple[list[Tensor], Tensor]:
        """The w with w = Jw + g, likewise. Jw comes from differentiating Jᵀu, which is linear in u."""
        with torch.enable_grad():
            u = [torch.zeros_like(t, requires_grad=True) for t in self.out]
            pulled = self._grad(self.z, u, create_graph=True, materialize_grads=True)
        depends = [t.requires_grad for t in pulled]

        def product(w: Tensor) -> Tensor:
            tangents = [v for v, there in zip(self.problem.frame.unpack(w), depends, strict=True) if there]
            outputs = [t for t in pulled if t.requires_grad]
            return self.problem.frame.pack(
                torch.autograd.grad(outputs, u, tangents, retain_graph=True, materialize_grads=True)
            )

        return self._solve(product if any(depends) else torch.zeros_like, g, "tangent")

    def gradients(self, w: Tensors, wanted: Sequence[bool]) -> list[Tensor | None]:
        """(∂f/∂θ)ᵀ w for the operands that are wanted. Frees what was recorded."""
        targets = [t for t, need in zip(self.theta, wanted, strict=True) if need]
        grads = iter(self._grad(targets, w, allow_unused=True))
        return [next(grads) if need else None for need in wanted]

    def _grad(self, targets: Tensors, cotangents: Tensors, **options: bool) -> list[Any]:
        pairs = [(t, c) for t, c in zip(self.out, cotangents, strict=True) if t.requires_grad]
        if not pairs or not targets:
            return [torch.zeros_like(t) for t in targets]
        outputs, weights = zip(*pairs, strict=True)
        return list(torch.autograd.grad(outputs, targets, weights, **options))

    def _solve(self, product: Callable[[Tensor], Tensor], g: Tensors, what: str) -> tuple[list[Tensor], Tensor]:
        problem, root = self.problem, self.problem.root
        solver = root.equation.feasible(problem.rule.solver)
        right = problem.frame.pack(g)
        found = solve_scaled(together(solver, problem.frame.ranks), product, right)
        match problem.rule.contraction:
            case "unknown":
                found = replace(found, error=estimate_error(product, found.value, right))
            case float() | int() as q:
                found = replace(found, error=error_bound(found, q))
        w = problem.frame.unpack(found.value)
        if root.report is not None:
            root.report(problem.frame.told(found, w))
        warn_unconverged(
            found,
            solver,
            what=f"{what} of a fixed point (residual of its linear equation, in units of the right-hand side)",
            remedies=f"{type(solver).remedies}, given as backward=Implicit(solver=...)",
        )
        return w, problem.frame.per_sample(found.converged)
