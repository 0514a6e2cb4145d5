"""The implicit graph neural network of Gu et al."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backward import Backward, Implicit
from ..constraints import InfNorm
from ..solvers import Anderson, Solver
from .adjacency import Graph
from .deq import Equilibrium
from .implicit import ACTIVATIONS
from .starts import Start

__all__ = ["ImplicitGraph"]


class ImplicitGraph(Equilibrium):
    """X = φ(A X Wᵀ + U Bᵀ + b), row i of X the state of node i (IGNN: Gu, Chang, Zhu, Sojoudi and El Ghaoui 2020).

    Every node hears of every other that it is connected with, however far: a graph convolution of infinite depth. (The
    paper has nodes in columns, X = φ(WXA + BU).) It is well-posed for every U, and Picard's iteration converges, since
    ‖W‖∞ ≤ kappa < 1 and the Perron-Frobenius eigenvalue of |A| is at most 1, to which ``Graph`` holds it: the condition
    ‖W‖∞ λ_pf(|A|) < 1 of the paper's section on well-posedness. It is kept by projecting the rows of W on the ℓ1 ball.

    A sample is a graph: its steps and status are its own, while its nodes are solved together.

    Examples:
        >>> ring = torch.stack([torch.arange(6), (torch.arange(6) + 1) % 6])
        >>> model = ImplicitGraph(inputs=4, states=8)
        >>> model(torch.randn(6, 4), ring).shape
        torch.Size([6, 8])
        >>> two_triangles = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 0, 4, 5, 3]])
        >>> model(torch.randn(6, 4), two_triangles, torch.tensor([0, 0, 0, 1, 1, 1])).shape
        torch.Size([6, 8])
        >>> model.forward_solution.steps.shape
        torch.Size([2])

    Attributes:
        W: What a node does with what its neighbors send, (states, states), constrained.
        B: Input weights, (states, inputs).
        b: Bias, (states,).

    Args:
        inputs: Features of a node.
        states: Entries of the state of a node.
        activation: φ: a name in ``ACTIVATIONS``.
        kappa: The bound of ‖W‖∞, below 1. The closer to 1, the farther nodes hear, and the more steps it takes.
        solver: How the equilibrium is found.
        backward: How it is differentiated.
        start: Where the solver starts; None is zeros.

    Raises:
        ValueError: If a size is not positive, kappa not in (0, 1) or the activation unknown.
        TypeError: If solver, backward or start is not a value of its kind.
    """

    W: Tensor

    def __init__(
        self,
        inputs: int,
        states: int,
        *,
        activation: str = "relu",
        kappa: float = 0.95,
        solver: Solver = Anderson(rtol=1e-5, max_steps=300),
        backward: Backward = Implicit(),
        start: Start | None = None,
    ) -> None:
        super().__init__(solver, backward, start=start)
        for name, size in (("inputs", inputs), ("states", states)):
            if size < 1:
                raise ValueError(f"ImplicitGraph({name}={size}): {name} must be at least 1")
        if activation not in ACTIVATIONS:
            raise ValueError(f"no activation is called {activation!r}. There are: {', '.join(sorted(ACTIVATIONS))}")
        if not 0 < kappa < 1:
            raise ValueError(f"ImplicitGraph(kappa={kappa}): kappa must be in (0, 1), or the model is not well-posed")
        self.inputs, self.states, self.activation, self.kappa = inputs, states, activation, kappa
        self.W = nn.Parameter(torch.empty(states, states))
        self.B = nn.Parameter(torch.empty(states, inputs))
        self.b = nn.Parameter(torch.zeros(states))
        with torch.no_grad():
            self.W.uniform_(-1, 1)
            self.W.mul_(kappa / 2 / self.W.abs().sum(1, keepdim=True))
            self.B.uniform_(-1, 1).mul_(inputs**-0.5)
        InfNorm(kappa=kappa).apply(self, "W")

    def forward(
        self, u: Tensor, graph: Graph | Tensor, batch: Tensor | None = None, z0: Tensor | None = None
    ) -> Tensor:
        """The states of the nodes.

        Args:
            u: Features of the nodes, of shape (nodes, inputs); or (samples, nodes, inputs) for several on one graph.
            graph: A ``Graph``; or an ``edge_index`` of shape (2, edges), for ``Graph.from_edges(graph, nodes,
                batch=batch)``, the normalization of GCN.
            batch: The graph that each node belongs to, (nodes,), where ``graph`` is an edge_index of several graphs.
            z0: Where to start: an earlier output, or ``forward_solution.value``.

        Returns:
            Their states, of the shape of u with ``states`` for ``inputs``.

        Raises:
            ValueError: If u does not fit the model or the graph, or the edges are wrong.
            TypeError: If graph is neither, or both a Graph and batch are given.

        Warns:
            ConvergenceWarning: If a graph did not converge.
        """
        graph = self._read(u, graph, batch)
        several = u.dim() == 3
        injection = functional.linear(u, self.B, self.b)
        injection = injection if several else graph.pack(injection)
        if z0 is not None and z0.dim() == 2:
            z0 = graph.pack(z0)
        phi, matrix = ACTIVATIONS[self.activation], self.W.T  # constrained once, not at every evaluation
        real = None if graph.place is None else graph.pack(torch.ones_like(u[:, :1]))

        def f(x: Tensor, injection: Tensor, weight: Tensor) -> Tensor:
            x = phi(graph.propagate(x @ matrix, weight[0]) + injection)
            return x if real is None else x * real  # or the padding would count where φ(0) ≠ 0

        # The axis in front keeps the weights from being taken for one a sample.
        state = self.equilibrium(f, z0, injection, graph.weight[None])
        return state if several else graph.unpack(state)

    def _read(self, u: Tensor, graph: Graph | Tensor, batch: Tensor | None) -> Graph:
        if u.dim() not in (2, 3) or u.shape[-1] != self.inputs:
            raise ValueError(
                f"u has shape {tuple(u.shape)}, not (nodes, {self.inputs}), or (samples, nodes, {self.inputs}) for "
                "several samples on one graph"
            )
        if isinstance(graph, Tensor):
            graph = Graph.from_edges(graph, u.shape[-2], weight=u.new_ones(graph.shape[1:]), batch=batch)
        elif not isinstance(graph, Graph):
            raise TypeError(f"graph must be a Graph or an edge_index of shape (2, edges), not {type(graph).__name__}")
        elif batch is not None:
            raise TypeError("batch goes with an edge_index; a Graph has it inside: Graph.from_edges(..., batch=batch)")
        nodes = graph.largest if graph.place is None else len(graph.place)
        if u.shape[-2] != nodes or (u.dim() == 3 and graph.graphs > 1):
            raise ValueError(
                f"u has shape {tuple(u.shape)}, and there are {nodes} nodes in {graph.graphs} graph(s): give "
                f"({nodes}, {self.inputs}), or for one graph (samples, {nodes}, {self.inputs})"
            )
        return graph

    def _start(self, inputs: tuple[Any, ...]) -> Tensor:
        return torch.zeros_like(inputs[0])

    def extra_repr(self) -> str:
        """Sizes, activation, bound and strategies."""
        sizes = f"inputs={self.inputs}, states={self.states}"
        return f"{sizes}, activation={self.activation!r}, kappa={self.kappa}, {super().extra_repr()}"
