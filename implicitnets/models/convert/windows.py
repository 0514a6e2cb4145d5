"""Which entries a convolution or a pooling looks at, and with which weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import product
from typing import Any

import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

__all__ = ["adaptive_pool_axis", "average_pool_axis", "convolution", "each", "max_pool_axis", "outer", "windows_of"]

OUTSIDE = -1
"""The number of an entry that is padding."""


def each(value: Any, axes: int) -> tuple[Any, ...]:
    """An option of one value for all axes, or of one for each."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes


def convolution(
    index: Tensor, weight: Tensor, *, stride: Any, padding: Any, dilation: Any, groups: int, mode: str
) -> Any:
    """The sparse matrix of a convolution of a tensor whose entries have these numbers, (1, channels, *spatial).

    Its rows are the entries of the output, channel after channel; it is returned with the output's spatial shape.
    """
    axes, outputs = weight.dim() - 2, weight.shape[0]
    stride, dilation, kernel = each(stride, axes), each(dilation, axes), weight.shape[2:]
    taps = _padded(index, kernel, padding, dilation, mode)
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        taps = taps.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    spatial = taps.shape[2 : 2 + axes]
    places = spatial.numel()
    # (groups, outputs of a group, places, channels of a group and taps), all four broadcast against each other
    columns = taps.reshape(groups, -1, places, kernel.numel()).transpose(1, 2).reshape(groups, 1, places, -1)
    values = weight.detach().cpu().double().reshape(groups, outputs // groups, 1, -1)
    rows = torch.arange(outputs * places).reshape(groups, outputs // groups, places, 1)
    values, rows, columns = torch.broadcast_tensors(values, rows, columns)
    inside = columns != OUTSIDE
    entries = (values[inside].numpy(), (rows[inside].numpy(), columns[inside].numpy()))
    return sparse.csr_array(entries, shape=(outputs * places, index.numel())), spatial


def _padded(index: Tensor, kernel: Sequence[int], padding: Any, dilation: Sequence[int], mode: str) -> Tensor:
    """The numbers with those of the padding around them."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in each(padding, len(kernel))]
    around = [width for pair in reversed(sides) for width in pair]
    how = "constant" if mode == "zeros" else mode
    # counted from 1, so that the zeros of the padding are nobody; as floats, which every mode can pad
    return functional.pad((index + 1).double(), around, mode=how).long() + OUTSIDE


def windows_of(axes: Sequence[Sequence[Sequence[int]]], sizes: Sequence[int]) -> Tensor:
    """The numbers of the entries under each window, (windows, largest), from those along each axis.

    A smaller window names its first entry again, which does not change its maximum.
    """
    found = [
        [sum(i * stride for i, stride in zip(place, _strides(sizes), strict=True)) for place in product(*window)]
        for window in product(*axes)
    ]
    largest = max(map(len, found))
    return torch.tensor([window + window[:1] * (largest - len(window)) for window in found])


def _strides(sizes: Sequence[int]) -> list[int]:
    return [reduce(int.__mul__, sizes[axis + 1 :], 1) for axis in range(len(sizes))]


def max_pool_axis(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> list[list[int]]:
    """The entries under each window along one axis."""
    count = functional.max_pool1d(torch.zeros(1, size), kernel, stride, padding, dilation, ceil_mode).shape[-1]
    starts = (i * stride - padding for i in range(count))
    return [[j for j in range(a, a + dilation * kernel, dilation) if 0 <= j < size] for a in starts]


def average_pool_axis(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, include_pad: bool) -> Any:
    """The matrix, (windows, size), that averages along one axis."""
    return _matrix(size, lambda t: functional.avg_pool1d(t, kernel, stride, padding, ceil_mode, include_pad))


def adaptive_pool_axis(size: int, count: int | None) -> Any:
    """The matrix, (count, size), that averages over as many windows as asked for along one axis."""
    return _matrix(size, lambda t: functional.adaptive_avg_pool1d(t, size if count is None else count))


def _matrix(size: int, function: Callable[[Tensor], Tensor]) -> Any:
    """The matrix of a linear function of one axis."""
    return sparse.csr_array(function(torch.eye(size, dtype=torch.float64)).T.numpy())


def outer(channels: int, axes: Sequence[Any]) -> Any:
    """The matrix that acts by one matrix along each of the last axes, alike in every channel."""
    return sparse.csr_array(reduce(sparse.kron, axes, sparse.eye_array(channels)))
