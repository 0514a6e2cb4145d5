"""The deep equilibrium model of images at one resolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..backward import Backward, Implicit
from ..solvers import Solver
from .cells import SOLVER, ConvCell
from .deq import Equilibrium
from .normalized import check_sizes, convolution, group_norm
from .starts import Start

__all__ = ["ConvDEQ", "check_images", "injection"]


def injection(inputs: int, channels: int, groups: int) -> nn.Sequential:
    """U = N(K x) of a 3×3 convolution: as large as a normalized state, which is what the cells start stable for."""
    return nn.Sequential(convolution(inputs, channels), group_norm(groups, channels))


def check_images(x: Tensor, channels: int) -> None:
    """Check the shape of a batch of images.

    Raises:
        ValueError: If it is not (batch, channels, height, width).
    """
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, not (batch, {channels}, height, width): reshape it, "
            f"for instance with x.reshape(len(x), {channels}, height, width)"
        )


class ConvDEQ(Equilibrium):
    """z = N₃(relu(z + N₂(u + K₂ relu(N₁(K₁z))))) with u = N(K x): an equilibrium of a residual block of convolutions.

    The deep equilibrium model of images (Bai, Koltun and Kolter 2020, section 3.1, here at one resolution), with group
    norm and weight norm, see ``ConvCell``. Guarantee: none; it starts as a contraction, and can be kept near one by a
    penalty on ``analysis.jacobian_frobenius(model.cell, z, model.inject(x))`` (Bai, Koltun and Kolter 2021).

    Examples:
        >>> stem, head = nn.Conv2d(1, 8, 3, stride=2), nn.Linear(256, 10)
        >>> model = nn.Sequential(stem, nn.ReLU(), ConvDEQ(8, 16), nn.AdaptiveAvgPool2d(4), nn.Flatten(), head)
        >>> model(torch.randn(5, 1, 28, 28)).shape
        torch.Size([5, 10])

    Attributes:
        cell: The map z, u ↦ z.
        inject: The map x ↦ u.

    Args:
        channels_in: Channels of the input x.
        channels: Channels of the state.
        hidden: Channels between the two convolutions; None for as many.
        groups: Groups of channels that are normalized together.
        solver: How the equilibrium is found.
        backward: How it is differentiated.
        start: Where the solver starts; None is zeros.

    Raises:
        ValueError: If a size is not positive, or groups does not divide the channels.
        TypeError: If solver, backward or start is not a value of its kind.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        *,
        hidden: int | None = None,
        groups: int = 4,
        solver: Solver = SOLVER,
        backward: Backward = Implicit(),
        start: Start | None = None,
    ) -> None:
        super().__init__(solver, backward, start=start)
        check_sizes(self, 1, channels_in=channels_in)
        self.channels_in, self.channels, self.hidden, self.groups = channels_in, channels, hidden, groups
        self.cell = ConvCell(channels, hidden=hidden, groups=groups)
        self.inject = injection(channels_in, channels, groups)

    def forward(self, x: Tensor, z0: Tensor | None = None) -> Tensor:
        """The state, (batch, channels, height, width), for x of shape (batch, channels_in, height, width).

        Raises:
            ValueError: If x has another shape.

        Warns:
            ConvergenceWarning: If a sample did not converge.
        """
        check_images(x, self.channels_in)
        state: Tensor = self.equilibrium(self.cell, z0, self.inject(x))
        return state

    def _start(self, inputs: tuple[Any, ...]) -> Tensor:
        return torch.zeros_like(inputs[0])

    def extra_repr(self) -> str:
        """Sizes and strategies."""
        sizes = f"channels_in={self.channels_in}, channels={self.channels}, hidden={self.hidden}, groups={self.groups}"
        return f"{sizes}, {super().extra_repr()}"
