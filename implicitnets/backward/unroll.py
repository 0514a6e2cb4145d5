"""Differentiation by unrolling a few steps at the solution, or all steps from the start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import isqrt
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.checkpoint import checkpoint

from ..pytree import leaves, versions
from ..solution import Solution, Status, amended
from ..solvers import Solver
from .base import Backward, Equation, Report
from .implicit import solve_apart
from .replay import measured

__all__ = ["Unroll"]


@dataclass(frozen=True, kw_only=True)
class Unroll(Backward):
    """Backpropagation through ``steps`` applications z ← damping · z + (1 − damping) · f(z).

    At the solution (``start="solution"``), this is an approximation of its gradient that needs no linear solve:
    steps=1 is Jacobian-free backpropagation (Fung et al. 2022), steps=k without damping the Neumann series of k
    terms, with damping the phantom gradient (Geng et al. 2021). The value stays the one that the solver found.

    From the start (``start="z0"``), it is a network of ``steps`` layers with tied weights, and the gradient is the
    exact one of what it returns: backpropagation through time. The solver is not run; its rtol and atol say which
    samples have converged. Nor is it run where no gradient is wanted, so the value is the same there.

    Memory grows with ``steps``, or, with ``checkpoint``, with their square root: only the state of every √steps-th
    step is kept, and f is applied again when the gradient is taken (Chen et al. 2016, "Training deep nets with
    sublinear memory cost"). Second derivatives are those of what is unrolled.

    Attributes:
        steps: Applications of f, at least 1.
        damping: Share of the old iterate, in [0, 1).
        start: "solution" or "z0".
        checkpoint: Trade a second application of f in each step for memory.

    Raises:
        ValueError: If an option is out of range.
    """

    steps: int = 1
    damping: float = 0.0
    start: Literal["solution", "z0"] = "solution"
    checkpoint: bool = False

    remedies: ClassVar[str] = "more steps (steps=), or Implicit() with a solver"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Unroll(steps={self.steps!r}): steps must be at least 1")
        if not 0 <= self.damping < 1:
            raise ValueError(f"Unroll(damping={self.damping!r}): damping must be in [0, 1)")
        if self.start not in ("solution", "z0"):
            raise ValueError(f"Unroll(start={self.start!r}): start must be 'solution' or 'z0'")

    def finder(self, solver: Solver) -> Solver | Backward:
        """This itself where it starts from z0."""
        return self if self.start == "z0" else solver

    def solve(self, equation: Equation, solver: Solver, report: Report | None) -> Solution:  # noqa: D102
        wanted = equation.watch()
        if self.start == "z0":
            z = self._path(equation, leaves(equation.z0))
            return measured(equation, z, solver, steps=self.steps, evaluations=self.steps + 1)
        traced = equation.traced
        solution = solve_apart(equation, solver, leaves(equation.z0)) if traced else equation.solve(solver)
        if not wanted:
            return solution
        found = leaves(solution.value)
        value = [at + (path - path.detach()) for at, path in zip(found, self._path(equation, found), strict=True)]
        return amended(solution, value=equation.layout.tree(value), evaluations=solution.evaluations + self.steps)

    @property
    def traceable(self) -> bool:
        """From the start, the steps are a fixed number of applications of f: one graph."""
        return self.start == "z0"

    def trace(self, f: Callable[..., Any], z0: Any, inputs: Sequence[Any], solver: Solver) -> Solution:
        """The steps from the start and nothing else: no checks, and no warning."""
        z, spec = _pytree.tree_flatten(_pytree.tree_map(torch.detach, z0))
        for _ in range(self.steps + 1):
            last, fz = z, _pytree.tree_leaves(f(_pytree.tree_unflatten(z, spec), *inputs))
            z = [old.lerp(new, 1 - self.damping) for old, new in zip(last, fz, strict=True)]
        dtype = reduce(torch.promote_types, [leaf.dtype for leaf in last], torch.float32)

        def norm(flat: Sequence[Tensor]) -> Tensor:
            rows = torch.cat([leaf.detach().flatten(1).to(dtype) for leaf in flat], 1)
            size: Tensor = torch.linalg.vector_norm(rows, dim=1)
            return size

        residual = norm([new - old for new, old in zip(fz, last, strict=True)])
        status = torch.where(residual <= solver.atol + solver.rtol * norm(fz), Status.CONVERGED, Status.MAX_STEPS)
        return Solution(
            value=_pytree.tree_unflatten(last, spec),
            residual=residual,
            steps=torch.full_like(status, self.steps),
            status=torch.where(residual.isfinite(), status, int(Status.NONFINITE)),
            evaluations=self.steps + 1,
        )

    def _path(self, equation: Equation, z: Sequence[Tensor]) -> Sequence[Tensor]:
        """The end of ``steps`` steps from ``z``, which knows the way that it came."""
        if not self.checkpoint:
            return self._walk(equation, self.steps, *z)
        before = versions(equation.operands)

        def walk(steps: int, *z: Tensor) -> tuple[Tensor, ...]:
            _refuse_changed(equation.operands, before)
            return self._walk(equation, steps, *z)

        stride = isqrt(self.steps - 1) + 1
        for done in range(0, self.steps, stride):
            z = checkpoint(walk, min(stride, self.steps - done), *z, use_reentrant=False)
        return z

    def _walk(self, equation: Equation, steps: int, *z: Tensor) -> tuple[Tensor, ...]:
        for _ in range(steps):
            z = tuple(
                old.lerp(new, 1 - self.damping)
                for old, new in zip(z, equation.apply(z, equation.operands), strict=True)
            )
        return z


def _refuse_changed(operands: Sequence[Tensor], before: list[int]) -> None:
    """Check that f is the map that it was, as autograd does for what it keeps.

    Raises:
        RuntimeError: If an operand was changed in place since ``before``.
    """
    if versions(operands) != before:
        raise RuntimeError(
            "a tensor that f depends on has been modified by an inplace operation since the forward pass, and "
            "Unroll(checkpoint=True) has to apply f again: take the gradient first"
        )
