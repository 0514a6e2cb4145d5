"""The matrices of an implicit model, each a parameter or a module of its own, and its states by substitution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..activations import Activation
from ..constraints import Constraint
from ..solution import Solution, Status
from .deq import Equilibrium
from .matrices import Matrix, SparseMatrix, halve
from .structures import Structure

__all__ = ["Weights", "solved"]


class Weights(Equilibrium):
    """What an ``ImplicitModel`` consists of: A, B, C, D, b and c.

    A matrix is a parameter of its name, or made by the module ``A_parts``, ``B_parts``, ...
    """

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    b: nn.Parameter | None
    c: nn.Parameter | None

    inputs: int
    states: int
    outputs: int
    rows: int
    bias: bool
    structure: Structure
    constraint: Constraint | None
    nonzeros: dict[str, int]

    def _build(self, phi: Activation) -> None:
        """Make the weights and draw them.

        Raises:
            ValueError: If the structure or the constraint is not for such a model.
        """
        constraint = self.constraint
        if constraint is not None and not self.structure.direct:  # which is well-posed anyway
            constraint = constraint.for_activation(phi)
        matrix = self.structure.build(self.states, phi, constraint)
        if matrix is None:
            self.A = nn.Parameter(torch.empty(self.rows, self.states))
        else:
            self.A_parts = matrix
        shapes = {"B": (self.rows, self.inputs), "C": (self.outputs, self.states), "D": (self.outputs, self.inputs)}
        for name, shape in shapes.items():
            if name in self.nonzeros:
                setattr(self, f"{name}_parts", SparseMatrix(shape, self.nonzeros[name]))
            else:
                setattr(self, name, nn.Parameter(torch.empty(shape)))
        self.b = nn.Parameter(torch.zeros(self.rows)) if self.bias else None
        self.c = nn.Parameter(torch.zeros(self.outputs)) if self.bias else None
        self._initialize()
        if matrix is None and constraint is not None:
            constraint.apply(self, "A")

    def _initialize(self) -> None:
        """Rows of A of absolute sum 1/2, so that every model starts as a contraction; the rest as in nn.Linear."""
        with torch.no_grad():
            for name in "ABCD":
                if f"{name}_parts" in self._modules:
                    self._parts(name).initialize()
                elif name == "A":
                    halve(self.A)
                else:
                    weight = self._parameters[name]
                    assert weight is not None
                    weight.uniform_(-1, 1).mul_(weight.shape[1] ** -0.5)

    def __getattr__(self, name: str) -> Any:
        if name in ("A", "B", "C", "D") and f"{name}_parts" in self.__dict__.get("_modules", ()):
            return self._parts(name).tensor()
        return super().__getattr__(name)

    def _parts(self, name: str) -> Matrix:
        parts: Any = self._modules[f"{name}_parts"]
        found: Matrix = parts
        return found

    def _linear(self, name: str, x: Tensor, bias: Tensor | None = None) -> Tensor:
        parts = self._modules.get(f"{name}_parts")
        if isinstance(parts, SparseMatrix):
            return parts.linear(x, bias)
        return functional.linear(x, getattr(self, name), bias)


def solved(x: Tensor) -> Solution:
    """The record of states that were each made from their own equation, so that nothing is left over."""
    finite = torch.isfinite(x).all(-1)
    return Solution(
        value=x,
        residual=torch.where(finite, 0.0, torch.nan).to(x.dtype),
        steps=torch.ones_like(finite, dtype=torch.int64),
        status=torch.where(finite, int(Status.CONVERGED), int(Status.NONFINITE)),
        evaluations=1,
    )
