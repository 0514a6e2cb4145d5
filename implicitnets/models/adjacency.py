"""Graphs as the models on them see them: edges with weights, the nodes laid out graph by graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .sparse import Pattern, sparse_product

__all__ = ["Graph"]

POWERS = 100
"""Steps of the power iteration. Its bound of the eigenvalue holds after any number of them."""


@dataclass(frozen=True, eq=False)
class Graph:
    """One graph or a batch of graphs, each with a weighted adjacency of Perron-Frobenius eigenvalue at most 1.

    Made by ``from_edges`` or ``from_adjacency``. Entry (i, j) of an adjacency A is the weight of the edge j -> i, so
    that row i of AX is what the neighbors of node i send it.

    Attributes:
        pattern: The edges between places: node k of graph g has the place ``g * largest + k``.
        weight: The weight of each edge, in the order of ``pattern``. Edges given several times are one, of their sum.
        place: The place of each node, or None where that is its number (one graph).
        graphs: How many graphs there are.
        largest: The nodes of the largest of them.
    """

    pattern: Pattern
    weight: Tensor
    place: Tensor | None
    graphs: int
    largest: int

    @staticmethod
    def from_edges(
        edge_index: Tensor, nodes: int, *, weight: Tensor | None = None, batch: Tensor | None = None
    ) -> Graph:
        """The graph of an ``edge_index``, normalized as in GCN: D^(−1/2) (A + I) D^(−1/2) (Kipf and Welling 2017).

        D has the absolute row sums of A + I on its diagonal. So |D^(−1/2) (A + I) D^(−1/2)| is similar to a matrix of
        row sums 1, and its Perron-Frobenius eigenvalue is 1: for directed graphs and negative weights too.

        Examples:
            >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
            >>> Graph.from_edges(path, nodes=3).dense()
            tensor([[0.5000, 0.4082, 0.0000],
                    [0.4082, 0.3333, 0.4082],
                    [0.0000, 0.4082, 0.5000]])

        Args:
            edge_index: int64 of shape (2, edges), sources above targets. Both directions of an undirected edge.
            nodes: How many nodes there are.
            weight: Weights of shape (edges,), which may need a gradient; None is 1 each.
            batch: The graph that each node belongs to, int64 of shape (nodes,), where there are several.

        Raises:
            ValueError: If a shape, a dtype or an index is wrong, or an edge joins two graphs.
        """
        _check_edges(edge_index, nodes, weight)
        loops = torch.arange(nodes, device=edge_index.device)
        source, target = torch.cat([edge_index, loops.expand(2, -1)], dim=1)
        if weight is None:
            weight = torch.ones(edge_index.shape[1], device=edge_index.device)
        weight = torch.cat([weight, weight.new_ones(nodes)])
        scale = weight.new_zeros(nodes).index_add(0, target, weight.abs()).rsqrt()
        return _laid_out(source, target, scale[target] * weight * scale[source], nodes, batch)

    @staticmethod
    def from_adjacency(adjacency: Tensor, *, batch: Tensor | None = None) -> Graph:
        """The graph of an adjacency as it is, divided by its Perron-Frobenius eigenvalue where that is above 1.

        What it is divided by is the bound max_i (|A|v)_i / v_i of Collatz and Wielandt, v > 0 from power iteration:
        never below the eigenvalue. It is found for each graph on its own, once: make the graph before the training.

        Args:
            adjacency: Shape (nodes, nodes), sparse in any layout or dense.
            batch: The graph that each node belongs to, int64 of shape (nodes,), where there are several.

        Raises:
            ValueError: If a shape or dtype is wrong, or an edge joins two graphs, or the adjacency needs a gradient.
        """
        if adjacency.dim() != 2 or adjacency.shape[0] != adjacency.shape[1] or not adjacency.is_floating_point():
            raise ValueError(
                f"adjacency has shape {tuple(adjacency.shape)} and dtype {adjacency.dtype}, not (nodes, nodes) of "
                "floating point: for a list of edges use Graph.from_edges(edge_index, nodes)"
            )
        if adjacency.requires_grad:
            raise ValueError(
                "adjacency needs a gradient, which does not run through its eigenvalue: learn the weights of "
                "Graph.from_edges(edge_index, nodes, weight=weight) instead"
            )
        coordinates = adjacency.to_sparse_coo().coalesce()
        (target, source), weight = coordinates.indices(), coordinates.values()
        graph = _laid_out(source, target, weight, adjacency.shape[0], batch)
        divisor = graph.perron_bound().clamp_min(1)[graph.pattern.rows // max(graph.largest, 1)]
        return Graph(graph.pattern, graph.weight / divisor, graph.place, graph.graphs, graph.largest)

    def perron_bound(self) -> Tensor:
        """An upper bound of the Perron-Frobenius eigenvalue of |A| for each graph, of shape (graphs,)."""
        size = self.weight.detach().abs()
        v = size.new_ones(self.graphs, self.largest)
        best = torch.full_like(v[:, 0], torch.inf) if self.largest else v.new_zeros(self.graphs)
        tiny = torch.finfo(v.dtype).eps
        for _ in range(POWERS if self.largest else 0):
            sent = sparse_product(self.pattern, size, v.reshape(1, -1)).reshape(v.shape)
            best = torch.minimum(best, (sent / v).amax(1))
            v = sent + best[:, None].clamp_min(tiny) * v  # shifted, so that it does not oscillate on bipartite graphs
            v = (v / v.amax(1, keepdim=True)).clamp_min(tiny)
        return best

    def pack(self, x: Tensor) -> Tensor:
        """(nodes, features) -> (graphs, largest, features), zero where there is no node."""
        if self.place is None:
            return x[None]
        packed = x.new_zeros(self.graphs * self.largest, x.shape[1]).index_copy(0, self.place, x)
        return packed.reshape(self.graphs, self.largest, x.shape[1])

    def unpack(self, z: Tensor) -> Tensor:
        """The way back."""
        return z[0] if self.place is None else z.flatten(0, 1).index_select(0, self.place)

    def propagate(self, x: Tensor, weight: Tensor) -> Tensor:
        """A X for each graph, or for each of several X on one graph: ``(batch, largest, features)`` to the same."""
        places = self.pattern.shape[0]
        # On one graph the samples are apart; a batch of graphs is one block-diagonal matrix.
        rows = x.transpose(1, 2) if x.shape[1] == places else x.reshape(1, places, x.shape[2]).transpose(1, 2)
        sent = sparse_product(self.pattern, weight, rows.flatten(0, 1))
        return sent.reshape(rows.shape).transpose(1, 2).reshape(x.shape)

    def dense(self) -> Tensor:
        """The adjacency, written out: (nodes, nodes)."""
        matrix = self.weight.new_zeros(self.pattern.shape)
        matrix = matrix.index_put((self.pattern.rows, self.pattern.columns), self.weight)
        return matrix if self.place is None else matrix[self.place][:, self.place]


def _check_edges(edge_index: Tensor, nodes: int, weight: Tensor | None) -> None:
    if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        raise ValueError(
            f"edge_index has shape {tuple(edge_index.shape)} and dtype {edge_index.dtype}, not (2, edges) of int64: "
            "write the sources above the targets, or use Graph.from_adjacency(matrix)"
        )
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < nodes:
        raise ValueError(
            f"edge_index has entries from {int(edge_index.min())} to {int(edge_index.max())}, but there are {nodes} "
            f"nodes: they are numbered from 0 to {nodes - 1}"
        )
    if weight is not None and (weight.shape != edge_index.shape[1:] or not weight.is_floating_point()):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and dtype {weight.dtype}, not ({edge_index.shape[1]},) of "
            "floating point: one number for each edge"
        )


def _check_batch(source: Tensor, target: Tensor, nodes: int, batch: Tensor) -> None:
    if batch.shape != (nodes,) or batch.dtype != torch.int64 or (nodes and int(batch.min()) < 0):
        raise ValueError(
            f"batch has shape {tuple(batch.shape)} and dtype {batch.dtype}, not ({nodes},) of int64 from 0: the number "
            "of its graph for each node"
        )
    if bool((batch[source] != batch[target]).any()):
        raise ValueError("an edge joins two graphs of the batch: their nodes have to be of one graph")


def _laid_out(source: Tensor, target: Tensor, weight: Tensor, nodes: int, batch: Tensor | None) -> Graph:
    """The graph of these edges, its nodes put in their places."""
    place, graphs, largest = None, 1, nodes
    if batch is not None:
        _check_batch(source, target, nodes, batch)
        counts = torch.bincount(batch)
        graphs = max(len(counts), 1)
    if batch is not None and graphs > 1:
        largest, order = int(counts.max()), batch.argsort(stable=True)
        rank = torch.arange(nodes, device=batch.device) - (counts.cumsum(0) - counts)[batch[order]]
        place = torch.empty_like(order).index_copy(0, order, batch[order] * largest + rank)
        source, target = place[source], place[target]
    places = graphs * largest
    entry, which = (target * places + source).unique(return_inverse=True)
    weight = weight.new_zeros(len(entry)).index_add(0, which, weight)
    indices = torch.stack([entry // max(places, 1), entry % max(places, 1)])
    return Graph(Pattern(indices, (places, places)), weight, place, graphs, largest)
