"""Fenchel-Young losses: how far a state is from an activation, convex in the state and in the pre-activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..activations import ACTIVATIONS, Activation, Componentwise, Softmax, as_activation, plain
from ..balls import simplex_threshold
from .method import Unsupported

__all__ = ["FenchelYoung"]

LEAK = 0.01
"""The slope of leaky_relu below zero."""


@dataclass(frozen=True)
class _Pair:
    """Φ with Φ′ = φ, its conjugate Φ* inside the domain, and the domain [low, high] of Φ*."""

    potential: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]
    low: float = -math.inf
    high: float = math.inf


def _softplus(h: Tensor) -> Tensor:
    return torch.logaddexp(h, h.new_zeros(()))  # functional.softplus is linear from 20 on


def _half_square(x: Tensor) -> Tensor:
    return x.square() / 2


def _log_cosh(h: Tensor) -> Tensor:
    return _softplus(2 * h) - h - math.log(2)


def _elu_conjugate(x: Tensor) -> Tensor:
    return torch.where(x > 0, _half_square(x), -torch.special.entr(1 + x.clamp_max(0)) - x)


PAIRS = {
    "relu": _Pair(lambda h: _half_square(h.relu()), _half_square, low=0.0),
    "leaky_relu": _Pair(
        lambda h: torch.where(h > 0, _half_square(h), LEAK * _half_square(h)),
        lambda x: torch.where(x > 0, _half_square(x), _half_square(x) / LEAK),
    ),
    "tanh": _Pair(_log_cosh, lambda x: -(torch.special.entr(1 + x) + torch.special.entr(1 - x)) / 2, -1.0, 1.0),
    "sigmoid": _Pair(_softplus, lambda x: -torch.special.entr(x) - torch.special.entr(1 - x), 0.0, 1.0),
    "elu": _Pair(
        lambda h: torch.where(h > 0, _half_square(h), torch.expm1(h.clamp_max(0)) - h), _elu_conjugate, low=-1.0
    ),
    "hardtanh": _Pair(
        lambda h: torch.where(h.abs() <= 1, _half_square(h), h.abs() - 0.5), _half_square, low=-1.0, high=1.0
    ),
    "identity": _Pair(_half_square, _half_square),
}
"""By activation. Of those in ``ACTIVATIONS`` only softplus is missing, whose potential is a dilogarithm."""


@dataclass(frozen=True)
class FenchelYoung:
    """F(x, h) = Φ*(x) + Φ(h) − ⟨x, h⟩ with ∇Φ = φ: at least 0, and 0 exactly where x = φ(h).

    Convex in x, and in h, with the gradients φ⁻¹(x) − h and φ(h) − x, in which the slope of φ does not occur. It is the
    loss of Blondel, Martins and Niculae (2020, section 3), and known in training by other names: the Fenchel divergence
    of El Ghaoui et al. (2021, on training; Gu, Askari and El Ghaoui 2020), the penalty of LPOM, f(x) + g(h) + ½(x − h)²
    with f = ∫(φ⁻¹(y) − y) and g = ∫(φ(y) − y) (Li, Fang and Lin 2019), and the Bregman penalty D(h, φ⁻¹(x)) of Φ (Wang
    and Benning 2023).

    Example:
        >>> F = FenchelYoung("relu")
        >>> F(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([2.0, -3.0, -1.0]))
        tensor([0.0000, 0.0000, 1.5000])

    Attributes:
        activation: φ: "relu", "leaky_relu", "tanh", "sigmoid", "elu", "hardtanh", "identity", or ``Softmax(size=...)``.

    Raises:
        Unsupported: If it is another activation.
    """

    activation: str | Activation

    def __post_init__(self) -> None:
        phi = as_activation(self.activation)
        known = isinstance(phi, Softmax) or (isinstance(phi, Componentwise) and ACTIVATIONS.get(phi.name) == phi)
        if not known or plain(phi) == "softplus":
            raise Unsupported(
                f"activation={self.activation!r} has no Fenchel-Young loss here. There are: {', '.join(PAIRS)}, "
                "and Softmax(size=...)"
            )
        object.__setattr__(self, "activation", plain(phi))

    def __call__(self, x: Tensor, h: Tensor) -> Tensor:
        """F(x, h) for x and h of shape (..., states): (..., states), or (..., groups) for softmax.

        Infinite where x is outside the domain.
        """
        value = self.conjugate(x) + self.potential(h) - self._per_unit(x * h)
        return value + (-value.detach()).clamp_min(0)  # no rounding error below zero, and the same derivatives

    def potential(self, h: Tensor) -> Tensor:
        """Φ(h), of one value per unit: a state, or a group of them for softmax."""
        if isinstance(self.activation, Softmax):
            return self._groups(h).logsumexp(-1)
        return self._pair.potential(h)

    def conjugate(self, x: Tensor) -> Tensor:
        """Φ*(x), of one value per unit, infinite outside the domain."""
        if isinstance(self.activation, Softmax):
            groups = self._groups(x)
            rounding = torch.finfo(x.dtype).eps * groups.shape[-1]
            outside = (groups.sum(-1) - 1).abs() > 4 * rounding
            return torch.where(outside, torch.inf, -torch.special.entr(groups).sum(-1))
        pair = self._pair
        inside = (x >= pair.low) & (x <= pair.high)
        return torch.where(inside, pair.conjugate(x.clamp(pair.low, pair.high)), torch.inf)

    def project(self, x: Tensor) -> Tensor:
        """The point of the domain of Φ* that is nearest to x: entries are clipped, groups projected on the simplex."""
        if not isinstance(self.activation, Softmax):
            return x.clamp(self._pair.low, self._pair.high)
        groups = self._groups(x)
        return (groups - simplex_threshold(groups, 1)).clamp_min(0).flatten(-2)

    def apply(self, h: Tensor) -> Tensor:
        """φ(h), the x where F is 0."""
        x: Tensor = as_activation(self.activation)(h)
        return x

    def spread(self, values: Tensor) -> Tensor:
        """One value per unit as one per state."""
        return values.repeat_interleave(self.size, -1)

    @property
    def size(self) -> int:
        """States of a unit: 1, or the size of a group for softmax."""
        return self.activation.size if isinstance(self.activation, Softmax) else 1

    @property
    def _pair(self) -> _Pair:
        assert isinstance(self.activation, str)
        return PAIRS[self.activation]

    def _groups(self, z: Tensor) -> Tensor:
        groups: Tensor = z.unflatten(-1, (-1, self.size))
        return groups

    def _per_unit(self, z: Tensor) -> Tensor:
        return z if self.size == 1 else self._groups(z).sum(-1)
