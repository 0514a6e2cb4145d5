"""The product of a sparse matrix with a dense one, for derivatives of every order and mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Edges", "propagate"]


@dataclass(frozen=True, eq=False)
class Edges:
    """Where a square sparse matrix has its entries: an edge from column ``source`` to row ``target``, sorted by target.

    Attributes:
        source: Column of each entry, (edges,).
        target: Row of each entry, (edges,), ascending.
        starts: Where the entries of each row begin, (nodes,).
        back: The order that sorts the entries by source.
        back_starts: Where the entries of each column begin in that order, (nodes,).
    """

    source: Tensor
    target: Tensor
    starts: Tensor
    back: Tensor
    back_starts: Tensor

    @staticmethod
    def of(source: Tensor, target: Tensor, nodes: int) -> tuple[Edges, Tensor]:
        """The edges, sorted, and the order in which they now are."""
        order = target.argsort(stable=True)
        source, target = source[order], target[order]
        back = source.argsort(stable=True)
        places = torch.arange(nodes, device=source.device)
        starts = torch.searchsorted(target, places)
        return Edges(source, target, starts, back, torch.searchsorted(source[back], places)), order

    @property
    def nodes(self) -> int:
        """Rows, and columns, of the matrix."""
        return len(self.starts)

    def sum(self, weight: Tensor, x: Tensor, *, transposed: bool) -> Tensor:
        """The product of the matrix, or its transpose, with x, (nodes, columns). No derivatives."""
        columns, weight = (self.target[self.back], weight[self.back]) if transposed else (self.source, weight)
        starts = self.back_starts if transposed else self.starts
        if not len(columns) or not x.shape[1]:
            return torch.zeros_like(x)
        weight = weight.to(x.dtype).contiguous()
        total: Tensor = torch.embedding_bag(x.contiguous(), columns, starts, False, 0, False, weight)[0]
        return total


def propagate(edges: Edges, weight: Tensor, x: Tensor) -> Tensor:
    """A x with A[target, source] = weight: row i is the weighted sum of what the neighbors of i send.

    Costs edges · columns multiplications, and no memory for the edges' messages.

    Args:
        edges: Where A has entries.
        weight: Their values, (edges,).
        x: A matrix, (nodes, columns).
    """
    product: Tensor = _Product.apply(edges, False, weight, x)  # type: ignore[no-untyped-call]
    return product


class _Product(torch.autograd.Function):
    """(edges, transposed, weight, x) -> A x or Aᵀ x; bilinear, so that its derivatives are of the same kind."""

    @staticmethod
    def forward(edges: Edges, transposed: bool, weight: Tensor, x: Tensor) -> Tensor:
        return edges.sum(weight, x, transposed=transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.edges, ctx.transposed, weight, x = inputs
        ctx.save_for_backward(weight, x)
        ctx.save_for_forward(weight, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, x = ctx.saved_tensors
        _, _, of_weight, of_x = ctx.needs_input_grad
        sender, receiver = ctx.edges.source, ctx.edges.target
        if ctx.transposed:
            sender, receiver = receiver, sender
        return (
            None,
            None,
            (g.index_select(0, receiver) * x.index_select(0, sender)).sum(1).to(weight.dtype) if of_weight else None,
            _Product.apply(ctx.edges, not ctx.transposed, weight, g) if of_x else None,  # type: ignore[no-untyped-call]
        )

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, weight_tangent: Tensor | None, x_tangent: Tensor | None) -> Tensor:
        weight, x = ctx.saved_tensors
        terms = [(weight_tangent, x), (weight, x_tangent)]
        products = [
            _Product.apply(ctx.edges, ctx.transposed, a, b)  # type: ignore[no-untyped-call]
            for a, b in terms
            if a is not None and b is not None
        ]
        total: Tensor = sum(products[1:], products[0])
        return total

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], edges: Edges, transposed: bool, weight: Tensor, x: Tensor
    ) -> tuple[Tensor, int]:
        _, _, of_weight, of_x = in_dims
        if of_weight is None and of_x is not None:  # one matrix: the copies of x lie side by side
            x = x.movedim(of_x, 1)
            flat = _Product.apply(edges, transposed, weight, x.flatten(1))  # type: ignore[no-untyped-call]
            return flat.unflatten(1, x.shape[1:]), 1
        products = [
            _Product.apply(  # type: ignore[no-untyped-call]
                edges,
                transposed,
                weight if of_weight is None else weight.select(of_weight, i),
                x if of_x is None else x.select(of_x, i),
            )
            for i in range(info.batch_size)
        ]
        return torch.stack(products), 0
