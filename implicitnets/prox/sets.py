"""Sets as penalties: projections, exact in every diagonal metric."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..balls import project_l1_ball, simplex_threshold
from .base import Indicator, Step

__all__ = ["Box", "InfNormBall", "NonNegative", "Simplex"]


@dataclass(frozen=True)
class Box(Indicator):
    """low ≤ xᵢ ≤ high. The projection is the same in every diagonal metric.

    Attributes:
        low: The least value, or None if there is none.
        high: The largest, or None.

    Raises:
        ValueError: If low is above high, or there is no bound.
    """

    separable: ClassVar[bool] = True
    low: float | None = 0.0
    high: float | None = 1.0

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if not bounds or not all(map(math.isfinite, bounds)) or bounds != sorted(bounds):
            raise ValueError(f"{self!r}: low must not be above high, both finite, or one of them None for no bound")

    def minimize(self, v: Tensor, step: Step) -> Tensor:
        """The projection."""
        return v.clamp(self.low, self.high)

    def contains(self, x: Tensor) -> Tensor:
        """Whether each entry is between the bounds."""
        return (x.clamp(self.low, self.high) == x).all()


@dataclass(frozen=True)
class NonNegative(Indicator):
    """xᵢ ≥ 0. The projection is max(v, 0) in every diagonal metric."""

    separable: ClassVar[bool] = True

    def minimize(self, v: Tensor, step: Step) -> Tensor:
        """The projection."""
        return v.clamp_min(0)

    def contains(self, x: Tensor) -> Tensor:
        """Whether no entry is negative."""
        return (x >= 0).all()


class _Rows(Indicator):
    """A set of matrices whose rows, along the last axis, are each in a set."""

    def check(self, v: Tensor) -> None:
        super().check(v)
        if v.dim() == 0:
            raise ValueError(f"{self!r} is a set of rows along the last axis: a number has none")


@dataclass(frozen=True)
class InfNormBall(_Rows):
    """‖x‖∞ ≤ kappa: the absolute values in each row, along the last axis, sum to at most kappa.

    With kappa < 1 an implicit model with this matrix is well-posed (El Ghaoui et al. 2021, section 2): here that is a
    proximal map, and the iterates have exact zeros. In the metric of the steps sᵢ a row outside goes to
    sign(vᵢ) max(|vᵢ| − t sᵢ, 0), with t such that the sum is kappa, found by sorting.

    Attributes:
        kappa: Positive.

    Raises:
        ValueError: If kappa is not positive.
    """

    kappa: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.kappa < math.inf:
            raise ValueError(f"{self!r}: kappa must be positive and finite, and below 1 for well-posedness")

    def minimize(self, v: Tensor, step: Step) -> Tensor:
        """The projection."""
        return project_l1_ball(v, self.kappa, _scale(v, step))

    def contains(self, x: Tensor) -> Tensor:
        """Whether ‖x‖∞ is at most kappa, up to rounding."""
        return (x.abs().sum(-1) <= self.kappa * (1 + _rounding(x))).all()


@dataclass(frozen=True)
class Simplex(_Rows):
    """Each row, along the last axis, is not negative and sums to ``total``: probabilities, if that is 1.

    In the metric of the steps sᵢ the projection is max(vᵢ − t sᵢ, 0), with t such that the sum is right.

    Attributes:
        total: Positive.

    Raises:
        ValueError: If total is not positive.
    """

    total: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.total < math.inf:
            raise ValueError(f"{self!r}: total must be positive and finite")

    def minimize(self, v: Tensor, step: Step) -> Tensor:
        """The projection."""
        scale = _scale(v, step)
        threshold = simplex_threshold(v, self.total, scale)
        return (v - (threshold if scale is None else threshold * scale)).clamp_min(0)

    def contains(self, x: Tensor) -> Tensor:
        """Whether each row is on the simplex, up to rounding."""
        off = (x.sum(-1) - self.total).abs()
        return (x >= 0).all() & (off <= self.total * _rounding(x)).all()


def _scale(v: Tensor, step: Step) -> Tensor | None:
    """The steps as a tensor like v, or None where all are the same: a projection is the same for all of them."""
    return step.to(v).expand_as(v) if isinstance(step, Tensor) else None


def _rounding(x: Tensor) -> float:
    """A bound of the relative error of the sum of a projected row."""
    return 4 * x.shape[-1] * torch.finfo(x.dtype).eps
