"""The interface of a proximal map."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

__all__ = ["Indicator", "Prox", "Step", "check_weight"]

Step: TypeAlias = "float | Tensor"
"""The step of a proximal map: a number, or one for each coordinate, which is a diagonal metric."""


@dataclass(frozen=True)
class Prox(ABC):
    """A penalty R on a tensor, with its proximal map. A value: frozen, comparable, printable.

    In the diagonal metric of the steps sᵢ the map is (Yun, Lozano and Yang 2021, equation of the update)::

        prox(v, s) = argmin_x  R(x) + Σᵢ (xᵢ − vᵢ)² / (2 sᵢ)
    """

    separable: ClassVar[bool] = False
    """Whether each coordinate is minimized by itself, so that several tensors can be taken for one."""

    def __call__(self, v: Tensor, step: Step = 1.0) -> Tensor:
        """The minimizer x, without a gradient.

        Args:
            v: Real floating point; what its axes mean is up to the penalty.
            step: Positive: a number, or a tensor that broadcasts to the shape of ``v``.

        Returns:
            Like ``v``. Where v is not a number, x is none either.

        Raises:
            TypeError: If v is not real floating point.
            ValueError: If the penalty is not for tensors of this shape, or step is not positive or does not broadcast.
        """
        self.check(v)
        if isinstance(step, Tensor):
            fits = step.dim() <= v.dim() and torch.broadcast_shapes(step.shape, v.shape) == v.shape
            if not fits:
                raise ValueError(f"step of shape {tuple(step.shape)} does not broadcast to v's {tuple(v.shape)}")
        if not (bool((step > 0).all()) if isinstance(step, Tensor) else step > 0):
            raise ValueError("step must be positive in every coordinate: write a learning rate, or rates / metric")
        with torch.no_grad():
            return self.minimize(v, step)

    @abstractmethod
    def minimize(self, v: Tensor, step: Step) -> Tensor:
        """The minimizer, of arguments that were checked."""

    @abstractmethod
    def penalty(self, x: Tensor) -> Tensor:
        """R(x), a scalar."""

    def check(self, v: Tensor) -> None:
        """Refuse tensors that the penalty is not for.

        Raises:
            TypeError: If v is not real floating point.
            ValueError: If it has a wrong shape.
        """
        if not v.is_floating_point():
            raise TypeError(f"{self!r} is for real floating point tensors, not {v.dtype}")


class Indicator(Prox):
    """A set as a penalty, 0 in it and infinite outside: the proximal map is the projection in the metric Σ xᵢ²/sᵢ."""

    @abstractmethod
    def contains(self, x: Tensor) -> Tensor:
        """Whether x is in the set, up to rounding: a boolean scalar."""

    def penalty(self, x: Tensor) -> Tensor:
        """0 or ∞."""
        return torch.where(self.contains(x), 0.0, torch.inf).to(x)


def check_weight(penalty: Prox, weight: float) -> None:
    """Refuse the weight of a penalty that has no minimum.

    Raises:
        ValueError: If it is negative or not finite.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"{penalty!r}: weight must be finite and not negative")
