"""Matrices with a structure, as modules: their free parameters, their products, their direct solutions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..activations import Activation
from ..constraints import Constraint
from .sparse import Pattern, draw_indices, sparse_product

__all__ = ["BlockDiagonalMatrix", "LowRankMatrix", "Matrix", "SparseMatrix", "TriangularMatrix", "halve"]

Affine = Callable[[Tensor, Tensor], Tensor]
"""(x, v) -> Ax + v, each sample on its own."""


class Matrix(nn.Module, ABC):
    """A matrix made of fewer numbers than it has entries, constrained or not."""

    constraint: Constraint | None

    @abstractmethod
    def tensor(self) -> Tensor:
        """The matrix, dense or (if its structure is sparse) a COO tensor."""

    @abstractmethod
    def affine(self) -> Affine:
        """(x, v) -> Ax + v, with all that does not depend on x and v done once."""

    @abstractmethod
    def initialize(self) -> None:
        """Draw the parameters, with rows of absolute sum at most 1/2."""

    def solve(self, v: Tensor, phis: Sequence[Activation]) -> Tensor:
        """The x = φ(Ax + v) by back-substitution, where the structure allows it."""
        raise NotImplementedError

    def _bounded(self, rows: Tensor) -> Tensor:
        return rows if self.constraint is None else self.constraint(rows)


def halve(weight: Tensor) -> None:
    """Draw ``weight``, rows of absolute sum 1/2."""
    if weight.numel():
        weight.uniform_(-1, 1)
        weight /= 2 * weight.abs().sum(1, keepdim=True)


class LowRankMatrix(Matrix):
    """A = diag(d) + LRᵀ."""

    def __init__(self, states: int, rank: int, constraint: Constraint | None) -> None:
        super().__init__()
        self.constraint = constraint
        self.diagonal = nn.Parameter(torch.empty(states))
        self.left = nn.Parameter(torch.empty(states, rank))
        self.right = nn.Parameter(torch.empty(states, rank))

    def factors(self) -> tuple[Tensor, Tensor]:
        """The d and L that are used.

        With rₖ = Σⱼ|Rⱼₖ|, the absolute sum of row i of A is at most |dᵢ| + Σₖ|Lᵢₖ|rₖ, which is that of the row
        (dᵢ, Lᵢ₁r₁, Lᵢ₂r₂, ...): a constraint of rows is applied to these.
        """
        if self.constraint is None:
            return self.diagonal, self.left
        reach = self.right.abs().sum(0).clamp_min(torch.finfo(self.right.dtype).eps)
        bounded = self.constraint(torch.cat([self.diagonal[:, None], self.left * reach], 1))
        return bounded[:, 0], bounded[:, 1:] / reach

    def tensor(self) -> Tensor:  # noqa: D102
        diagonal, left = self.factors()
        return torch.diag(diagonal) + left @ self.right.T

    def affine(self) -> Affine:  # noqa: D102
        (diagonal, left), right = self.factors(), self.right
        return lambda x, v: torch.addmm(torch.addcmul(v, x, diagonal), x @ right, left.T)

    def initialize(self) -> None:  # noqa: D102
        for part in (self.diagonal, self.left, self.right):
            part.uniform_(-1, 1)
        self.right.div_(self.right.abs().sum(0))
        size = 2 * (self.diagonal.abs() + self.left.abs().sum(1))
        self.diagonal.div_(size)
        self.left.div_(size[:, None])


class BlockDiagonalMatrix(Matrix):
    """Blocks along the diagonal, of the shapes given."""

    def __init__(self, shapes: Sequence[tuple[int, int]], constraint: Constraint | None) -> None:
        super().__init__()
        self.constraint, self.shapes = constraint, list(shapes)
        self.blocks = nn.ParameterList([torch.empty(shape) for shape in shapes])

    def tensor(self) -> Tensor:  # noqa: D102
        whole: Tensor = torch.block_diag(*map(self._bounded, self.blocks))
        return whole

    def affine(self) -> Affine:  # noqa: D102
        blocks = [self._bounded(block) for block in self.blocks]
        if len(set(self.shapes)) == 1:
            rows, states = self.shapes[0]
            stacked = torch.stack(blocks).mT

            def together(x: Tensor, v: Tensor) -> Tensor:
                v, x = (t.unflatten(1, (-1, n)).transpose(0, 1) for t, n in ((v, rows), (x, states)))
                return torch.baddbmm(v, x, stacked).transpose(0, 1).flatten(1)

            return together
        rows_of, states_of = ([shape[axis] for shape in self.shapes] for axis in (0, 1))

        def apart(x: Tensor, v: Tensor) -> Tensor:
            pairs = zip(v.split(rows_of, 1), x.split(states_of, 1), blocks, strict=True)
            return torch.cat([torch.addmm(part, own, block.T) for part, own, block in pairs], 1)

        return apart

    def initialize(self) -> None:  # noqa: D102
        for block in self.blocks:
            halve(block)


class SparseMatrix(Matrix):
    """A fixed pattern of nonzeros, with or without block sizes that it is strictly triangular for."""

    indices: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        count: int,
        constraint: Constraint | None = None,
        shapes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        self.constraint, self.shape, self.shapes = constraint, shape, shapes
        self.values = nn.Parameter(torch.empty(count))
        self.register_buffer("indices", draw_indices(self._columns_from(), shape[1], count))
        self._known: tuple[Tensor, int, Pattern] | None = None

    def _columns_from(self) -> Tensor:
        if self.shapes is None:
            return torch.zeros(self.shape[0], dtype=torch.int64)
        ends = torch.tensor(list(accumulate(states for _, states in self.shapes)))
        return ends.repeat_interleave(torch.tensor([rows for rows, _ in self.shapes]))

    @property
    def pattern(self) -> Pattern:
        """Where the nonzeros are."""
        known = self._known
        if known is None or known[0] is not self.indices or known[1] != self.indices._version:
            self._known = known = (self.indices, self.indices._version, Pattern(self.indices, self.shape))
        return known[2]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_known": None}

    def used(self) -> Tensor:
        """The values, constrained."""
        if self.constraint is None or not len(self.values):
            return self.values
        pattern = self.pattern
        place = torch.arange(len(self.values), device=self.values.device) - pattern.starts[pattern.rows]
        rows = self.values.new_zeros(self.shape[0], int(pattern.starts.diff().max()))
        return self.constraint(rows.index_put((pattern.rows, place), self.values))[pattern.rows, place]

    def tensor(self) -> Tensor:  # noqa: D102
        return torch.sparse_coo_tensor(self.indices, self.used(), self.shape, is_coalesced=True, check_invariants=False)

    def affine(self) -> Affine:  # noqa: D102
        pattern, values = self.pattern, self.used()
        # view: an operation that those who watch for what a map depends on can see, unlike an autograd.Function
        return lambda x, v: v + sparse_product(pattern, values.view(-1), x)

    def initialize(self) -> None:  # noqa: D102
        self.values.uniform_(-1, 1)
        sums = self.values.new_zeros(self.shape[0]).index_add_(0, self.indices[0], self.values.abs())
        self.values.div_(2 * sums[self.indices[0]])

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Ax + bias."""
        out = sparse_product(self.pattern, self.used(), x)
        return out if bias is None else out + bias

    def solve(self, v: Tensor, phis: Sequence[Activation]) -> Tensor:  # noqa: D102
        assert self.shapes is not None
        values, pattern = self.used(), self.pattern

        def product(first: int, last: int, column: int, x: Tensor) -> Tensor:
            part, here = pattern.part(first, last, column)
            return sparse_product(part, values[here], x)

        return substitute(v, phis, self.shapes, product)


class TriangularMatrix(Matrix):
    """Strictly upper block-triangular: of each block of rows, all columns right of the diagonal block."""

    last: Tensor

    def __init__(self, shapes: Sequence[tuple[int, int]], constraint: Constraint | None) -> None:
        super().__init__()
        self.constraint, self.shapes = constraint, list(shapes)
        ends = accumulate(states for _, states in shapes)
        self.states = sum(states for _, states in shapes)
        free = list(zip(shapes, ends, strict=True))[:-1]
        self.blocks = nn.ParameterList([torch.empty(rows, self.states - end) for (rows, _), end in free])
        self.register_buffer("last", torch.zeros(shapes[-1][0], self.states), persistent=False)

    def tensor(self) -> Tensor:  # noqa: D102
        rows = [self._bounded(block) for block in self.blocks]
        return torch.cat([*(functional.pad(block, (self.states - block.shape[1], 0)) for block in rows), self.last])

    def affine(self) -> Affine:  # noqa: D102
        matrix = self.tensor().T
        return lambda x, v: torch.addmm(v, x, matrix)

    def initialize(self) -> None:  # noqa: D102
        for block in self.blocks:
            halve(block)

    def solve(self, v: Tensor, phis: Sequence[Activation]) -> Tensor:  # noqa: D102
        blocks = iter([self._bounded(block) for block in reversed(self.blocks)])
        return substitute(v, phis, self.shapes, lambda first, last, column, x: functional.linear(x, next(blocks)))


def substitute(
    v: Tensor,
    phis: Sequence[Activation],
    shapes: Sequence[tuple[int, int]],
    product: Callable[[int, int, int, Tensor], Tensor],
) -> Tensor:
    """The x = φ(Ax + v), A strictly upper block-triangular, from the last block of rows to the first.

    Args:
        v: ``(batch, rows)``.
        phis: The activation of each block.
        shapes: Rows and states of each block.
        product: ``(first, last, column, x)`` -> the rows of A from ``first`` up to ``last``, their columns from
            ``column``, times the states x that these columns stand for.
    """
    rows, states = (list(accumulate((shape[axis] for shape in shapes), initial=0)) for axis in (0, 1))
    x: Tensor | None = None
    for i in reversed(range(len(shapes))):
        z = v[:, rows[i] : rows[i + 1]]
        if x is not None:
            z = z + product(rows[i], rows[i + 1], states[i + 1], x)
        new = phis[i](z)
        x = new if x is None else torch.cat([new, x], 1)
    assert x is not None  # there is at least one block
    return x
