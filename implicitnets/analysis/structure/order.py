"""In which order the states depend on each other: is the model in fact feed-forward?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.csgraph import breadth_first_order, connected_components
from torch import Tensor

from ...models import AffineForm

__all__ = ["Order", "depends", "order", "reached"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """Blocks of states such that each depends on itself and on later ones only.

    In this order A is upper block-triangular. Its diagonal blocks are zero where a block is a layer: states that do not
    depend on each other, at the same distance from what they depend on.

    Attributes:
        permutation: The states, those that are computed last standing first, (states,).
        sizes: States in each block.
        cyclic: Whether the states of a block depend on each other: they are one strongly connected component.
    """

    permutation: Tensor
    sizes: tuple[int, ...]
    cyclic: tuple[bool, ...]

    @property
    def feed_forward(self) -> bool:
        """Whether no state depends on itself: the model is a network of ``len(sizes)`` layers."""
        return not any(self.cyclic)

    def __str__(self) -> str:
        if self.feed_forward:
            layers = "1 layer" if len(self.sizes) == 1 else f"{len(self.sizes)} layers"
            return f"feed-forward, {layers} of {', '.join(map(str, self.sizes[::-1]))} states from the input on"
        loops = [size for size, cycle in zip(self.sizes, self.cyclic, strict=True) if cycle]
        blocks = "1 block" if len(self.sizes) == 1 else f"{len(self.sizes)} blocks"
        return f"{blocks}, feedback within {len(loops)} of them, of {', '.join(map(str, loops))} states"


def depends(form: AffineForm) -> scipy.sparse.csr_array:
    """Which state depends on which: (states, states), true where a row of the group that makes i has an entry at j."""
    groups = numbers(form, 1)
    rows, columns = form.A.detach().cpu().numpy().nonzero()
    shape = (int(groups[-1]) + 1, form.states)
    by_group = scipy.sparse.coo_array((np.ones(len(rows)), (groups[rows], columns)), shape=shape).tocsr()
    return by_group[numbers(form, 2)]


def numbers(form: AffineForm, axis: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The number of the group of each row (axis 1) or state (axis 2)."""
    sizes = np.concatenate([np.full(group[0], group[axis]) for group in form.activation.groups(form.rows)])
    return np.repeat(np.arange(len(sizes)), sizes)


def order(form: AffineForm) -> Order:
    """The strongly connected components of the states, in the order in which they are computed.

    States that the activation makes together stay together.
    """
    edges = depends(form)
    groups = numbers(form, 2)
    tied = scipy.sparse.coo_array(
        (np.ones(form.states), (np.arange(form.states), np.searchsorted(groups, groups))), shape=edges.shape
    )
    count, label = connected_components(edges + tied + tied.T, connection="strong")
    membership = scipy.sparse.coo_array((np.ones(form.states), (label, np.arange(form.states)))).tocsr()
    between = (membership @ edges @ membership.T).tocoo()
    cyclic = np.zeros(count, dtype=bool)
    cyclic[between.coords[0][between.coords[0] == between.coords[1]]] = True
    depth = _depths(between, count)
    # a cycle is a block of its own; layers are what has the same depth
    block = [(-int(depth[c]), int(c) if cyclic[c] else -1) for c in label]
    permutation = sorted(range(form.states), key=lambda state: (*block[state], state))
    runs = [(key, len(list(run))) for key, run in groupby(permutation, key=lambda state: block[state])]
    return Order(
        permutation=torch.tensor(permutation),
        sizes=tuple(size for _, size in runs),
        cyclic=tuple(component >= 0 for (_, component), _ in runs),
    )


def _depths(between: scipy.sparse.coo_array, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The length of the longest chain of components that each one depends on."""
    later, earlier = between.coords
    proper = later != earlier
    later, earlier = later[proper], earlier[proper]
    depth = np.zeros(count, dtype=np.int64)
    while True:  # at most as often as there are components in a chain
        deeper = depth.copy()
        np.maximum.at(deeper, later, depth[earlier] + 1)
        if (deeper == depth).all():
            return depth
        depth = deeper


def reached(edges: scipy.sparse.csr_array, start: Tensor) -> Tensor:
    """Which nodes can be reached along edges (from row to column) from those of ``start``, themselves included."""
    size = len(start)
    first = scipy.sparse.coo_array(start.cpu().numpy()[None].astype(float))
    source = scipy.sparse.vstack([edges, first])
    graph = scipy.sparse.hstack([source, scipy.sparse.coo_array((size + 1, 1))]).tocsr()
    found = breadth_first_order(graph, size, return_predecessors=False)
    mask = torch.zeros(size + 1, dtype=torch.bool)
    mask[torch.from_numpy(found.astype(np.int64))] = True
    return mask[:size]
