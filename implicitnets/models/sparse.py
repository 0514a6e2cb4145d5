"""Matrices with a fixed pattern of nonzeros, and their products with batches, differentiable to any order.

``torch.sparse`` multiplies, but its derivative with respect to a sparse factor is of the size of the dense matrix. Here
a product is bilinear in (values, x) and so are its derivatives: a product with the transpose, and a sampled product
of two batches, each of which has the other as its derivative.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..backward.surroundings import without_autocast

__all__ = ["Pattern", "draw_indices", "sparse_product"]

with warnings.catch_warnings():  # PyTorch tells once per process that its CSR tensors are in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


class Pattern:
    """Where the nonzeros of a matrix are.

    Attributes:
        rows: Row of each, in ascending order, ``(nonzeros,)``.
        columns: Column of each, likewise, ascending within a row.
        shape: Of the matrix.
    """

    def __init__(self, indices: Tensor, shape: tuple[int, int]) -> None:
        """The pattern of ``indices``, ``(2, nonzeros)``, in the order of a coalesced tensor."""
        self.rows, self.columns, self.shape = indices[0], indices[1], shape
        bounds = torch.arange(shape[0] + 1, device=indices.device)
        self.starts = torch.searchsorted(self.rows.contiguous(), bounds)
        self._transposed: tuple[Pattern, Tensor] | None = None
        self._parts: dict[tuple[int, int, int], tuple[Pattern, slice]] = {}

    def transposed(self) -> tuple[Pattern, Tensor]:
        """The pattern of the transpose, and the order that its values have."""
        if self._transposed is None:
            order = torch.argsort(self.columns, stable=True)
            flipped = torch.stack([self.columns[order], self.rows[order]])
            self._transposed = Pattern(flipped, (self.shape[1], self.shape[0])), order
        return self._transposed

    def part(self, first: int, last: int, column: int) -> tuple[Pattern, slice]:
        """The pattern of the rows from ``first`` up to ``last``, of columns from ``column``, and where its values are.

        No nonzero of these rows may lie in an earlier column.
        """
        if (first, last, column) not in self._parts:
            here = slice(int(self.starts[first]), int(self.starts[last]))
            moved = torch.stack([self.rows[here] - first, self.columns[here] - column])
            self._parts[first, last, column] = Pattern(moved, (last - first, self.shape[1] - column)), here
        return self._parts[first, last, column]

    def csr(self, values: Tensor) -> Tensor:
        """The matrix with these values."""
        return torch.sparse_csr_tensor(self.starts, self.columns, values, self.shape, check_invariants=False)

    def fast(self, values: Tensor) -> bool:
        """Whether there are sparse kernels for such values."""
        usual = values.dtype in (torch.float32, torch.float64) and len(values) > 0
        return usual and (values.is_cuda or torch.backends.mkl.is_available())

    def product(self, values: Tensor, x: Tensor) -> Tensor:
        """The batch of matrix times vector: ``(batch, columns) -> (batch, rows)``."""
        with without_autocast(x.device):
            if self.fast(values):
                out: Tensor = self.csr(values.detach()) @ x.T.contiguous()
                return out.T
            out = x.new_zeros(x.shape[0], self.shape[0])
            return out.index_add_(1, self.rows, x[:, self.columns] * values)

    def sampled(self, g: Tensor, x: Tensor) -> Tensor:
        """The entries of gᵀx at the nonzeros: ``(batch, rows), (batch, columns) -> (nonzeros,)``."""
        ones = torch.ones(len(self.rows), dtype=g.dtype, device=g.device)
        with without_autocast(x.device):
            if self.fast(ones):
                found: Tensor = torch.sparse.sampled_addmm(self.csr(ones), g.T, x, beta=0.0).values()
                return found
            return (g[:, self.rows] * x[:, self.columns]).sum(0)


def sparse_product(pattern: Pattern, values: Tensor, x: Tensor) -> Tensor:
    """The product of each sample with the matrix that has ``values`` at the nonzeros of ``pattern``.

    Args:
        pattern: Where the nonzeros are.
        values: ``(nonzeros,)``.
        x: ``(batch, columns)``.

    Returns:
        ``(batch, rows)``.
    """
    if torch.is_autocast_enabled(x.device.type):  # the input may have been lowered by what was before
        values = values.to(x.dtype)
    out: Tensor = _Product.apply(pattern, values, x)  # type: ignore[no-untyped-call]
    return out


def _transposed_product(pattern: Pattern, values: Tensor, g: Tensor) -> Tensor:
    flipped, order = pattern.transposed()
    return sparse_product(flipped, values[order], g)


def _sampled(pattern: Pattern, g: Tensor, x: Tensor) -> Tensor:
    out: Tensor = _Sampled.apply(pattern, g, x)  # type: ignore[no-untyped-call]
    return out


class _Bilinear(torch.autograd.Function):
    """What both products share."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.pattern, *factors = inputs
        ctx.save_for_backward(*factors)
        ctx.save_for_forward(*factors)


class _Product(_Bilinear):
    @staticmethod
    def forward(pattern: Pattern, values: Tensor, x: Tensor) -> Tensor:
        return pattern.product(values, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        values, x = ctx.saved_tensors
        return (
            None,
            _sampled(ctx.pattern, g, x) if ctx.needs_input_grad[1] else None,
            _transposed_product(ctx.pattern, values, g) if ctx.needs_input_grad[2] else None,
        )

    @staticmethod
    def jvp(ctx: Any, _: None, values_t: Tensor, x_t: Tensor) -> Tensor:
        values, x = ctx.saved_tensors
        return sparse_product(ctx.pattern, values_t, x) + sparse_product(ctx.pattern, values, x_t)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], pattern: Pattern, values: Tensor, x: Tensor) -> tuple[Tensor, int]:
        _, along_values, along_x = in_dims
        if along_values is None:  # one matrix: the copies are more samples
            stacked = x.movedim(along_x, 0)
            return sparse_product(pattern, values, stacked.flatten(0, 1)).unflatten(0, stacked.shape[:2]), 0
        return _each(sparse_product, info, in_dims, pattern, values, x), 0


class _Sampled(_Bilinear):
    @staticmethod
    def forward(pattern: Pattern, g: Tensor, x: Tensor) -> Tensor:
        return pattern.sampled(g, x)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        g, x = ctx.saved_tensors
        return (
            None,
            sparse_product(ctx.pattern, h, x) if ctx.needs_input_grad[1] else None,
            _transposed_product(ctx.pattern, h, g) if ctx.needs_input_grad[2] else None,
        )

    @staticmethod
    def jvp(ctx: Any, _: None, g_t: Tensor, x_t: Tensor) -> Tensor:
        g, x = ctx.saved_tensors
        return _sampled(ctx.pattern, g_t, x) + _sampled(ctx.pattern, g, x_t)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], pattern: Pattern, g: Tensor, x: Tensor) -> tuple[Tensor, int]:
        return _each(_sampled, info, in_dims, pattern, g, x), 0


def _each(function: Any, info: Any, in_dims: tuple[Any, ...], pattern: Pattern, *factors: Tensor) -> Tensor:
    moved = [
        t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip(factors, in_dims[1:], strict=True)
    ]
    return torch.stack([function(pattern, *pair) for pair in zip(*moved, strict=True)])


def draw_indices(columns_from: Tensor, columns: int, count: int) -> Tensor:
    """A random pattern in the order of a coalesced tensor.

    Args:
        columns_from: By row, the first column where a nonzero may be.
        columns: Of the matrix.
        count: Of the nonzeros.

    Returns:
        Indices, ``(2, count)``.

    Raises:
        ValueError: If there are not so many places.
    """
    ends = (columns - columns_from).cumsum(0)
    places = int(ends[-1])
    if not 0 <= count <= places:
        raise ValueError(f"nonzeros={count}: the structure has room for {places}")
    if 2 * count >= places:
        chosen = torch.randperm(places)[:count]
    else:
        chosen = torch.randint(places, (count,)).unique()
        while len(chosen) < count:
            chosen = torch.cat([chosen, torch.randint(places, (count,))]).unique()
        chosen = chosen[torch.randperm(len(chosen))[:count]]
    chosen = chosen.sort().values
    row = torch.searchsorted(ends, chosen, right=True)
    return torch.stack([row, chosen - ends[row] + columns])
