"""The multiscale deep equilibrium model: several resolutions, one equilibrium."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backward import Backward, Implicit
from ..solvers import Solver
from .cells import SOLVER, ConvCell
from .config import Configurable
from .convolutional import check_images, injection
from .deq import Equilibrium
from .normalized import check_sizes, convolution, group_norm
from .starts import Start

__all__ = ["MultiscaleCell", "MultiscaleDEQ"]

WEAK = 0.1
"""Gain at first of all norms save those on the way of the input, so that it rules: then the cell is a contraction."""


class MultiscaleCell(Configurable):
    """rᵢ = Bᵢ(zᵢ, uᵢ), zᵢ ↦ N(Kᵢ relu(Σⱼ Tᵢⱼ(rⱼ))), with u₁ = u and the other uᵢ = 0.

    Bᵢ is the residual block of ``ConvCell``. Tᵢⱼ is the identity for i = j; for a lower resolution i > j, i − j times a
    3×3 convolution of stride 2 and a norm, with relu in between; for a higher one a 1×1 convolution, a norm and
    upsampling to the next neighbor. Kᵢ is a 1×1 convolution. See ``MultiscaleDEQ``.

    Args:
        channels: Channels at each resolution, from the highest to the lowest.
        groups: Groups of channels that are normalized together.

    Raises:
        ValueError: If there is no resolution, a size is not positive, or groups does not divide the channels.
    """

    def __init__(self, channels: Sequence[int], *, groups: int = 4) -> None:
        super().__init__()
        channels = tuple(channels)
        if not channels:
            raise ValueError("MultiscaleCell(channels=()): give the channels of each resolution, e.g. (16, 32)")
        for size in channels:
            check_sizes(self, groups, channels=size)
        self.channels, self.groups = channels, groups
        blocks = [ConvCell(size, groups=groups) for size in channels]
        self.blocks = nn.ModuleList(blocks)
        for norms in [(block.norm2, block.norm3) for block in blocks[1:]]:
            for norm in norms:
                nn.init.constant_(norm.weight, WEAK)
        scales = range(len(channels))
        self.down = nn.ModuleDict({f"{j}to{i}": self._down(j, i) for i in scales for j in scales if i > j})
        self.up = nn.ModuleDict({f"{j}to{i}": self._up(j, i) for i in scales for j in scales if i < j})
        self.fuse = nn.ModuleList(nn.Sequential(convolution(c, c, 1), group_norm(groups, c, WEAK)) for c in channels)

    def _down(self, j: int, i: int) -> nn.Sequential:
        """From resolution j to the lower resolution i."""
        layers: list[nn.Module] = []
        for step in range(j + 1, i + 1):
            outputs = self.channels[i] if step == i else self.channels[j]
            layers += [convolution(self.channels[j], outputs, stride=2), group_norm(self.groups, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def _up(self, j: int, i: int) -> nn.Sequential:
        """From resolution j to the channels of the higher resolution i."""
        to = self.channels[i]
        return nn.Sequential(convolution(self.channels[j], to, 1), group_norm(self.groups, to, WEAK))

    def forward(self, z: tuple[Tensor, ...], u: Tensor) -> tuple[Tensor, ...]:
        """The next states, one a resolution."""
        r = [block(state, u if i == 0 else None) for i, (block, state) in enumerate(zip(self.blocks, z, strict=True))]
        return tuple(
            fuse(torch.relu(torch.stack([self._moved(r[j], j, i, r[i]) for j in range(len(r))]).sum(0)))
            for i, fuse in enumerate(self.fuse)
        )

    def _moved(self, state: Tensor, j: int, i: int, like: Tensor) -> Tensor:
        """Tᵢⱼ(state)."""
        if i == j:
            return state
        if i > j:
            moved: Tensor = self.down[f"{j}to{i}"](state)
            return moved
        return functional.interpolate(self.up[f"{j}to{i}"](state), size=like.shape[-2:], mode="nearest")

    def extra_repr(self) -> str:
        """Sizes."""
        return f"channels={self.channels}, groups={self.groups}"


class MultiscaleDEQ(Equilibrium):
    """The joint equilibrium (z₁, …, zₙ) of a residual block at each of n resolutions, and their fusion.

    The multiscale deep equilibrium model MDEQ (Bai, Koltun and Kolter 2020, section 3 and figure 2): rᵢ = Bᵢ(zᵢ, uᵢ)
    and zᵢ = N(Kᵢ relu(Σⱼ Tᵢⱼ(rⱼ))), as ``MultiscaleCell`` says in full. The input is injected at the highest
    resolution alone, u = N(K x), and each resolution has half the height and width of the one before, rounded up.
    Guarantee: none; it starts as a contraction, and can be kept near one by a penalty on
    ``analysis.jacobian_frobenius(model.cell, z, model.inject(x))`` (Bai, Koltun and Kolter 2021).

    Examples:
        >>> model = MultiscaleDEQ(3, (8, 16, 32))
        >>> [tuple(z.shape) for z in model(torch.randn(2, 3, 16, 16))]
        [(2, 8, 16, 16), (2, 16, 8, 8), (2, 32, 4, 4)]

    Attributes:
        cell: The map z, u ↦ z.
        inject: The map x ↦ u.

    Args:
        channels_in: Channels of the input x.
        channels: Channels of the state at each resolution, from the highest to the lowest.
        groups: Groups of channels that are normalized together.
        solver: How the equilibrium is found.
        backward: How it is differentiated.
        start: Where the solver starts; None is zeros.

    Raises:
        ValueError: If there is no resolution, a size is not positive, or groups does not divide the channels.
        TypeError: If solver, backward or start is not a value of its kind.
    """

    def __init__(
        self,
        channels_in: int,
        channels: Sequence[int],
        *,
        groups: int = 4,
        solver: Solver = SOLVER,
        backward: Backward = Implicit(),
        start: Start | None = None,
    ) -> None:
        super().__init__(solver, backward, start=start)
        check_sizes(self, 1, channels_in=channels_in)
        self.channels_in, self.channels, self.groups = channels_in, tuple(channels), groups
        self.cell = MultiscaleCell(channels, groups=groups)
        self.inject = injection(channels_in, self.channels[0], groups)

    def forward(self, x: Tensor, z0: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """The states (zᵢ) of shapes (batch, channels[i], height / 2ⁱ, width / 2ⁱ), rounded up.

        Raises:
            ValueError: If x is not of shape (batch, channels_in, height, width).

        Warns:
            ConvergenceWarning: If a sample did not converge.
        """
        check_images(x, self.channels_in)
        states: tuple[Tensor, ...] = self.equilibrium(self.cell, z0, self.inject(x))
        return states

    def _start(self, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
        u: Tensor = inputs[0]
        height, width = u.shape[-2:]
        zeros = []
        for channels in self.channels:
            zeros.append(u.new_zeros(len(u), channels, height, width))
            height, width = -(-height // 2), -(-width // 2)
        return tuple(zeros)

    def extra_repr(self) -> str:
        """Sizes and strategies."""
        sizes = f"channels_in={self.channels_in}, channels={self.channels}, groups={self.groups}"
        return f"{sizes}, {super().extra_repr()}"
