"""The affine layers, on forms: convolutions, pooling, normalization, sums, and what moves entries about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from ...activations import LayerNorm
from .form import Form, array, join
from .windows import convolution, each


def linear(x: Form, weight: Tensor, bias: Tensor | None = None) -> Form:
    """Along the last axis, as torch.nn.functional.linear."""
    lead = x.shape[:-1]
    matrix = sparse.csr_array(array(weight, weight.shape).reshape(weight.shape))
    out = x.linear(sparse.kron(sparse.eye_array(lead.numel()), matrix, format="csr"), (*lead, weight.shape[0]))
    return out if bias is None else out.plus(bias)


def convolve(
    x: Form,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Form:
    """As torch.nn.functional.conv1d, conv2d or conv3d, and the padding modes of their modules."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "mode": padding_mode}
    matrix, spatial = convolution(x.index, weight, **options)
    out = x.linear(matrix, (1, weight.shape[0], *spatial))
    return out if bias is None else out.plus(bias.reshape(-1, *[1] * len(spatial)))


def batch_norm(
    x: Form,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Form:
    """As torch.nn.functional.batch_norm, with the statistics that it has learned.

    Raises:
        ValueError: If it takes those of the batch.
    """
    if training or running_mean is None or running_var is None:
        raise ValueError("normalizes by the statistics of the batch, so that a sample depends on the others")
    channels = (-1, *[1] * (len(x.shape) - 2))
    mean, variance = (t.detach().cpu().double() for t in (running_mean, running_var))
    scaled = x.plus(-mean.reshape(channels)).times((variance + eps).rsqrt().reshape(channels))
    return _affine(scaled, *(None if t is None else t.reshape(channels) for t in (weight, bias)))


def layer_norm(
    x: Form, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Form:
    """As torch.nn.functional.layer_norm, as a block of groups of rows."""
    size = torch.Size(each(normalized_shape, 1)).numel()
    return _affine(x.of.emit(LayerNorm(size=size, eps=eps), x.matrix, x.shape.numel(), x.shape), weight, bias)


def group_norm(
    x: Form, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Form:
    """As torch.nn.functional.group_norm, likewise."""
    size = x.shape.numel() // num_groups
    out = x.of.emit(LayerNorm(size=size, eps=eps), x.matrix, x.shape.numel(), x.shape)
    channels = (-1, *[1] * (len(x.shape) - 2))
    return _affine(out, *(None if t is None else t.reshape(channels) for t in (weight, bias)))


def _affine(x: Form, weight: Tensor | None, bias: Tensor | None) -> Form:
    x = x if weight is None else x.times(weight)
    return x if bias is None else x.plus(bias)


def dropout(x: Form, p: float = 0.5, training: bool = True, inplace: bool = False) -> Form:
    """Nothing, in eval mode.

    Raises:
        ValueError: In training mode.
    """
    if training and p:
        raise ValueError("drops entries at random")
    return x


def total(x: Form, dim: Any = None, keepdim: bool = False, *, average: bool = False) -> Form:
    """The sum or the mean over some axes.

    Raises:
        ValueError: If the batch is one of them.
    """
    dims = [d % len(x.shape) for d in each(0 if dim is None else dim, 1)]
    if 0 in dims:
        raise ValueError("sums over the batch, so that a sample depends on the others")
    kept = [1 if axis in dims else size for axis, size in enumerate(x.shape)]
    count = torch.Size(kept).numel()
    rows = torch.arange(count).reshape(kept).broadcast_to(x.shape).flatten().numpy()
    weight = count / x.shape.numel() if average else 1.0
    entries = ([weight] * rows.size, (rows, x.index.flatten().numpy()))
    out = x.linear(sparse.csr_array(entries, shape=(count, rows.size)), kept)
    return out if keepdim else out.take(out.index.reshape([n for a, n in enumerate(x.shape) if a not in dims]))


def pad(x: Form, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Form:
    """As torch.nn.functional.pad, in every mode."""
    # counted from 1, so that what is constant is nobody; as floats, which every mode can pad
    index = functional.pad((x.index + 1).double(), tuple(pad), mode=mode).long() - 1
    empty = sparse.csr_array((1, x.matrix.shape[1]))
    out = replace(x, matrix=sparse.vstack([x.matrix, empty], format="csr")).take(index)  # -1 is the last row
    return out.plus((index < 0).double(), value) if value else out


def nearest(x: Form, size: Any = None, scale_factor: Any = None, mode: str = "nearest", **options: Any) -> Form:
    """As torch.nn.functional.interpolate where that repeats entries.

    Raises:
        ValueError: If it mixes them.
    """
    if mode not in ("nearest", "nearest-exact"):
        raise ValueError(f"interpolates with mode={mode!r}, where only 'nearest' is supported")
    return x.take(functional.interpolate(x.index.double(), size, scale_factor, mode, **options).long())


def cat(tensors: Sequence[Form], dim: int = 0) -> Form:
    """As torch.cat."""
    return join(torch.cat, tensors, dim)


def stack(tensors: Sequence[Form], dim: int = 0) -> Form:
    """As torch.stack."""
    return join(torch.stack, tensors, dim)


def add(x: Any, y: Any, *, alpha: float = 1.0) -> Form:
    """X + α y, where one may be a constant."""
    form: Form = x.plus(y, alpha) if isinstance(x, Form) else y.times(alpha).plus(x)
    return form


def subtract(x: Any, y: Any, *, alpha: float = 1.0) -> Form:
    """X − α y, where one may be a constant."""
    return add(x, y, alpha=-alpha)


def divide(x: Form | Tensor | float, y: Any) -> Form:
    """The quotient by a constant.

    Raises:
        ValueError: If the divisor is not constant.
    """
    if not isinstance(x, Form) or isinstance(y, Form):
        raise ValueError("divides by a tensor that depends on the input")
    return x.times(1 / (y.detach().cpu().double() if isinstance(y, Tensor) else y))


def negate(x: Form) -> Form:
    """−x."""
    return x.times(-1.0)
