"""Constraints of the 2-norm: contraction, and monotonicity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..activations import Activation
from .base import Constrained, Constraint, require_contraction, require_positive, require_square

__all__ = ["Monotone", "SpectralNorm", "monotone", "spectral_norm"]


@dataclass(frozen=True, kw_only=True)
class SpectralNorm(Constraint):
    """‖A‖₂ ≤ kappa: the largest singular value is at most kappa, by multiplying A with a number.

    With γ kappa < 1, x = φ(Ax + b) has one solution for every b and every φ of Lipschitz constant γ in the 2-norm, and
    the Picard iteration converges to it. γ ≤ 1 for the component-wise activations in ``ACTIVATIONS``, and for maxima,
    sorting and softmax. The singular value is exact, O(n³), so the bound holds for every free matrix. One within
    the bound stays as it is.

    Attributes:
        kappa: The bound, positive.

    Raises:
        ValueError: If kappa is not positive.
    """

    kappa: float = 0.95

    scope: ClassVar[Literal["rows", "blocks", "whole"]] = "blocks"

    def __post_init__(self) -> None:
        require_positive(self, self.kappa)

    def __call__(self, weight: Tensor) -> Tensor:
        """The constrained matrix, of any shape."""
        norm: Tensor = torch.linalg.matrix_norm(weight, 2)
        return weight / (norm / self.kappa).clamp_min(1)

    def for_activation(self, activation: Activation) -> Constraint:  # noqa: D102
        require_contraction(self, self.kappa, activation.lipschitz(2), activation, "2-")
        return self


@dataclass(frozen=True, kw_only=True)
class Monotone(Constraint):
    """A = (1 − m) I − LᵀL + U − Uᵀ, with L the lower and U the strictly upper triangle of the free matrix.

    Every A whose symmetric part is at most (1 − m) I is of this form, and its norms may be large. With m > 0,
    x = φ(Ax + b) has one solution for every b and every component-wise φ with slopes in [0, 1] (Winston and Kolter
    2020, theorem 1 and proposition 1). The Picard iteration need not converge to it.

    Attributes:
        m: The margin, positive.

    Raises:
        ValueError: If m is not positive.
    """

    m: float = 1.0

    scope: ClassVar[Literal["rows", "blocks", "whole"]] = "blocks"

    def __post_init__(self) -> None:
        if not self.m > 0:
            raise ValueError(f"Monotone(m={self.m!r}): the margin m must be positive, e.g. 1.0")

    def __call__(self, weight: Tensor) -> Tensor:
        """The constrained matrix, square."""
        require_square(self, weight)
        lower, upper = weight.tril(), weight.triu(1)
        unit = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        return (1 - self.m) * unit - lower.T @ lower + upper - upper.T

    def for_activation(self, activation: Activation) -> Constraint:  # noqa: D102
        slopes = activation.slopes()
        if slopes is None or not 0 <= slopes[0] <= slopes[1] <= 1:
            raise ValueError(
                f"{self!r} makes a model well-posed where the activation is component-wise with slopes in [0, 1], and "
                f"of {activation!r} that is not known: use InfNorm(), SpectralNorm() or BlockNorm()"
            )
        return self

    def parametrization(self, weight: Tensor) -> Constrained:  # noqa: D102
        require_square(self, weight)
        return super().parametrization(weight)


def spectral_norm(module: nn.Module, name: str, kappa: float = 0.95) -> nn.Module:
    """Keep ‖module.name‖₂ ≤ kappa, by ``SpectralNorm``; returns the module.

    Unlike ``torch.nn.utils.parametrizations.spectral_norm``, which estimates the norm and sets it to 1, this is a bound
    that always holds and leaves smaller matrices as they are.

    Raises:
        ValueError: If kappa is not positive.
    """
    SpectralNorm(kappa=kappa).apply(module, name)
    return module


def monotone(module: nn.Module, name: str, m: float = 1.0) -> nn.Module:
    """Keep the symmetric part of module.name at most (1 − m) I, by ``Monotone``; returns the module.

    Raises:
        ValueError: If m is not positive, or the parameter not a square matrix.
    """
    Monotone(m=m).apply(module, name)
    return module
