"""A network's tensors as affine functions of its input and of the states so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

__all__ = ["Block", "Form", "States", "array", "join", "wide"]


@dataclass(frozen=True)
class Block:
    """States that depend on earlier ones only: φ(rows · (1, u, states so far)).

    Attributes:
        activation: φ, a name or a value of ``implicitnets.activations``.
        rows: The pre-activations, one a row; columns 1, the input, then the states of the blocks before.
        states: How many states φ makes of them.
    """

    activation: Any
    rows: Any
    states: int


@dataclass
class States:
    """The input and the blocks of states found so far, the first one first."""

    inputs: int
    blocks: list[Block] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Columns of a form: 1, the input, the states."""
        return 1 + self.inputs + sum(block.states for block in self.blocks)

    def input(self, shape: Sequence[int]) -> Form:
        """The input itself."""
        return Form(self, _selector(self.inputs, 1), torch.Size((1, *shape)))

    def constant(self, value: Tensor) -> Form:
        """A tensor that is the same for every sample."""
        return Form(self, sparse.csr_array((value.numel(), 1)), value.shape).plus(value)

    def emit(self, activation: Any, rows: Any, states: int, shape: Sequence[int]) -> Form:
        """States φ(rows) as a new block."""
        begin = self.width
        self.blocks.append(Block(activation, rows, states))
        return Form(self, _selector(states, begin), torch.Size(shape))


@dataclass(frozen=True)
class Form:
    """A tensor of the network for one sample, entries = matrix · (1, u, states so far).

    It has the shape that the tensor has for a batch of one, and its entries in that order.
    """

    of: States
    matrix: Any
    shape: torch.Size

    @property
    def index(self) -> Tensor:
        """The number of each entry, in the shape of the tensor."""
        return torch.arange(self.shape.numel()).reshape(self.shape)

    @property
    def weights(self) -> int:
        """How many entries the matrix has, biases apart."""
        return _weights(self.matrix)

    def rearrange(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What ``function`` makes of the tensor, for one that moves, repeats or drops entries, whatever they are."""
        moved = function(self.index, *args, **options)
        return tuple(map(self.take, moved)) if isinstance(moved, (tuple, list)) else self.take(moved)

    def take(self, index: Tensor) -> Form:
        """The entries of these numbers, in that shape."""
        return replace(self, matrix=self.matrix[index.flatten().numpy()], shape=index.shape)

    def linear(self, matrix: Any, shape: Sequence[int]) -> Form:
        """The product of a sparse matrix with the entries, in the given shape.

        It is multiplied out where that has no more entries than the two factors, as it is where layers without an
        activation between them shrink; else the tensor becomes states of its own. So A stays sparse along a chain of
        residual blocks, where multiplying out would make each layer depend on ever larger windows of all before.
        """
        product = sparse.csr_array(matrix @ self.matrix)
        if _weights(product) > matrix.nnz + self.weights:
            return self.state("identity").linear(matrix, shape)
        return replace(self, matrix=product, shape=torch.Size(shape))

    def state(self, activation: Any) -> Form:
        """The tensor after a component-wise activation, as new states."""
        return self.of.emit(activation, self.matrix, self.shape.numel(), self.shape)

    def shared(self, users: int) -> Form:
        """The tensor as states of its own if ``users`` layers would else repeat more weights than that takes."""
        size = self.shape.numel()
        return self.state("identity") if users * self.weights > self.weights + users * size else self

    def broadcast(self, shape: Sequence[int]) -> Form:
        """As torch broadcasts it."""
        return self if self.shape == torch.Size(shape) else self.take(self.index.broadcast_to(tuple(shape)))

    def plus(self, other: Form | Tensor | float, alpha: float = 1.0) -> Form:
        """Self + alpha · other."""
        shape = torch.broadcast_shapes(self.shape, other.shape if isinstance(other, Form) else np.shape(other))
        a = self.broadcast(shape)
        if isinstance(other, Form):
            b, width = other.broadcast(shape), self.of.width
            return replace(a, matrix=sparse.csr_array(wide(a.matrix, width) + alpha * wide(b.matrix, width)))
        shift = alpha * array(other, shape)
        column = sparse.csr_array(shift[:, None])
        return replace(a, matrix=sparse.csr_array(a.matrix + wide(column, a.matrix.shape[1])))

    def times(self, factor: Tensor | float) -> Form:
        """Self · factor, entry by entry."""
        a = self.broadcast(torch.broadcast_shapes(self.shape, np.shape(factor)))
        return replace(a, matrix=sparse.csr_array(sparse.diags_array(array(factor, a.shape)) @ a.matrix))


def join(function: Callable[..., Tensor], tensors: Sequence[Form | Tensor], *args: Any, **options: Any) -> Form:
    """What ``function``, torch.cat or torch.stack, makes of a list of tensors, some of which may be constants."""
    of = next(t.of for t in tensors if isinstance(t, Form))
    forms = [t if isinstance(t, Form) else of.constant(t) for t in tensors]
    indices, count = [], 0
    for form in forms:
        indices.append(form.index + count)
        count += form.shape.numel()
    stacked = sparse.vstack([wide(form.matrix, of.width) for form in forms], format="csr")
    return Form(of, stacked, torch.Size((count,))).take(function(indices, *args, **options))


def array(value: Tensor | float, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """A constant as float64 numbers, broadcast to that shape and flattened."""
    constant = (
        torch.tensor(value, dtype=torch.float64) if not isinstance(value, Tensor) else value.detach().cpu().double()
    )
    return constant.broadcast_to(tuple(shape)).flatten().numpy()


def _weights(matrix: Any) -> int:
    return int(np.count_nonzero(matrix.indices))


def _selector(count: int, first: int) -> Any:
    """Rows that pick ``count`` columns, from ``first`` on."""
    ones, rows = np.ones(count), np.arange(count)
    return sparse.csr_array((ones, (rows, rows + first)), shape=(count, first + count))


def wide(matrix: Any, width: int) -> Any:
    """The matrix with columns of zeros behind."""
    return sparse.csr_array((matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], width))
