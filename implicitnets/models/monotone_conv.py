"""Convolutional models whose equilibrium is unique because I − W is strongly monotone, on one resolution or several."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..activations import as_activation
from ..backward import Backward, Implicit
from ..pytree import rebuild
from ..solvers import Anderson, Fallback, PeacemanRachford, Solver
from .affine import AffineForm
from .deq import Equilibrium
from .periodic import PeriodicLinear, convolve, join, units
from .proximal import proximal
from .split import SplitMap
from .starts import Start

__all__ = ["MonotoneConvDEQ", "MonotoneMultiTierDEQ"]


class _Periodic(Equilibrium):
    """What both share: kernels, by tier, and the call."""

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        *,
        kernel_size: int,
        m: float,
        activation: str,
        solver: Solver,
        backward: Backward,
        start: Start | None,
    ) -> None:
        super().__init__(solver, backward, start=start)
        name = type(self).__name__
        if in_channels < 1 or not widths or min(widths) < 1:
            raise ValueError(f"{name}(in_channels={in_channels}, channels={list(widths)}): each must be at least 1")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"{name}(kernel_size={kernel_size}): kernel_size must be odd, e.g. 3")
        if not m > 0:
            raise ValueError(f"{name}(m={m!r}): m must be positive, e.g. 1.0")
        proximal(activation)
        self.in_channels, self.kernel_size, self.m, self.activation = in_channels, kernel_size, m, activation

        def kernels(scale: float, pairs: Sequence[tuple[int, int]]) -> nn.ParameterList:
            shapes = [(out, into, kernel_size, kernel_size) for out, into in pairs]
            return nn.ParameterList(torch.randn(s) * (scale / (s[1] * kernel_size**2) ** 0.5) for s in shapes)

        own = [(width, width) for width in widths]
        self.A, self.B = kernels(0.3, own), kernels(0.1, own)
        self.down = kernels(0.15, list(zip(widths[1:], widths[:-1], strict=True)))
        self.U = kernels(0.6, [(widths[0], in_channels)])[0]
        self.b = nn.ParameterList(torch.zeros(width, 1, 1) for width in widths)

    @abstractmethod
    def forward(self, x: Tensor, z0: Any = None) -> Any:
        """The equilibrium for images x."""

    def _solve(self, x: Tensor, z0: Any, *, alone: bool) -> Any:
        """The equilibrium, a tensor or a tuple of tiers."""
        injection = self._injection(x)
        c = injection[0] if alone else tuple(injection)
        return self.equilibrium(SplitMap(self._linear(), self.activation), z0, c)

    def affine(self, input_shape: tuple[int, ...] | None = None) -> AffineForm:
        """As for all models; A has the square of the number of states in entries.

        Raises:
            ValueError: If input_shape is not given, or images of it can't be states.
        """
        if input_shape is None:
            raise ValueError(
                f"{type(self).__name__}.affine() depends on the size of the images: "
                f"write input_shape=({self.in_channels}, height, width)"
            )
        images = units(self.U.detach().new_zeros(input_shape))
        tiers = self._injection(torch.zeros_like(images[:1]))
        b = join(tiers)[0]
        A, B = self._linear().matrix(tiers), (join(self._injection(images)) - b).T
        eye, zero = torch.eye(len(b)).to(b), torch.zeros_like(b)
        shape = tuple(tiers[0].shape[1:]) if len(tiers) == 1 else None
        phi = as_activation(self.activation)
        return AffineForm(A=A, B=B, C=eye, D=torch.zeros_like(B), b=b, c=zero, activation=phi, output_shape=shape)

    def _linear(self) -> PeriodicLinear:
        return PeriodicLinear(A=tuple(self.A), down=tuple(self.down), B=tuple(self.B), m=self.m)

    def _injection(self, x: Tensor) -> list[Tensor]:
        """What images bring in, tier by tier.

        Raises:
            ValueError: If x has another shape, or its sizes do not divide.
        """
        stride = 2 ** len(self.down)
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x has shape {tuple(x.shape)}, not (batch, {self.in_channels}, height, width)")
        if x.shape[2] % stride or x.shape[3] % stride or min(x.shape[2:]) // stride < self.kernel_size // 2:
            raise ValueError(
                f"x has height and width {tuple(x.shape[2:])}: they must be multiples of {stride}, and at least "
                f"{stride * (self.kernel_size // 2)}: pad or crop the images"
            )
        injection = [convolve(x, self.U) + self.b[0]]
        for i, bias in enumerate(list(self.b)[1:], 1):
            size = (len(x), len(bias), x.shape[2] // 2**i, x.shape[3] // 2**i)
            injection.append(bias.expand(size))
        return injection

    def _start(self, inputs: tuple[Any, ...]) -> Any:
        return rebuild(torch.zeros_like, inputs[0])

    def extra_repr(self) -> str:
        """Sizes, activation and strategies."""
        sizes = f"in_channels={self.in_channels}, kernel_size={self.kernel_size}, m={self.m}"
        return f"{sizes}, activation={self.activation!r}, {super().extra_repr()}"


class MonotoneConvDEQ(_Periodic):
    """z = φ(Wz + Ux + b) with W = (1 − m) I − AᵀA + B − Bᵀ of periodic convolutions (Winston and Kolter 2020).

    As ``MonotoneDEQ``, with images as states. There is exactly one equilibrium for every value of the parameters and
    every x. Convolutions are periodic, so that solvers by splitting can invert I + a(I − W) exactly, frequency by
    frequency; pad the images where what leaves at one edge must not come in at the other.

    Examples:
        >>> model = MonotoneConvDEQ(in_channels=1, channels=4)
        >>> model(torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 4, 8, 8])

    Attributes:
        A: Kernel, (channels, channels, k, k), in a list of one.
        B: Likewise.
        U: Input kernel, (channels, in_channels, k, k).
        b: Bias, (channels, 1, 1), in a list of one.

    Args:
        in_channels: Channels of an image x.
        channels: Channels of the state z, which has the size of x.
        kernel_size: k, odd.
        m: The margin of monotonicity, positive.
        activation: φ: a name in ``PROXIMAL``.
        solver: How the equilibrium is found. The default takes ``PeacemanRachford``, which converges for all weights,
            for what Anderson leaves.
        backward: How it is differentiated.
        start: Where the solver starts; None is zeros.

    Raises:
        ValueError: If a size or m is not positive, kernel_size even, or the activation unknown.
        TypeError: If solver, backward or start is not a value of its kind.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        kernel_size: int = 3,
        m: float = 1.0,
        activation: str = "relu",
        solver: Solver = Fallback(Anderson(max_steps=100), PeacemanRachford(max_steps=200)),
        backward: Backward = Implicit(),
        start: Start | None = None,
    ) -> None:
        how: dict[str, Any] = {"solver": solver, "backward": backward, "start": start}
        super().__init__(in_channels, (channels,), kernel_size=kernel_size, m=m, activation=activation, **how)
        self.channels = channels

    def forward(self, x: Tensor, z0: Tensor | None = None) -> Tensor:
        """The equilibrium, (batch, channels, height, width), for x of shape (batch, in_channels, height, width).

        Raises:
            ValueError: If x has another shape.

        Warns:
            ConvergenceWarning: If a sample did not converge.
        """
        z: Tensor = self._solve(x, z0, alone=True)
        return z

    def extra_repr(self) -> str:
        """Sizes, activation and strategies."""
        return f"channels={self.channels}, {super().extra_repr()}"


class MonotoneMultiTierDEQ(_Periodic):
    """z = φ(Wz + (Ux + b₁, b₂, ...)) on several resolutions, W = (1 − m) I − AᵀA + B − Bᵀ (Winston and Kolter 2020).

    The paper's multi-tier network: tier i has half the height and width of tier i − 1. A is block lower bidiagonal,
    with a convolution from each tier to itself and one of stride 2 to the next; B is block diagonal. So W is block
    tridiagonal: each tier hears of the next finer and the next coarser one. The image enters the first. There is
    exactly one equilibrium for every value of the parameters and every x.

    Examples:
        >>> model = MonotoneMultiTierDEQ(in_channels=1, channels=(4, 6))
        >>> [tuple(tier.shape) for tier in model(torch.randn(5, 1, 8, 8))]
        [(5, 4, 8, 8), (5, 6, 4, 4)]

    Attributes:
        A: A kernel (cᵢ, cᵢ, k, k) for each tier.
        down: A kernel (cᵢ₊₁, cᵢ, k, k) for each tier but the last.
        B: A kernel (cᵢ, cᵢ, k, k) for each tier.
        U: Input kernel, (c₁, in_channels, k, k).
        b: A bias (cᵢ, 1, 1) for each tier.

    Args:
        in_channels: Channels of an image x.
        channels: Channels cᵢ of the tiers. With T of them, height and width of x must be multiples of 2^(T−1).
        kernel_size: k, odd.
        m: The margin of monotonicity, positive.
        activation: φ: a name in ``PROXIMAL``.
        solver: How the equilibrium is found. ``PeacemanRachford``, which converges for all weights, inverts a matrix of
            Σ cᵢ 4^(T−i) rows for each frequency of the coarsest tier; the default takes it for what Anderson leaves.
        backward: How it is differentiated.
        start: Where the solver starts; None is zeros.

    Raises:
        ValueError: If a size or m is not positive, kernel_size even, or the activation unknown.
        TypeError: If solver, backward or start is not a value of its kind.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        *,
        kernel_size: int = 3,
        m: float = 1.0,
        activation: str = "relu",
        solver: Solver = Fallback(Anderson(max_steps=100), PeacemanRachford(max_steps=200)),
        backward: Backward = Implicit(),
        start: Start | None = None,
    ) -> None:
        how: dict[str, Any] = {"solver": solver, "backward": backward, "start": start}
        super().__init__(in_channels, channels, kernel_size=kernel_size, m=m, activation=activation, **how)
        self.channels = tuple(channels)

    def forward(self, x: Tensor, z0: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """The equilibrium, a tuple of tiers (batch, cᵢ, height / 2^(i−1), width / 2^(i−1)), for images x.

        Raises:
            ValueError: If x has another shape than (batch, in_channels, height, width), or does not divide.

        Warns:
            ConvergenceWarning: If a sample did not converge.
        """
        z: tuple[Tensor, ...] = self._solve(x, z0, alone=False)
        return z

    def extra_repr(self) -> str:
        """Sizes, activation and strategies."""
        return f"channels={self.channels}, {super().extra_repr()}"
