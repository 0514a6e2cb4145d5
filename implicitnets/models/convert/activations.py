"""Component-wise activations, on forms; where one is piecewise linear, by those that models have."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...activations import Softmax
from .form import Form

SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def activate(x: Form, inplace: bool = False, *, name: str) -> Form:
    """φ(x), for an activation without options."""
    return x.state(name)


relu, tanh, sigmoid = (partial(activate, name=name) for name in ("relu", "tanh", "sigmoid"))


def leaky_relu(x: Form, negative_slope: float = 0.01, inplace: bool = False) -> Form:
    """With any slope s: relu(x) + s min(x, 0) = s x + (1 − s) relu(x)."""
    if negative_slope == 0.01:
        return x.state("leaky_relu")
    return x.state("relu").times(1 - negative_slope).plus(x, negative_slope)


def prelu(x: Form, weight: Tensor) -> Form:
    """As leaky_relu, with a slope for each channel."""
    slope = weight.detach().cpu().double()
    if slope.numel() > 1:
        slope = slope.reshape(-1, *[1] * (len(x.shape) - 2))
    return x.state("relu").times(1 - slope).plus(x.times(slope))


def elu(x: Form, alpha: float = 1.0, inplace: bool = False) -> Form:
    """With any α: relu(x) + α min(eˣ − 1, 0), of which α times the one with α = 1 lacks (1 − α) relu(x)."""
    unit = x.state("elu")
    return unit if alpha == 1 else unit.times(alpha).plus(x.state("relu"), 1 - alpha)


def celu(x: Form, alpha: float = 1.0, inplace: bool = False) -> Form:
    """α elu(x / α)."""
    return x.times(1 / alpha).state("elu").times(alpha)


def selu(x: Form, inplace: bool = False) -> Form:
    """λ elu(x, α) with the constants of Klambauer et al. (2017)."""
    return elu(x, SELU_ALPHA).times(SELU_SCALE)


def softplus(x: Form, beta: float = 1.0, threshold: float = 20.0) -> Form:
    """log(1 + exp(βx)) / β.

    Raises:
        ValueError: If it becomes linear elsewhere than torch has it by default.
    """
    if threshold != 20:
        raise ValueError(f"has threshold={threshold}, where only 20 is supported")
    return x.state("softplus") if beta == 1 else x.times(beta).state("softplus").times(1 / beta)


def hardtanh(x: Form, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Form:
    """min(max(x, a), b), the usual one moved to (a + b) / 2 and stretched by (b − a) / 2."""
    if (min_val, max_val) == (-1, 1):
        return x.state("hardtanh")
    if min_val == 0:  # a shift would cost small entries their digits
        return hardtanh(x, -max_val, max_val).state("relu")
    middle, radius = (min_val + max_val) / 2, (max_val - min_val) / 2
    return x.plus(-middle).times(1 / radius).state("hardtanh").times(radius).plus(middle)


def relu6(x: Form, inplace: bool = False) -> Form:
    """min(max(x, 0), 6)."""
    return hardtanh(x, 0, 6)


def hardsigmoid(x: Form, inplace: bool = False) -> Form:
    """(1 + hardtanh(x / 3)) / 2."""
    return x.times(1 / 3).state("hardtanh").times(0.5).plus(0.5)


def clamp(x: Form, min: Any = None, max: Any = None) -> Form:
    """Between two numbers, or above or below one.

    Raises:
        ValueError: If a bound is a tensor.
    """
    if isinstance(min, (Tensor, Form)) or isinstance(max, (Tensor, Form)):
        raise ValueError("has a tensor for a bound, where only numbers are supported")
    if min is not None and max is not None:
        return hardtanh(x, min, max)
    return larger(x, float(min)) if min is not None else smaller(x, float(max))


def larger(x: Form, y: Form | Tensor | float) -> Form:
    """max(x, y) = y + relu(x − y), entry by entry."""
    x, y = (y, x) if isinstance(x, Tensor) else (x, y)
    difference = x.plus(y, -1.0).state("relu")
    return difference.plus(y)


def smaller(x: Form, y: Form | Tensor | float) -> Form:
    """min(x, y) = x − relu(x − y), entry by entry."""
    x, y = (y, x) if isinstance(x, Tensor) else (x, y)
    return x.plus(x.plus(y, -1.0).state("relu"), -1.0)


def gelu(x: Form, approximate: str = "none") -> Form:
    """x Φ(x) with the normal distribution's Φ.

    Raises:
        ValueError: If it is to be approximated.
    """
    if approximate != "none":
        raise ValueError(f"has approximate={approximate!r}, where only 'none' is supported")
    return x.state("gelu")


def tanhshrink(x: Form) -> Form:
    """x − tanh(x)."""
    return x.plus(x.state("tanh"), -1.0)


def softshrink(x: Form, lambd: float = 0.5) -> Form:
    """relu(x − λ) − relu(−x − λ)."""
    return x.plus(-lambd).state("relu").plus(x.times(-1.0).plus(-lambd).state("relu"), -1.0)


def softmax(x: Form, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Form:
    """Over one axis, as a block of groups of rows.

    Raises:
        ValueError: If the axis is not given, or is the batch.
    """
    if dim is None or dim % len(x.shape) == 0:
        raise ValueError("needs dim=, an axis beside the batch")
    if dtype is not None:
        raise ValueError(f"changes the dtype, to {dtype}")
    moved = x.take(x.index.movedim(dim, -1))
    size, count = moved.shape[-1], moved.shape.numel()
    out = x.of.emit(Softmax(size=size), moved.matrix, count, moved.shape)
    return out.take(out.index.movedim(-1, dim))
