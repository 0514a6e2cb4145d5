"""The interface of a backward, and the equation that it differentiates."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree

from ..pytree import Layout, leaves, refuse_in_place, versions
from ..solution import Solution
from ..solvers import Solver
from .capture import Substitution, capture

__all__ = ["Backward", "Equation", "Report"]

Report = Callable[[Solution], None]
"""What the Solution of the adjoint equation is handed to."""


@dataclass(frozen=True, kw_only=True)
class Backward(ABC):
    """How the solution of a fixed-point equation is differentiated. A value: frozen, comparable, printable."""

    @abstractmethod
    def solve(self, equation: Equation, solver: Solver, report: Report | None) -> Solution:
        """Solve the equation with ``solver``; the value that is returned carries the gradient."""


class Restricted:
    """z -> f(z, *inputs), which can be cut down to some of its samples."""

    def __init__(self, f: Callable[..., Any], inputs: Sequence[Any], batch: int) -> None:
        self.f, self.inputs = f, tuple(inputs)
        # Decided once: a matrix must not be taken for data because the batch has shrunk to its size.
        self.per_sample = _pytree.tree_map(
            lambda x: isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == batch, self.inputs
        )

    def __call__(self, z: Any) -> Any:
        return self.f(z, *self.inputs)

    def select(self, rows: Tensor) -> Restricted:
        """The same for the samples ``rows``: inputs whose first axis is the batch are cut."""
        part = copy.copy(self)
        part.inputs = _pytree.tree_map(lambda x, mine: x[rows] if mine else x, self.inputs, self.per_sample)
        return part


class Equation:
    """z = f(z, *inputs) from ``z0``, as a function of the tensors (operands) that f depends on."""

    def __init__(self, f: Callable[..., Any], z0: Any, inputs: tuple[Any, ...]) -> None:
        self.f, self.inputs = f, inputs
        self.layout = Layout.of(z0)
        self.z0: Any = _pytree.tree_map(torch.detach, z0)
        self.operands: list[Tensor] = []
        self._fz0: Any = None

    def watch(self) -> bool:
        """Evaluate f at z0 once and find its operands; whether any of them requires grad."""
        known = [x for x in _pytree.tree_leaves(self.inputs) if isinstance(x, Tensor)]
        if isinstance(self.f, nn.Module):
            known += self.f.parameters()
        state = leaves(self.z0)
        before = versions(state)
        value, self.operands = capture(lambda: self.f(self.z0, *self.inputs), known, self._leaves)
        refuse_in_place(state, before)
        self._fz0 = _pytree.tree_map(torch.detach, value)
        return any(t.requires_grad for t in self.operands)

    def solve(self, solver: Solver) -> Solution:
        """Solve with the operands as they are; no gradient, and no warning.

        A parametrized weight is computed once, not at every evaluation.
        """
        with parametrize.cached():
            solution = solver.run(Restricted(self.f, self.inputs, self.layout.batch), self.z0, fz0=self._fz0)
        if self._fz0 is not None:  # it was evaluated here, not there
            solution = replace(solution, evaluations=solution.evaluations + 1)
            self._fz0 = None
        return solution

    def apply(self, z: Sequence[Tensor], operands: Sequence[Tensor]) -> list[Tensor]:
        """The leaves of f(z), with ``operands`` in place of those that f was found to depend on."""
        if all(new is old for new, old in zip(operands, self.operands, strict=True)):
            return self._leaves(self.f(self.layout.tree(z), *self.inputs))
        with Substitution([*self.operands, *z], [*operands, *z]) as substitution:
            out = self._leaves(self.f(self.layout.tree(z), *substitution.swap(self.inputs)))
        substitution.check(out)
        return out

    def _leaves(self, value: Any) -> list[Tensor]:
        return self.layout.check(value, self.layout.batch)
