"""Kinked functions of one entry, or of two: the pieces on both sides of each kink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .chooser import Chooser, hinge

__all__ = ["ELEMENTWISE", "maximum", "minimum"]


def relu(c: Chooser, input: Tensor) -> Tensor:
    value = hinge(c, "relu", torch.relu(input), input, right=input, left=torch.zeros_like(input))
    return value


def leaky_relu(c: Chooser, input: Tensor, negative_slope: float = 0.01) -> Tensor:
    plain = functional.leaky_relu(input, negative_slope)
    return hinge(c, "leaky_relu", plain, input, right=input, left=negative_slope * input)


def prelu(c: Chooser, input: Tensor, weight: Tensor) -> Tensor:
    slope = weight.reshape(-1, *(1,) * (input.dim() - 2)) if weight.numel() > 1 else weight.reshape(())
    return hinge(c, "prelu", torch.prelu(input, weight), input, right=input, left=slope * input)


def absolute(c: Chooser, input: Tensor) -> Tensor:
    return hinge(c, "abs", torch.abs(input), input, right=input, left=-input)


def elu(c: Chooser, input: Tensor, alpha: float = 1.0) -> Tensor:
    plain = functional.elu(input, alpha)
    return hinge(c, "elu", plain, input, right=input, left=alpha * torch.expm1(input))


def selu(c: Chooser, input: Tensor) -> Tensor:
    alpha, scale = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017
    right, left = scale * input, scale * alpha * torch.expm1(input)
    return hinge(c, "selu", functional.selu(input), input, right=right, left=left)


def threshold(c: Chooser, input: Tensor, threshold: float, value: float) -> Tensor:
    if threshold != value:
        raise NotImplementedError(
            f"threshold(threshold={threshold!r}, value={value!r}) jumps, so it has no Clarke Jacobian: only "
            "threshold == value is continuous"
        )
    level, plain = torch.full_like(input, value), functional.threshold(input, threshold, value)
    return hinge(c, "threshold", plain, input - level, right=input, left=level)


def softshrink(c: Chooser, input: Tensor, lambd: float = 0.5) -> Tensor:
    out = functional.softshrink(input, lambd)
    if lambd == 0:
        return out
    zero = torch.zeros_like(input)
    out = hinge(c, "softshrink", out, input + lambd, right=zero, left=input + lambd)
    return hinge(c, "softshrink", out, input - lambd, right=input - lambd, left=zero)


def hardsigmoid(c: Chooser, input: Tensor) -> Tensor:
    line = (input + 3) / 6
    plain = functional.relu6(input + 3) / 6  # the same, and can be differentiated twice
    out = hinge(c, "hardsigmoid", plain, input + 3, right=line, left=torch.zeros_like(input))
    out = hinge(c, "hardsigmoid", out, input - 3, right=torch.ones_like(input), left=line)
    return out


def hardswish(c: Chooser, input: Tensor) -> Tensor:
    curve = input * ((input + 3) / 6)
    out = hinge(c, "hardswish", functional.hardswish(input), input + 3, right=curve, left=torch.zeros_like(input))
    return hinge(c, "hardswish", out, input - 3, right=input, left=curve)


def clamp(c: Chooser, input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    value = torch.clamp(input, min, max)  # complains of bad bounds
    numbers = isinstance(min, (int, float)) and isinstance(max, (int, float))
    if numbers and min >= max:
        return value  # constant
    out = input.to(value.dtype)
    if min is not None:
        low = min.to(value.dtype) if isinstance(min, Tensor) else torch.full_like(out, min)
        out = hinge(c, "clamp", torch.maximum(out, low), out - low, right=out, left=low)
    if max is not None:
        high = max.to(value.dtype) if isinstance(max, Tensor) else torch.full_like(out, max)
        out = hinge(c, "clamp", torch.minimum(out, high), out - high, right=high, left=out)
    return out


def clamp_min(c: Chooser, input: Tensor, min: Any) -> Tensor:
    return clamp(c, input, min)


def clamp_max(c: Chooser, input: Tensor, max: Any) -> Tensor:
    return clamp(c, input, None, max)


def hardtanh(c: Chooser, input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    return clamp(c, input, min_val, max_val)


def relu6(c: Chooser, input: Tensor) -> Tensor:
    return clamp(c, input, 0.0, 6.0)


def maximum(c: Chooser, input: Tensor, other: Tensor) -> Tensor:
    """torch.maximum; right of the kink is the first argument."""
    value = torch.maximum(input, other)
    a, b = input.to(value.dtype), other.to(value.dtype)
    return hinge(c, "maximum", value, a - b, right=a, left=b)


def minimum(c: Chooser, input: Tensor, other: Tensor) -> Tensor:
    """torch.minimum; right of the kink is the first argument."""
    value = torch.minimum(input, other)
    a, b = input.to(value.dtype), other.to(value.dtype)
    return hinge(c, "minimum", value, b - a, right=a, left=b)


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        relu, leaky_relu, prelu, elu, selu, softshrink, threshold, hardsigmoid, hardswish, clamp, clamp_min,
        clamp_max, hardtanh, relu6, maximum, minimum, absolute,
    )
} | {"abs": absolute, "__abs__": absolute, "fabs": absolute, "clip": clamp, "_threshold": threshold}  # fmt: skip
