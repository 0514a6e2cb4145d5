"""What kinked operations ask, and the three ways in which they have kinks."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["Chooser", "extreme", "hinge", "order"]


class Chooser(ABC):
    """Decides the derivative at kinks. It is asked once for every kink of every operation, in their order."""

    @abstractmethod
    def hinge(self, name: str, gap: Tensor) -> tuple[Tensor, float | Tensor]:
        """Of two pieces that meet where ``gap`` is zero: where to decide (bool), and the share of the right one there.

        The right piece is the one that is active where the gap is positive.
        """

    @abstractmethod
    def extreme(self, name: str, x: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
        """Of a maximum or minimum: where to decide (bool, like ``best``), and convex weights of the entries.

        ``best``, of shape (...), is that of ``x``, (..., k), along its last axis.
        """

    @abstractmethod
    def order(self, name: str, x: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        """Of an ascending sort along the last axis: two permutations and the share of the first.

        ``first`` is the stable permutation, ``last`` the one in which equals stand in reverse.
        """

    @abstractmethod
    def cone(self, name: str, distance: Tensor) -> None:
        """Take note of a Euclidean norm, which has its kink where ``distance`` is zero.

        Autograd takes 0 there, the center of the subdifferential, and so it stays.
        """


def hinge(chooser: Chooser, name: str, value: Tensor, gap: Tensor, *, right: Tensor, left: Tensor) -> Tensor:
    """``value``, whose derivative where gap = 0 is the chosen mean of those of the two pieces."""
    where, share = chooser.hinge(name, gap)
    return torch.where(where, torch.lerp(left, right, share), value)


def extreme(chooser: Chooser, name: str, value: Tensor, x: Tensor) -> Tensor:
    """``value``, the maximum or minimum along the last axis of x, with the chosen derivative at ties."""
    where, weights = chooser.extreme(name, x, value)
    best = value.detach()
    distance = torch.where((weights > 0) & best.isfinite()[..., None], x - best[..., None], 0.0)
    return torch.where(where, best + (distance * weights).sum(-1), value)


def order(chooser: Chooser, name: str, x: Tensor, *, descending: bool) -> Tensor:
    """X sorted along its last axis, with the chosen derivative at ties."""
    size = x.shape[-1]
    first = torch.argsort(x, dim=-1, descending=descending, stable=True)
    last = size - 1 - torch.argsort(x.flip(-1), dim=-1, descending=descending, stable=True)
    first, last, share = chooser.order(name, -x if descending else x, first, last)
    one, other = x.gather(-1, first), x.gather(-1, last)
    return torch.where((first == last) | ~one.isfinite(), one, torch.lerp(other, one, share))
