"""A bounded infinity norm, and one that is bounded in other units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..activations import Activation
from ..balls import project_l1_ball
from .base import Constrained, Constraint, require_contraction, require_positive, require_square

__all__ = ["InfNorm", "PerronFrobenius", "inf_norm", "perron_frobenius"]


@dataclass(frozen=True, kw_only=True)
class InfNorm(Constraint):
    """‖A‖∞ ≤ kappa: the absolute values in each row sum to at most kappa.

    With γ kappa < 1, x = φ(Ax + b) has one solution for every b and every φ of Lipschitz constant γ in the infinity
    norm, and the Picard iteration converges to it (El Ghaoui et al. 2021, section 2). γ ≤ 1 for the component-wise
    activations in ``ACTIVATIONS``, and for maxima, sorting and softmax. Both methods leave rows within the bound as
    they are, and both are differentiable, zero rows included.

    Attributes:
        kappa: The bound, positive.
        method: "project": each row goes to the nearest point of the ℓ1 ball, which makes exact zeros (Duchi et al.
            2008); "rescale": it is multiplied by a number, and keeps its direction.

    Raises:
        ValueError: If kappa is not positive or the method is unknown.
    """

    kappa: float = 0.95
    method: str = "project"

    scope: ClassVar[Literal["rows", "blocks", "whole"]] = "rows"

    def __post_init__(self) -> None:
        require_positive(self, self.kappa)
        if self.method not in ("project", "rescale"):
            raise ValueError(f"InfNorm(method={self.method!r}): method must be 'project' or 'rescale'")

    def __call__(self, weight: Tensor) -> Tensor:
        """The constrained matrix, of the shape of ``weight``, whose last axis runs along a row."""
        if self.method == "rescale":
            return weight / (weight.abs().sum(-1, keepdim=True) / self.kappa).clamp_min(1)
        return project_l1_ball(weight, self.kappa)

    def for_activation(self, activation: Activation) -> Constraint:  # noqa: D102
        require_contraction(self, self.kappa, activation.lipschitz(math.inf), activation, "infinity")
        return self


def inf_norm(module: nn.Module, name: str, kappa: float = 0.95, *, method: str = "project") -> nn.Module:
    """Keep ‖module.name‖∞ ≤ kappa, by ``InfNorm``; returns the module.

    Examples:
        >>> layer = inf_norm(torch.nn.Linear(8, 8), "weight", 0.9)
        >>> bool(layer.weight.abs().sum(1).max() <= 0.9 + 1e-6)
        True

    Raises:
        ValueError: If kappa is not positive or the method is unknown.
    """
    InfNorm(kappa=kappa, method=method).apply(module, name)
    return module


@dataclass(frozen=True, kw_only=True)
class PerronFrobenius(Constraint):
    """A = S⁻¹A₀S with ‖A₀‖∞ ≤ kappa, so that ρ(|A|) ≤ kappa; S is diagonal, positive, and learned with A₀.

    For every A with ρ(|A|) < kappa there are such S and A₀, so this is all that the Perron-Frobenius condition allows:
    A may have rows of any size. With γ kappa < 1, x = φ(Ax + b) has one solution for every b and every component-wise φ
    of Lipschitz constant γ, and the Picard iteration converges to it (El Ghaoui et al. 2021, section 2).

    Attributes:
        kappa: The bound, positive.
        method: How A₀ is bounded, as for ``InfNorm``.

    Raises:
        ValueError: If kappa is not positive or the method is unknown.
    """

    kappa: float = 0.95
    method: str = "project"

    def __post_init__(self) -> None:
        require_positive(self, self.kappa)
        InfNorm(kappa=self.kappa, method=self.method)

    def __call__(self, weight: Tensor) -> Tensor:
        """A₀, which is the constrained matrix where S = I."""
        return InfNorm(kappa=self.kappa, method=self.method)(weight)

    def for_activation(self, activation: Activation) -> Constraint:  # noqa: D102
        if not activation.componentwise:
            raise ValueError(
                f"{self!r} is for component-wise activations, each entry in units of its own, and {activation!r} "
                "is not: use InfNorm() or BlockNorm()"
            )
        require_contraction(self, self.kappa, activation.lipschitz(math.inf), activation, "infinity")
        return self

    def parametrization(self, weight: Tensor) -> Constrained:  # noqa: D102
        require_square(self, weight)
        return _Rescaled(self, weight)


class _Rescaled(Constrained):
    """Holds log S."""

    def __init__(self, constraint: PerronFrobenius, weight: Tensor) -> None:
        super().__init__(constraint)
        self.log_scale = nn.Parameter(torch.zeros_like(weight[0]))

    def forward(self, weight: Tensor) -> Tensor:
        return self.constraint(weight) * (self.log_scale - self.log_scale[:, None]).exp()


def perron_frobenius(module: nn.Module, name: str, kappa: float = 0.95, *, method: str = "project") -> nn.Module:
    """Keep ρ(|module.name|) ≤ kappa, by ``PerronFrobenius``; returns the module.

    Raises:
        ValueError: If kappa is not positive, the method unknown, or the parameter not a square matrix.
    """
    PerronFrobenius(kappa=kappa, method=method).apply(module, name)
    return module
