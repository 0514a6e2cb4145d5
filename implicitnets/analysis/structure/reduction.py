"""What a way to make a model smaller is, and what it works on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...models import AffineForm
from ..regions import Region
from .editing import select

__all__ = ["Evidence", "Reduced", "Reduction", "require_count", "require_matrices", "require_share"]


@dataclass(frozen=True)
class Evidence:
    """What a reduction may look at beside the weights.

    Attributes:
        region: The inputs that matter, or None for all.
        x: Inputs of the model, (samples, inputs), float64, or None.
    """

    region: Region | None = None
    x: Tensor | None = None

    def data(self, method: Reduction) -> Tensor:
        """The inputs.

        Raises:
            ValueError: If there are none.
        """
        if self.x is None:
            raise ValueError(f"{method!r} looks at data: pass x=..., inputs of shape (samples, ...)")
        return self.x


@dataclass(frozen=True)
class Reduced:
    """A model on the way to a smaller one.

    Attributes:
        form: Its form, float64.
        states: Which states of the first model its states stand for, (states,).
        rows: Likewise the rows, (rows,).
        factors: The diagonal and the two factors of A, where it has a low rank.
        numbers: How many numbers A is stored as, where these are fewer than its nonzeros.
        bits: By matrix, bits of each nonzero and those of a table of values.
    """

    form: AffineForm
    states: Tensor
    rows: Tensor
    factors: tuple[Tensor, Tensor, Tensor] | None = None
    numbers: int | None = None
    bits: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, form: AffineForm) -> Reduced:
        """The model itself."""
        return cls(form, torch.arange(form.states), torch.arange(form.rows))

    def take(self, states: Tensor) -> Reduced:
        """Without the other states, and without what they contribute."""
        form, rows = select(self.form, states)
        factors = self.factors and (self.factors[0][states], self.factors[1][states], self.factors[2][states])
        return replace(self, form=form, states=self.states[states], rows=self.rows[rows], factors=factors, numbers=None)

    def put(self, form: AffineForm, states: Tensor) -> Reduced:
        """With another form of some of the states."""
        return replace(self.take(states), form=form, factors=None, bits={})

    def set(self, **weights: Tensor) -> Reduced:
        """With other weights of the same shapes."""
        model = replace(self, factors=None, numbers=None) if "A" in weights else self
        bits = {name: count for name, count in self.bits.items() if name not in weights}
        changed: dict[str, Any] = dict(weights)
        return replace(model, form=replace(self.form, weights=None, **changed), bits=bits)


@dataclass(frozen=True, kw_only=True)
class Reduction(ABC):
    """A way to make a model smaller. A value: frozen, comparable, printable."""

    @abstractmethod
    def __call__(self, model: Reduced, evidence: Evidence) -> Reduced:
        """The smaller model; its states are some of those before.

        Raises:
            ValueError: If the model or the evidence is not what it takes.
        """


def require_share(method: Reduction, keep: float) -> None:
    """Check a share.

    Raises:
        ValueError: If it is not above 0 and at most 1.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"{method!r}: keep is the share of entries that stay, above 0 and at most 1")


def require_count(method: Reduction, name: str, value: int, least: int, most: int | None = None) -> None:
    """Check a whole number.

    Raises:
        ValueError: If it is out of its range.
    """
    if int(value) != value or value < least or (most is not None and value > most):
        limit = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{method!r}: {name} must be a whole number, {limit}")


def require_matrices(method: Reduction, matrices: str) -> None:
    """Check names of matrices.

    Raises:
        ValueError: If they are not some of A, B, C, D, each once.
    """
    if not matrices or not set(matrices) <= set("ABCD") or len(set(matrices)) != len(matrices):
        raise ValueError(f'{method!r}: matrices are some of "ABCD", each once')
