"""The constraint of models whose activation acts on blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..activations import Activation, Blocks, as_activation, plain
from .base import Constraint, require_positive

__all__ = ["BlockNorm", "block_matrix", "block_norm"]


@dataclass(frozen=True, kw_only=True)
class BlockNorm(Constraint):
    """Σⱼ N(A)ᵢⱼ ≤ kappa for each block i, where N(A)ᵢⱼ = γᵢ ‖Aᵢⱼ‖ from the norm of block j to that of block i.

    The blocks are those of the activation. Block i has the norm p in which the constant γᵢ of its activation is known
    best: 2 for layer normalization, infinity for the others. With kappa < 1 the spectral radius of N(A) is below 1, so
    that x = φ(Ax + b) has one solution for every b, and the Picard iteration converges to it (El Ghaoui et al. 2021,
    section 2, on block Lipschitz activations). From the infinity norm to the 2-norm, ‖Aᵢⱼ‖ is replaced by an upper
    bound, ‖ |Aᵢⱼ| 1 ‖₂. The rows of a block beyond the bound are multiplied by a number.

    Attributes:
        kappa: The bound, positive.
        activation: φ; None is that of the model.

    Raises:
        ValueError: If kappa is not positive, or the activation unknown.
        TypeError: If the activation is not one.
    """

    kappa: float = 0.95
    activation: str | Activation | Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        require_positive(self, self.kappa)
        if self.activation is not None:
            object.__setattr__(self, "activation", plain(as_activation(self.activation)))

    def __call__(self, weight: Tensor) -> Tensor:
        """The constrained matrix, (rows, states).

        Raises:
            ValueError: If the matrix does not fit the activation, or there is none.
        """
        if self.activation is None:
            raise ValueError("BlockNorm() needs an activation, whose blocks it is about: BlockNorm(activation=...)")
        phi = as_activation(self.activation)
        sums = block_matrix(weight, phi).sum(1)
        factors = (sums / self.kappa).clamp_min(1)
        rows = torch.tensor([rows for _, rows in _blocks(phi, weight.shape[0])], device=weight.device)
        return weight / factors.repeat_interleave(rows)[:, None]

    def for_activation(self, activation: Activation) -> Constraint:  # noqa: D102
        if not self.kappa < 1 or any(math.isinf(_constant(phi)[1]) for phi, _ in _blocks(activation, None)):
            raise ValueError(
                f"{self!r} makes a model well-posed where kappa < 1 and every block of the activation has a Lipschitz "
                f"constant, and {activation!r} has none for all: use a smaller kappa, or constraint=None, with which "
                "nothing is promised"
            )
        return replace(self, activation=activation)


def block_matrix(weight: Tensor, activation: Any) -> Tensor:
    """N(A), (blocks, blocks), of a matrix (rows, states) and the activation that maps so many rows to so many states.

    Raises:
        ValueError: If they do not fit.
    """
    phi = as_activation(activation)
    if phi.states(weight.shape[0]) != weight.shape[1]:
        raise ValueError(f"a matrix of shape {tuple(weight.shape)} does not fit {phi!r}")
    blocks = _blocks(phi, weight.shape[0])
    constants = [_constant(part) for part, _ in blocks]
    columns = weight.split([part.states(rows) for part, rows in blocks], 1)
    parts = [column.split([rows for _, rows in blocks], 0) for column in columns]
    return torch.stack(
        [
            torch.stack([gamma * _norm(parts[j][i], constants[j][0], p) for j in range(len(blocks))])
            for i, (p, gamma) in enumerate(constants)
        ]
    )


def _blocks(phi: Activation, rows: int | None) -> list[tuple[Activation, int]]:
    return phi.parts if isinstance(phi, Blocks) else [(phi, rows or 0)]


def _constant(phi: Activation) -> tuple[float, float]:
    """The norm in which the Lipschitz constant is least, and that."""
    return min(((p, phi.lipschitz(p)) for p in (math.inf, 2)), key=lambda pair: pair[1])


def _norm(part: Tensor, before: float, after: float) -> Tensor:
    """A bound of ‖part‖ from the norm ``before`` to the norm ``after``, each 2 or infinity."""
    if before == after == 2:
        norm: Tensor = torch.linalg.matrix_norm(part, 2)
        return norm
    rows: Tensor = torch.linalg.vector_norm(part, 2 if before == 2 else 1, dim=1)
    bound: Tensor = torch.linalg.vector_norm(rows, after)
    return bound


def block_norm(
    module: nn.Module, name: str, activation: str | Activation | Callable[[Tensor], Tensor], kappa: float = 0.95
) -> nn.Module:
    """Keep the block norms of module.name below kappa for that activation, by ``BlockNorm``; returns the module.

    Raises:
        ValueError: If kappa is not positive, or the activation unknown or not for such a matrix.
        TypeError: If the activation is not one.
    """
    BlockNorm(kappa=kappa, activation=activation).apply(module, name)
    return module
