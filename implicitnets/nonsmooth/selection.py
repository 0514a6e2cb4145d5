"""Selections: which element of the Clarke Jacobian a kinked operation has for its derivative."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .chooser import Chooser
from .mode import Kinked

__all__ = ["CLASSES", "Autograd", "Left", "Midpoint", "Random", "Right", "Selection", "Slope"]


class Selection(ABC):
    """The element of the Clarke Jacobian that a kinked operation has at its kink. A frozen value.

    Inside ``with selection.active():`` every kinked operation has the value that it always has, and at its kink
    the derivative (1 − s) · left + s · right, with the one-sided derivatives left and right and the share s of the
    selection, for derivatives of any order and any of torch's transforms. The conventions where there is no left:

    - maximum, minimum, max(a, b): s is the share of the first argument at a tie, as in max(a, b) = b + relu(a − b);
    - max, min, amax, amin over an axis, and max-pooling: s for the first of the tied entries and 1 − s for the last;
      ``Midpoint`` is the mean of all tied;
    - sort, topk: s for the order in which equals keep their places, 1 − s for that in which they are reversed.

    A selection for each operation gives a product of matrices that is an element of the conservative Jacobian of
    the whole (Bolte and Pauwels 2021); it is one of the Clarke Jacobian wherever the chain rule holds with equality.

    The Euclidean norm keeps autograd's element at 0, which is 0, the center of its subdifferential. What is not seen
    keeps autograd's derivative too: ``torch.where`` on conditions of one's own, rounding and comparisons, the
    spectral functions, the inside of an ``autograd.Function`` and of compiled code.
    """

    def active(self) -> AbstractContextManager[Any]:
        """The context in which kinked operations have the chosen derivatives.

        Raises:
            NotImplementedError: In it, by an operation that has kinks and can't be given a choice.
        """
        return Kinked(_Selecting(self))

    @abstractmethod
    def share(self, gap: Tensor) -> float | Tensor:
        """The share of the right piece, a number in [0, 1] or a tensor that broadcasts to ``gap``."""

    def weights(self, tied: Tensor, dtype: torch.dtype) -> Tensor:
        """Weights, of sum one, of the entries of the last axis of which a maximum is tied (bool)."""
        share, rank = self.share(tied.new_zeros((), dtype=dtype)), tied.cumsum(-1)
        first, last = tied & (rank == 1), tied & (rank == rank[..., -1:])
        return first.to(dtype) * share + last.to(dtype) * (1 - share)


class _Selecting(Chooser):
    """Asks a selection, at exact kinks."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection

    def hinge(self, name: str, gap: Tensor) -> tuple[Tensor, float | Tensor]:
        return gap == 0, self.selection.share(gap)

    def extreme(self, name: str, x: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
        tied = x == best[..., None]
        return tied.sum(-1) > 1, self.selection.weights(tied, x.dtype)

    def order(self, name: str, x: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        return first, last, self.selection.share(x.new_empty(()))

    def cone(self, name: str, distance: Tensor) -> None:
        pass


@dataclass(frozen=True)
class Autograd(Selection):
    """Torch's own: 0 for relu and abs, a half for maximum, the mean for amax, the first found for max-pooling, ..."""

    def active(self) -> AbstractContextManager[Any]:
        """A context that changes nothing."""
        return nullcontext()

    def share(self, gap: Tensor) -> float | Tensor:
        """Not a number: it differs from operation to operation.

        Raises:
            TypeError: Always.
        """
        raise TypeError("Autograd() has no share of its own: each operation of torch has another")


@dataclass(frozen=True)
class Left(Selection):
    """The derivative from the left: 0 for relu, −1 for abs; the last of tied entries."""

    def share(self, gap: Tensor) -> float | Tensor:
        """0."""
        return 0.0


@dataclass(frozen=True)
class Right(Selection):
    """The derivative from the right: 1 for relu and abs; the first of tied entries."""

    def share(self, gap: Tensor) -> float | Tensor:
        """1."""
        return 1.0


@dataclass(frozen=True)
class Midpoint(Selection):
    """The mean of both sides: ½ for relu, 0 for abs; the mean of tied entries."""

    def share(self, gap: Tensor) -> float | Tensor:
        """½."""
        return 0.5

    def weights(self, tied: Tensor, dtype: torch.dtype) -> Tensor:
        """The same for all tied entries."""
        return tied.to(dtype) / tied.sum(-1, keepdim=True).clamp_min(1)


@dataclass(frozen=True)
class Slope(Selection):
    """A given slope of relu: s of the right and 1 − s of the left derivative, so 2s − 1 for abs.

    Attributes:
        value: s, in [0, 1]: beyond, it would be no element of the Clarke Jacobian.

    Raises:
        ValueError: If it is not.
    """

    value: float

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise ValueError(
                f"Slope(value={self.value!r}): value must be in [0, 1], from the left derivative to the right one"
            )

    def share(self, gap: Tensor) -> float | Tensor:
        """The value."""
        return float(self.value)


@dataclass(frozen=True)
class Random(Selection):
    """A share s drawn from [0, 1], evenly, once for each place along the last axis; for ties, random weights.

    The draw is a function of the seed and of the length of that axis alone. So forward, backward and all orders of
    derivatives have one and the same element, and that of a sample is the same alone, in a batch, and under a vmap
    over the batch.

    Attributes:
        seed: At least 0. Another one, another element.

    Raises:
        ValueError: If the seed is negative.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"Random(seed={self.seed!r}): seed must be at least 0")

    def share(self, gap: Tensor) -> float | Tensor:
        """The draws for the last axis of ``gap``."""
        return self._draw(gap.shape[-1:]).to(gap.device, gap.dtype)

    def weights(self, tied: Tensor, dtype: torch.dtype) -> Tensor:
        """Random weights."""
        raw = tied.to(dtype) * self._draw(tied.shape[-1:]).to(tied.device, dtype)
        return raw / raw.sum(-1, keepdim=True).clamp_min(torch.finfo(raw.dtype).tiny)

    def _draw(self, shape: tuple[int, ...]) -> Tensor:  # by NumPy: torch refuses to draw under vmap
        return torch.as_tensor(np.random.default_rng((self.seed, *shape)).random(shape))


CLASSES: dict[str, type[Selection]] = {c.__name__: c for c in (Autograd, Left, Right, Midpoint, Slope, Random)}
"""All selections by name."""
