"""Penalties |x|^q of single coordinates, whose proximal maps have closed forms in any diagonal metric."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Prox, Step, check_weight

__all__ = ["L0", "L1", "L2", "L12", "L23", "Binary", "ReverseHuber", "Shrinkage"]


@dataclass(frozen=True)
class Shrinkage(Prox):
    """weight Σ r(xᵢ), with r smallest at 0 and growing with |x|: each coordinate moves from v towards 0, never past it.

    Attributes:
        weight: Not negative.

    Raises:
        ValueError: If the weight is negative.
    """

    separable: ClassVar[bool] = True
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_weight(self, self.weight)

    def minimize(self, v: Tensor, step: Step) -> Tensor:
        """The minimizer of each coordinate."""
        return self.shrink(v, step * self.weight)

    def penalty(self, x: Tensor) -> Tensor:
        """The weighted sum."""
        return self.weight * self.size(x).sum()

    @abstractmethod
    def shrink(self, v: Tensor, t: Step) -> Tensor:
        """argmin_x t r(x) + (x − v)²/2 in each coordinate."""

    @abstractmethod
    def size(self, x: Tensor) -> Tensor:
        """r(x) in each coordinate."""


class L0(Shrinkage):
    """weight · (how many entries are not zero). The map is hard thresholding: v where |v| > √(2t), else 0.

    t = step · weight. Where |v| = √(2t), both v and 0 are minimizers; it returns 0.
    """

    def shrink(self, v: Tensor, t: Step) -> Tensor:
        """Hard thresholding."""
        return torch.where(v.abs() <= (2 * t) ** 0.5, 0.0, v)  # so written, NaN stays

    def size(self, x: Tensor) -> Tensor:
        """1 where x is not 0."""
        return (x != 0).to(x)


class L1(Shrinkage):
    """weight · Σ|xᵢ|. The map is soft thresholding: sign(v) max(|v| − t, 0), with t = step · weight."""

    def shrink(self, v: Tensor, t: Step) -> Tensor:
        """Soft thresholding."""
        return v.sign() * (v.abs() - t).clamp_min(0)

    def size(self, x: Tensor) -> Tensor:
        """|x|."""
        return x.abs()


class L2(Shrinkage):
    """weight/2 · Σ xᵢ², weight decay as a penalty. The map is v / (1 + t), with t = step · weight."""

    def shrink(self, v: Tensor, t: Step) -> Tensor:
        """Scaling."""
        return v / (1 + t)

    def size(self, x: Tensor) -> Tensor:
        """x²/2."""
        return x.square() / 2


@dataclass(frozen=True)
class ReverseHuber(Shrinkage):
    """weight Σ B(xᵢ/level), B(m) = |m| where |m| ≤ 1, else (m² + 1)/2: the perspective relaxation of L0 with a ridge.

    Per coordinate it is min over 0 < t ≤ 1 of weight/2 (m²/t + t), the convex hull of weight/2 (m² + 1[m ≠ 0]): a small
    entry pays as in L1, a large one as in L2 (Owen 2007). The map is soft thresholding by t/level
    up to |v| = level + t/level, and v / (1 + t/level²) beyond it, with t = step · weight.

    Attributes:
        level: Where an entry starts to count as large, positive.

    Raises:
        ValueError: If the weight is negative, or level not positive.
    """

    level: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.level < math.inf:
            raise ValueError(f"ReverseHuber(level={self.level!r}): level must be positive and finite")

    def shrink(self, v: Tensor, t: Step) -> Tensor:
        """Soft thresholding where that stays below the level, scaling beyond."""
        soft = v.sign() * (v.abs() - t / self.level).clamp_min(0)
        return torch.where(soft.abs() > self.level, v / (1 + t / self.level**2), soft)

    def size(self, x: Tensor) -> Tensor:
        """B(x/level)."""
        m = x.abs() / self.level
        return torch.where(m <= 1, m, (m.square() + 1) / 2)


class L12(Shrinkage):
    """weight · Σ|xᵢ|^½, not convex. The map is half thresholding (Xu, Chang, Xu and Zhang 2012).

    With t = step · weight it is 0 where |v| ≤ (3/2) t^⅔ (at equality there is a second minimizer), and else
    (2/3) v (1 + cos(2π/3 − (2/3) arccos((t/4) (|v|/3)^−³ᐟ²))).
    """

    def shrink(self, v: Tensor, t: Step) -> Tensor:
        """Half thresholding."""
        size, bound = v.abs(), t ** (2 / 3)
        # In this order nothing overflows: bound/size is at most 2/3 where it is used.
        angle = ((3 * bound / size) ** 1.5 / 4).clamp_max(1).arccos()
        large = (2 / 3) * v * (1 + (2 * math.pi / 3 - (2 / 3) * angle).cos())
        return torch.where(size <= 1.5 * bound, 0.0, large)

    def size(self, x: Tensor) -> Tensor:
        """√|x|."""
        return x.abs().sqrt()


class L23(Shrinkage):
    """weight · Σ|xᵢ|^⅔, not convex (Cao, Sun and Xu 2013).

    With t = step · weight the map is 0 where |v| ≤ 2 (2t/3)^¾ (at equality there is a second minimizer). Else it is
    sign(v) y³ with the largest root y of y⁴ − |v| y + 2t/3, by Ferrari's formula.
    """

    def shrink(self, v: Tensor, t: Step) -> Tensor:
        """The cube of a root of a quartic."""
        size, bound = v.abs(), (2 / 3 * t) ** 0.75
        # y = |v|^⅓ w with w⁴ − w + r = 0: free of scale, and a smaller r than eps² makes no difference.
        r = ((bound / size) ** (4 / 3)).clamp_min(torch.finfo(v.dtype).eps ** 2)
        cosh = ((27 / 16 * (3 * r) ** -1.5).clamp_min(1).arccosh() / 3).cosh()
        a = 2 / math.sqrt(3) * (3 * r) ** 0.25 * cosh.sqrt()
        w = (a + (2 / a - a.square()).clamp_min(0).sqrt()) / 2
        return torch.where(size <= 2 * bound, 0.0, v * w**3)

    def size(self, x: Tensor) -> Tensor:
        """|x|^⅔."""
        return x.abs() ** (2 / 3)


@dataclass(frozen=True)
class Binary(Prox):
    """Quantization to ±level: a penalty of the distance from the nearer of the two (Bai, Wang and Liberty 2019).

    R(x) = Σ r(|xᵢ| − level). Its proximal map is s + prox_r(v − s) with s = level · sign(v), in the *same* metric:
    the revision of ProxQuant by Yun, Lozano and Yang (2021). At v = 0 both signs are minimizers; it takes +.

    Attributes:
        distance: r with its weight: ``L1``, ``L12``, ``L23``, ``L0`` or ``L2``.
        level: Positive.

    Raises:
        TypeError: If distance is not one of those.
        ValueError: If level is not positive.
    """

    separable: ClassVar[bool] = True
    distance: Shrinkage = L1()
    level: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.distance, Shrinkage):
            raise TypeError(f"Binary(distance={self.distance!r}): write one of L0, L1, L12, L23, L2 with its weight")
        if not 0 < self.level < math.inf:
            raise ValueError(f"Binary(level={self.level!r}): level must be positive and finite: the values are ±level")

    def minimize(self, v: Tensor, step: Step) -> Tensor:
        """The minimizer of each coordinate."""
        nearest = torch.where(v < 0, -1.0, 1.0).to(v) * self.level
        return nearest + self.distance.minimize(v - nearest, step)

    def penalty(self, x: Tensor) -> Tensor:
        """The weighted sum of distances."""
        return self.distance.penalty(x.abs() - self.level)
