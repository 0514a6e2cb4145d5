"""W made of periodic convolutions on one or several resolutions, whose resolvent is exact in Fourier space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..backward.transforms import plain
from ..linalg import inverse
from ..pytree import leaves
from ..solvers import Operator

__all__ = ["PeriodicLinear", "convolve", "join", "transpose", "units"]


def convolve(z: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    """Periodic convolution (torch's: cross-correlation) with an odd kernel, (out, in, k, k)."""
    pad = kernel.shape[-1] // 2
    return functional.conv2d(functional.pad(z, (pad,) * 4, mode="circular"), kernel, stride=stride)


def transpose(y: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    """The transpose of ``convolve``."""
    if stride > 1:
        spread = y.new_zeros(*y.shape[:2], y.shape[2] * stride, y.shape[3] * stride)
        spread[:, :, ::stride, ::stride] = y
        y = spread
    return convolve(y, kernel.flip(2, 3).transpose(0, 1))


def join(tiers: Sequence[Tensor]) -> Tensor:
    """All tiers of a sample in one row."""
    return torch.cat([tier.flatten(1) for tier in tiers], 1)


def units(like: Tensor) -> Tensor:
    """A batch of tensors ``like`` this, each with a one in another place."""
    whole: Tensor = torch.eye(like.numel()).to(like).unflatten(1, like.shape)
    return whole


@dataclass(frozen=True)
class PeriodicLinear:
    """W = (1 − m) I − AᵀA + B − Bᵀ on a state of T tiers, tier i at half the resolution of tier i − 1.

    Attributes:
        A: Kernels of the diagonal blocks of A, (cᵢ, cᵢ, k, k).
        down: Those of the blocks below the diagonal, from tier i to i + 1, (cᵢ₊₁, cᵢ, k, k), with stride 2.
        B: Kernels of the blocks of B, which is block-diagonal.
        m: The margin.
    """

    A: tuple[Tensor, ...]
    down: tuple[Tensor, ...]
    B: tuple[Tensor, ...]
    m: float

    def __call__(self, z: Any, c: Any) -> Any:
        """Wz + c, for a tensor (one tier) or a tuple of tensors, (batch, cᵢ, hᵢ, wᵢ)."""
        out = [a + b for a, b in zip(self.product(leaves(z)), leaves(c), strict=True)]
        return out[0] if isinstance(z, Tensor) else tuple(out)

    def product(self, z: Sequence[Tensor]) -> list[Tensor]:
        """Wz, by tier."""
        y = [convolve(tier, kernel) for tier, kernel in zip(z, self.A, strict=True)]
        for i, kernel in enumerate(self.down):
            y[i + 1] = y[i + 1] + convolve(z[i], kernel, stride=2)
        out = []
        for i, tier in enumerate(z):
            pulled = transpose(y[i], self.A[i])
            if i < len(self.down):
                pulled = pulled + transpose(y[i + 1], self.down[i], stride=2)
            skew = self.B[i] - self.B[i].flip(2, 3).transpose(0, 1)
            out.append((1 - self.m) * tier - pulled + convolve(tier, skew))
        return out

    @property
    def T(self) -> PeriodicLinear:
        """Wᵀ."""
        return replace(self, B=tuple(-kernel for kernel in self.B))

    def matrix(self, like: Sequence[Tensor]) -> Tensor:
        """W as a matrix, for states in tiers ``like`` these, one sample of each."""
        sizes = [tier.numel() for tier in like]
        eye = torch.eye(sum(sizes)).to(like[0]).split(sizes, 1)
        return join(self.product([part.unflatten(1, tier.shape[1:]) for part, tier in zip(eye, like, strict=True)])).T

    def operator(self, like: Any) -> PeriodicOperator:
        """W without derivatives, for states ``like`` this."""
        wide = torch.promote_types(self.A[0].dtype, torch.float32)
        A, down, B = (tuple(plain(t).to(wide) for t in group) for group in (self.A, self.down, self.B))
        shapes = [tuple(t.shape[1:]) for t in leaves(like)]
        return PeriodicOperator(PeriodicLinear(A=A, down=down, B=B, m=self.m), shapes)


class PeriodicOperator:
    """W as solvers by splitting see it, on matrices with a state in each row.

    A shift by one place on the coarsest grid commutes with W. So, with the places of the finer grids as further
    channels of the coarsest, W is one periodic convolution, which the Fourier transform takes apart into a matrix for
    each frequency.
    """

    def __init__(self, linear: PeriodicLinear, shapes: Sequence[tuple[int, ...]]) -> None:
        self.linear, self.shapes = linear, list(shapes)
        self.sizes = [c * h * w for c, h, w in self.shapes]
        self.grid = self.shapes[-1][1:]
        self.factors = [h // self.grid[0] for _, h, _ in self.shapes]
        self._inverses: dict[float, Tensor] = {}

    def __call__(self, u: Tensor) -> Tensor:
        """Wu in each row."""
        return join(self.linear.product(self._tiers(u)))

    def resolvent(self, v: Tensor, step: float) -> Tensor:
        """(I + a(I − W))⁻¹ v in each row; the inverses of all frequencies are kept."""
        waves = torch.fft.rfft2(self._coarse(self._tiers(v)))  # (rows, channels, frequencies)
        solved = torch.einsum("hwij,bjhw->bihw", self._inverse(step), waves)
        return self._rows(torch.fft.irfft2(solved, s=self.grid))

    @cached_property
    def T(self) -> Operator:
        """Wᵀ."""
        return _Transposed(self)

    @cached_property
    def symbol(self) -> Tensor:
        """The matrices of I − W, (frequencies, channels, channels): transforms of its answers to unit impulses."""
        transforms: Tensor = torch.fft.rfft2(self._answers)
        return transforms.permute(2, 3, 1, 0)

    @property
    def forward_step(self) -> float:
        """m/L² with L ≤ max √(‖F‖₁ ‖F‖∞) over the matrices F of I − W."""
        size = self.symbol.abs()
        bound = (size.sum(-1).amax(-1) * size.sum(-2).amax(-1)).max()
        return self.linear.m / float(bound)

    @property
    def reflected_step(self) -> float:
        """1.2 / the root mean square of the singular values of I − W, as for dense W."""
        return 1.2 / float(self._answers.square().sum((1, 2, 3)).mean().sqrt())

    @cached_property
    def _answers(self) -> Tensor:
        """(I − W) δ for a unit impulse δ in each channel of the coarsest grid, (channels, channels, h, w)."""
        channels = sum(c * k**2 for (c, _, _), k in zip(self.shapes, self.factors, strict=True))
        impulses = self.linear.A[0].new_zeros(channels, channels, *self.grid)
        impulses[range(channels), range(channels), 0, 0] = 1
        return impulses - self._coarse(self._tiers(self(self._rows(impulses))))

    def _inverse(self, step: float) -> Tensor:
        if step not in self._inverses:
            identity = torch.eye(self.symbol.shape[-1], dtype=self.symbol.dtype, device=self.symbol.device)
            matrices = identity + step * self.symbol
            self._inverses[step] = inverse(matrices.flatten(0, 1)).unflatten(0, matrices.shape[:2])
        return self._inverses[step]

    def _tiers(self, rows: Tensor) -> list[Tensor]:
        parts = torch.split(rows, self.sizes, 1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _coarse(self, tiers: Sequence[Tensor]) -> Tensor:
        """All tiers as channels of the coarsest grid, (rows, channels, h, w)."""
        return torch.cat([functional.pixel_unshuffle(t, k) for t, k in zip(tiers, self.factors, strict=True)], 1)

    def _rows(self, coarse: Tensor) -> Tensor:
        """The way back, to rows."""
        sizes = [c * k**2 for (c, _, _), k in zip(self.shapes, self.factors, strict=True)]
        parts = torch.split(coarse, sizes, 1)
        return torch.cat(
            [functional.pixel_shuffle(p, k).flatten(1) for p, k in zip(parts, self.factors, strict=True)], 1
        )


class _Transposed(PeriodicOperator):
    """The transpose of an operator, with its factorizations and steps."""

    def __init__(self, of: PeriodicOperator) -> None:
        super().__init__(of.linear.T, of.shapes)
        self.of = of

    @property
    def T(self) -> Operator:
        return self.of

    @property
    def symbol(self) -> Tensor:
        return self.of.symbol.mH

    @property
    def _answers(self) -> Tensor:
        return self.of._answers

    def _inverse(self, step: float) -> Tensor:
        return self.of._inverse(step).mH
