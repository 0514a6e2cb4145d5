"""A fixed-point equation as a function of tensors (operands), which can be mapped over an axis of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..nonsmooth import Selection
from ..pytree import leaves
from ..solution import Solution
from ..solvers import Solver, SplitJacobian
from .base import Equation, Report
from .frame import Frame

__all__ = ["Axes", "Forward", "Problem", "Tensors", "copies"]

Tensors = Sequence[Tensor]
Axes = Sequence[int | None]


class Rule(Protocol):
    """What problems need of ``Implicit``."""

    @property
    def solver(self) -> Solver | None: ...
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
        """For plain operands, the leaves of the solution, and the status of each sample."""

    @abstractmethod
    def apply(self, z: Tensors, operands: Tensors) -> list[Tensor]:
        """The leaves of f(z), differentiable."""

    @abstractmethod
    def mapped(self, size: int, axes: Axes, randomness: str, operands: Tensors) -> tuple[Problem, list[Tensor]]:
        """``size`` of these side by side, for operands that have a new first axis (0 in ``axes``) or not (None)."""

    def kept(self, z: Tensors, operands: Tensors) -> Tensors:
        """What derivatives at the solution z need of the operands, in their places."""
        return operands

    def factors(self, z: Tensors, operands: Tensors) -> SplitJacobian | None:
        """The factors of ∂f/∂z at plain points, for solvers that split the equation; None where f tells none."""
        return None


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
        return leaves(self.solution.value), self.solution.status

    def apply(self, z: Tensors, operands: Tensors) -> list[Tensor]:  # noqa: D102
        with self.rule.selection.active():
            return self.equation.apply(z, self.split(operands)[1])

    def mapped(self, size: int, axes: Axes, randomness: str, operands: Tensors) -> tuple[Problem, list[Tensor]]:  # noqa: D102
        return _map(self, size, axes, randomness, operands)

    def kept(self, z: Tensors, operands: Tensors) -> Tensors:
        """The solution in place of the start, which would be a state more to hold."""
        return [*map(torch.detach, z), *self.split(operands)[1]]

    def factors(self, z: Tensors, operands: Tensors) -> SplitJacobian | None:  # noqa: D102
        return self.equation.factors(z, self.split(operands)[1], self.rule.selection)

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
        return leaves(found.value), found.status

    def apply(self, z: Tensors, operands: Tensors) -> list[Tensor]:
        f = torch.func.vmap(
            lambda z, theta: tuple(self.of.apply(z, theta)),
            in_dims=((0,) * len(z), self.axes),
            randomness=self.randomness,
        )
        return list(f(tuple(z), tuple(operands)))

    def kept(self, z: Tensors, operands: Tensors) -> Tensors:
        return self.of.kept(z, operands)

    def mapped(self, size: int, axes: Axes, randomness: str, operands: Tensors) -> tuple[Problem, list[Tensor]]:
        return _map(self, size, axes, randomness, operands)


def _map(of: Problem, size: int, axes: Axes, randomness: str, operands: Tensors) -> tuple[Problem, list[Tensor]]:
    start, theta = of.root.split(operands)
    spread = copies(start, axes, size)
    axes = (*[0] * len(start), *axes[len(start) :])
    return _Mapped(of, size, axes, randomness), [*spread, *theta]


def copies(tensors: Tensors, axes: Axes, size: int) -> list[Tensor]:
    """The tensors, each with the mapped axis."""
    return [t if axis == 0 else t.expand(size, *t.shape) for t, axis in zip(tensors, axes, strict=False)]
