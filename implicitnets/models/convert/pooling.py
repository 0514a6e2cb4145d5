"""Pooling, on forms: averages are affine, maxima are blocks of states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...activations import MaxPool
from .form import Form
from .windows import adaptive_pool_axis, average_pool_axis, each, max_pool_axis, outer, windows_of


def average_pool(
    x: Form,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    axes: int,
) -> Form:
    """As torch.nn.functional.avg_pool1d, avg_pool2d or avg_pool3d, which all act along each axis on its own."""
    kernel = each(kernel_size, axes)
    options = (kernel, each(stride or kernel, axes), each(padding, axes))
    along = [
        average_pool_axis(*each_axis, ceil_mode, count_include_pad)
        for each_axis in zip(x.shape[-axes:], *options, strict=True)
    ]
    if divisor_override is not None:
        along = [(matrix > 0).astype(float) for matrix in along]
    out = _along(x, along)
    return out if divisor_override is None else out.times(1 / divisor_override)


def adaptive_average_pool(x: Form, output_size: Any, *, axes: int) -> Form:
    """As torch.nn.functional.adaptive_avg_pool1d, 2d or 3d, for fixed sizes."""
    sizes = zip(x.shape[-axes:], each(output_size, axes), strict=True)
    return _along(x, [adaptive_pool_axis(*pair) for pair in sizes])


def _along(x: Form, matrices: Sequence[Any]) -> Form:
    lead = x.shape[: -len(matrices)]
    return x.linear(outer(lead.numel(), matrices), (*lead, *(matrix.shape[0] for matrix in matrices)))


def max_pool(
    x: Form,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    axes: int,
) -> Form:
    """As torch.nn.functional.max_pool1d, max_pool2d or max_pool3d.

    Raises:
        ValueError: If it is to return the places as well.
    """
    if return_indices:
        raise ValueError("returns the places of the maxima, which are no affine function of states")
    kernel = each(kernel_size, axes)
    options = (kernel, each(stride or kernel, axes), each(padding, axes), each(dilation, axes))
    along = [max_pool_axis(*each_axis, ceil_mode) for each_axis in zip(x.shape[-axes:], *options, strict=True)]
    return _maximum_over(x, along)


def adaptive_max_pool(x: Form, output_size: Any, return_indices: bool = False, *, axes: int) -> Form:
    """As torch.nn.functional.adaptive_max_pool1d, 2d or 3d, for fixed sizes.

    Raises:
        ValueError: If it is to return the places as well.
    """
    if return_indices:
        raise ValueError("returns the places of the maxima, which are no affine function of states")
    sizes = zip(x.shape[-axes:], each(output_size, axes), strict=True)
    matrices = [adaptive_pool_axis(*pair) for pair in sizes]
    return _maximum_over(x, [[row.indices.tolist() for row in matrix] for matrix in matrices])


def _maximum_over(x: Form, along: Sequence[Sequence[Sequence[int]]]) -> Form:
    """The maximum over windows along the last axes, as a block of groups of rows."""
    axes = len(along)
    lead = x.shape[:-axes]
    windows = windows_of(along, x.shape[-axes:])
    entries = x.index.reshape(lead.numel(), -1)[:, windows]  # (channels, windows, size of a window)
    groups = x.take(entries)
    if groups.weights > x.weights + entries.numel():  # windows overlap, and would repeat what is to be computed once
        groups = x.state("identity").take(entries)
    return maximum(groups, (*lead, *map(len, along)))


def maximum(groups: Form, shape: Sequence[int]) -> Form:
    """The maxima along the last axis."""
    size = groups.shape[-1]
    if size == 1:
        return groups.take(groups.index.reshape(tuple(shape)))
    return groups.of.emit(MaxPool(size=size), groups.matrix, groups.shape.numel() // size, shape)
