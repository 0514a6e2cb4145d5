"""An implicit model without cycles as the layers that compute it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, NoReturn

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor, nn

from ...activations import Activation, Blocks, as_activation, plain
from ..implicit import ImplicitModel
from ..structures import Triangular
from .modules import SkipLayers, SparseLinear, as_module, dense_linear, sparse_tensor

__all__ = ["to_layers"]


@dataclass(frozen=True)
class _Layer:
    """States that are computed together: φ on these rows of Ax + Bu + b."""

    rows: Any
    states: Any
    phi: Activation


def to_layers(model: ImplicitModel) -> nn.Sequential | SkipLayers:
    """The feed-forward network of an implicit model whose states do not depend on each other in a cycle.

    Its layers are the blocks of the model's ``Triangular`` structure; with another structure, each state is in the
    first layer where what it depends on is there. If every layer sees only the one before, and the output the last, the
    network is a chain of ``Linear`` and activations, else a ``SkipLayers``. The weights are copies.

    Examples:
        >>> from implicitnets.models import from_sequential
        >>> to_layers(from_sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), 4))
        Sequential(
          (0): Linear(in_features=4, out_features=8, bias=True)
          (1): ReLU()
          (2): Linear(in_features=8, out_features=3, bias=True)
        )

    Args:
        model: The model.

    Returns:
        A module from (batch, inputs) to (batch, outputs).

    Raises:
        TypeError: If model is no ImplicitModel.
        ValueError: If A is not strictly block-triangular in any order of the states.
    """
    if not isinstance(model, ImplicitModel):
        raise TypeError(f"model must be an ImplicitModel, not a {type(model).__name__}")
    A, B, C, D = (_csr(matrix) for matrix in (model.A, model.B, model.C, model.D))
    phi, structure = as_activation(model.activation), model.structure
    layers = _given(structure.sizes, phi) if isinstance(structure, Triangular) else _ordered(A, phi)
    # by layer, the columns of its rows that act on the input and on each layer before; so for the output
    parts: list[list[Any]] = [
        [B[layer.rows], *(A[layer.rows][:, past.states] for past in layers[:i])] for i, layer in enumerate(layers)
    ]
    parts.append([D, *(C[:, layer.states] for layer in layers)])
    biases = [None if model.b is None else model.b[torch.as_tensor(layer.rows)] for layer in layers]
    biases.append(model.c)
    like = next(model.parameters())
    activations = [as_module(layer.phi) for layer in layers]
    if any(part.nnz for row in parts for part in row[:-1]):
        stacked = [sparse_tensor(sparse.hstack(row), like) for row in parts]
        return SkipLayers(map(SparseLinear, stacked, biases), activations)
    maps = [dense_linear(row[-1], bias, like) for row, bias in zip(parts, biases, strict=True)]
    alternating = chain.from_iterable(zip_longest(maps, activations))
    return nn.Sequential(*(module for module in alternating if not isinstance(module, (nn.Identity, type(None)))))


def _csr(matrix: Tensor) -> Any:
    entries = matrix.detach().cpu().to_sparse_coo().coalesce()
    values = entries.values().double().numpy()
    found = sparse.csr_array((values, tuple(entries.indices().numpy())), shape=tuple(matrix.shape))
    found.eliminate_zeros()
    return found


def _given(sizes: Sequence[int], phi: Activation) -> list[_Layer]:
    """The blocks of a triangular model, the first layer first."""
    layers, row, state = [], 0, 0
    for part, size in zip(phi.split(sizes), sizes, strict=True):
        rows = part.rows(size)
        layers.append(_Layer(np.arange(row, row + rows), np.arange(state, state + size), part))
        row, state = row + rows, state + size
    return layers[::-1]


def _ordered(A: Any, phi: Activation) -> list[_Layer]:
    """Each group of states in the first layer where all that it depends on is there."""
    sizes = np.array([group for count, *group in phi.groups(A.shape[0]) for _ in range(count)])
    kinds, ends = phi.split(sizes[:, 1].tolist()), sizes.cumsum(0)
    owner_of_row, owner_of_state = (np.repeat(np.arange(len(sizes)), sizes[:, axis]) for axis in (0, 1))
    row, column = A.tocoo().coords
    pairs = owner_of_row[row], owner_of_state[column]
    graph = sparse.csr_array((np.ones(A.nnz), pairs), shape=(len(sizes), len(sizes)))
    layers, waiting = [], np.ones(len(sizes))
    while waiting.any():
        ready = np.flatnonzero((waiting > 0) & (graph @ waiting == 0))
        if not ready.size:
            _refuse_cycle(graph, ends[:, 1] - sizes[:, 1])
        chosen = sorted(ready, key=lambda group: repr(kinds[group]))  # like beside like
        mixture = Blocks(*((plain(kinds[group]), int(sizes[group, 0])) for group in chosen)).blocks
        rows, states = (
            np.concatenate([np.arange(ends[g, axis] - sizes[g, axis], ends[g, axis]) for g in chosen])
            for axis in (0, 1)
        )
        layers.append(_Layer(rows, states, as_activation(mixture[0][0]) if len(mixture) == 1 else Blocks(*mixture)))
        waiting[ready] = 0
    return layers


def _refuse_cycle(graph: Any, first_state: Any) -> NoReturn:
    """Name states that depend on each other.

    Raises:
        ValueError: Always.
    """
    _, component = csgraph.connected_components(graph, connection="strong")
    loops = graph.diagonal() > 0
    size = np.bincount(component)[component]
    cycle = np.flatnonzero(component == component[np.flatnonzero((size > 1) | loops)[0]])
    shown = ", ".join(str(first_state[group]) for group in cycle[:5]) + (", ..." if cycle.size > 5 else "")
    raise ValueError(
        f"A is not strictly block-triangular in any order of the states: {cycle.size} of them depend on each other "
        f"in a cycle (number {shown}). Only a model without such cycles is a network of layers"
    )
