"""Models as x = φ(Ax + Bu + b), y = Cx + Du + c, whatever they are made of: what can be proved is proved of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..activations import Activation, Blocks, as_activation
from ..backward import Implicit
from ..fixed_point import fixed_point
from ..solution import Solution
from ..solvers import GMRES, Anderson, Fallback, Newton, PeacemanRachford, Picard, Solver
from .operators import dense
from .proximal import PROXIMAL
from .split import SplitMap

__all__ = ["AffineForm", "NotAffine"]

TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-13}


class NotAffine(TypeError):
    """The model has no affine form; the message says which part of it, and what would have one."""


@dataclass(frozen=True, kw_only=True)
class AffineForm:
    """x = φ(Ax + Bu + b), y = Cx + Du + c, of inputs that are flattened.

    Attributes:
        A: Hidden weights, (rows, states), dense, as are the others.
        B: Input weights, (rows, inputs).
        C: Output weights, (outputs, states).
        D: Weights from input to output, (outputs, inputs).
        b: State bias, (rows,).
        c: Output bias, (outputs,).
        activation: φ, which maps the rows to the states.
        weights: The diagonal of a Λ > 0 for which the model promises Λ(I − A) + (I − A)ᵀΛ > 0, or None. A hint for
            those who prove it.
        output_shape: Of the output for one sample, where it is no vector.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    b: Tensor
    c: Tensor
    activation: Activation
    weights: Tensor | None = None
    output_shape: tuple[int, ...] | None = None

    @property
    def states(self) -> int:
        """Entries of x."""
        return self.A.shape[1]

    @property
    def rows(self) -> int:
        """Entries of Ax + Bu + b."""
        return self.A.shape[0]

    @property
    def inputs(self) -> int:
        """Entries of u."""
        return self.B.shape[1]

    @property
    def outputs(self) -> int:
        """Entries of y."""
        return self.C.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> AffineForm:
        """The form of the tensors that a function makes of these."""
        changed: dict[str, Any] = {k: function(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **changed)

    def preactivation(self, x: Tensor, u: Tensor) -> Tensor:
        """Ax + Bu + b, (batch, rows)."""
        return functional.linear(x, self.A) + functional.linear(u, self.B, self.b)

    def readout(self, x: Tensor, u: Tensor) -> Tensor:
        """Y = Cx + Du + c, (batch, outputs)."""
        return functional.linear(x, self.C) + functional.linear(u, self.D, self.c)

    def solve(self, u: Tensor, solver: Solver | None = None) -> Solution:
        """The states for inputs u of shape (batch, inputs), as exactly as the dtype allows if no solver is given.

        Warns:
            ConvergenceWarning: If a sample did not converge.
        """
        injection = functional.linear(u, self.B, self.b)
        f: Any = SplitMap(dense(self.A, margin=1e-3), self._name) if self._split else self._plain
        start, exact = u.new_zeros(len(u), self.states), Implicit(solver=GMRES(**TIGHT, max_steps=200))
        return fixed_point(f, start, injection, solver=solver or self._solver, backward=exact)

    def _plain(self, x: Tensor, injection: Tensor) -> Tensor:
        return self.activation(torch.addmm(injection, x, self.A.T))

    @property
    def _name(self) -> str:
        return str(getattr(self.activation, "name", ""))

    @property
    def _split(self) -> bool:
        return self._name in PROXIMAL

    @property
    def _solver(self) -> Solver:
        """From the fastest to those that get there: splitting if A is monotone, ``Picard`` if it is triangular."""
        split: list[Solver] = [PeacemanRachford(**TIGHT, max_steps=5000)] if self._split else []
        last = Picard(**TIGHT, max_steps=1000)
        return Fallback(Anderson(**TIGHT, max_steps=200), Newton(**TIGHT, max_steps=50), *split, last)

    def before(self, K: Tensor, k: Tensor) -> AffineForm:
        """The form of v ↦ y(Kv + k)."""
        return replace(self, B=self.B @ K, D=self.D @ K, b=self.b + self.B @ k, c=self.c + self.D @ k)

    def then(self, K: Tensor, k: Tensor) -> AffineForm:
        """The form of u ↦ Ky(u) + k."""
        return replace(self, C=K @ self.C, D=K @ self.D, c=K @ self.c + k, output_shape=None)

    def cascade(self, later: AffineForm) -> AffineForm:
        """The form of u ↦ later(y(u)), the states of ``later`` first (El Ghaoui et al. 2021, section 2)."""
        zeros = self.A.new_zeros(self.rows, later.states)
        A = torch.cat([torch.cat([later.A, later.B @ self.C], 1), torch.cat([zeros, self.A], 1)])
        return AffineForm(
            A=A,
            B=torch.cat([later.B @ self.D, self.B]),
            C=torch.cat([later.C, later.D @ self.C], 1),
            D=later.D @ self.D,
            b=torch.cat([later.b + later.B @ self.c, self.b]),
            c=later.c + later.D @ self.c,
            output_shape=later.output_shape,
            activation=as_activation(_joined((later.activation, later.rows), (self.activation, self.rows))),
        )


def _joined(*parts: tuple[Activation, int]) -> Any:
    blocks = Blocks(*parts)
    return blocks.blocks[0][0] if len(blocks.blocks) == 1 else blocks
