"""Differentiation through a few applications of the map at the solution."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..pytree import leaves
from ..solution import Solution
from ..solvers import Solver
from .base import Backward, Equation, Report

__all__ = ["Unroll"]


@dataclass(frozen=True, kw_only=True)
class Unroll(Backward):
    """Backpropagation through ``steps`` applications z ← damping · z + (1 − damping) · f(z) at the solution.

    An approximation of the gradient that needs no linear solve: steps=1 is Jacobian-free backpropagation (Fung et
    al. 2022), steps=k without damping the Neumann series of k terms, with damping the phantom gradient (Geng et al.
    2021). The value stays the one that the solver found, and memory grows with ``steps``. Second derivatives are
    those of this approximation.

    Attributes:
        steps: Applications of f, at least 1.
        damping: Share of the old iterate, in [0, 1).

    Raises:
        ValueError: If steps or damping is out of range.
    """

    steps: int = 1
    damping: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Unroll(steps={self.steps!r}): steps must be at least 1")
        if not 0 <= self.damping < 1:
            raise ValueError(f"Unroll(damping={self.damping!r}): damping must be in [0, 1)")

    def solve(self, equation: Equation, solver: Solver, report: Report | None) -> Solution:  # noqa: D102
        if not torch.is_grad_enabled() or not equation.watch():
            return equation.solve(solver)
        solution = equation.solve(solver)
        z = found = leaves(solution.value)
        for _ in range(self.steps):
            z = [
                old.lerp(new, 1 - self.damping)
                for old, new in zip(z, equation.apply(z, equation.operands), strict=True)
            ]
        value = [at + (path - path.detach()) for at, path in zip(found, z, strict=True)]
        return replace(solution, value=equation.layout.tree(value), evaluations=solution.evaluations + self.steps)
