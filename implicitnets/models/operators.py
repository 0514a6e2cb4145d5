"""Dense W, as solvers by splitting see it: its resolvent, and step sizes with which they converge."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ..backward.transforms import plain
from ..solvers import Operator
from .split import LinearPart

__all__ = ["DenseLinear", "DenseOperator", "NonEuclideanOperator", "dense"]


class DenseOperator:
    """A matrix W with I − W ≥ mI in the Euclidean norm, or in that of ``weights``, as solvers by splitting see it."""

    def __init__(self, W: Tensor, margin: float, weights: Tensor | None = None) -> None:
        """Hold W, (n, n), m and the diagonal of the Λ with Λ(I − W) + (I − W)ᵀΛ ≥ 2mΛ, or None for I."""
        self.W, self.margin, self.weights = W, margin, weights
        self._inverses: dict[float, Tensor] = {}

    def __call__(self, u: Tensor) -> Tensor:
        """Wu in each row."""
        return u @ self.W.T

    def resolvent(self, v: Tensor, step: float) -> Tensor:
        """(I + a(I − W))⁻¹ v in each row; the inverse is kept."""
        return v @ self._inverse(step).T

    @cached_property
    def T(self) -> DenseOperator:
        """Wᵀ, which has the same margin in the norm of the inverse weights."""
        return _Transposed(self)

    @cached_property
    def lipschitz(self) -> float:
        """L = ‖I − W‖₂ in the norm of the weights."""
        return float(torch.linalg.matrix_norm(self._balanced(), 2))

    @property
    def forward_step(self) -> float:
        """m/L²."""
        return self.margin / self.lipschitz**2

    @property
    def reflected_step(self) -> float:
        """1.2 / the root mean square of the singular values of I − W: any step converges, this one is about fastest."""
        return 1.2 * math.sqrt(len(self.W)) / float(torch.linalg.matrix_norm(self._balanced()))

    def _balanced(self) -> Tensor:
        """The matrix that is similar to I − W and has its margin in the Euclidean norm."""
        F = torch.eye(len(self.W), dtype=self.W.dtype, device=self.W.device) - self.W
        if self.weights is None:
            return F
        root = self.weights.sqrt()
        return root[:, None] * F / root

    def _inverse(self, step: float) -> Tensor:
        if step not in self._inverses:
            identity = torch.eye(len(self.W), dtype=self.W.dtype, device=self.W.device)
            self._inverses[step] = torch.linalg.inv((1 + step) * identity - step * self.W)
        return self._inverses[step]


class NonEuclideanOperator(DenseOperator):
    """A matrix W with μ(W) < 1, the logarithmic norm of a weighted ‖·‖∞: there all steps are 1/(1 − min Wᵢᵢ)."""

    def __init__(self, W: Tensor) -> None:
        """Hold W, (n, n)."""
        super().__init__(W, margin=0.0)

    @property
    def forward_step(self) -> float:
        """1/(1 − min Wᵢᵢ), with which the iterations contract by 1 − a(1 − μ), and (1 − a(1 − μ))/(1 + a(1 − μ))."""
        return 1 / (1 - float(self.W.diagonal().min()))

    reflected_step = forward_step


class _Transposed(DenseOperator):
    """The transpose of an operator, with its factorizations and steps."""

    def __init__(self, of: DenseOperator) -> None:
        super().__init__(of.W.T, of.margin)
        self.of = of

    @property
    def T(self) -> DenseOperator:
        return self.of

    @property
    def forward_step(self) -> float:
        return self.of.forward_step

    @property
    def reflected_step(self) -> float:
        return self.of.reflected_step

    def _inverse(self, step: float) -> Tensor:
        return self.of._inverse(step).T


class DenseLinear:
    """z -> Wz + c for a matrix W; ``operator`` makes of a plain W what solvers see."""

    def __init__(self, W: Tensor, operator: Callable[[Tensor], Operator]) -> None:
        self.transposed, self.kind = W.T, operator

    def __call__(self, z: Tensor, c: Tensor) -> Tensor:
        """Wz + c."""
        return torch.addmm(c, z, self.transposed)

    def operator(self, like: Tensor) -> Operator:
        """W without derivatives."""
        W = plain(self.transposed).T
        return self.kind(W.to(torch.promote_types(W.dtype, torch.float32)))


def dense(W: Tensor, *, margin: float) -> LinearPart:
    """The linear part of a map φ(Wz + c), for a matrix W with I − (W + Wᵀ)/2 ≥ margin · I.

    Raises:
        ValueError: If W is not square or the margin not positive.
    """
    if W.dim() != 2 or W.shape[0] != W.shape[1]:
        raise ValueError(f"W has shape {tuple(W.shape)}: it must be a square matrix")
    if not margin > 0:
        raise ValueError(f"margin={margin!r} must be positive: then I − W is strongly monotone")
    return DenseLinear(W, lambda W: DenseOperator(W, margin))
