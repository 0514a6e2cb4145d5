"""Graphs and the implicit graph network: what is guaranteed, what is equal to what, and what it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import normal
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import implicitnets as inn
from implicitnets.models import Graph, ImplicitGraph
from implicitnets.solvers import Anderson, Dense, Picard, loop

F64 = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14, "max_steps": 1000}
EXACT: dict[str, Any] = {"solver": Anderson(**TIGHT), "backward": inn.Implicit(solver=Dense(**TIGHT))}


def edges(nodes: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(nodes, (2, count), generator=torch.Generator().manual_seed(seed))


def model(*sizes: int, seed: int = 0, **how: Any) -> ImplicitGraph:
    torch.manual_seed(seed)
    return ImplicitGraph(*sizes, **{**EXACT, **how}).double()


def radius(matrix: Tensor) -> float:
    return float(np.abs(np.linalg.eigvals(matrix.abs().detach().numpy())).max())


# graphs


@pytest.mark.parametrize("weighted", [False, True])
def test_the_normalized_adjacency_is_the_formula_and_has_eigenvalue_1(weighted):
    """Directed, with an edge given twice, a self-loop, an isolated node, and weights of both signs."""
    index = torch.tensor([[0, 1, 1, 2, 2, 3, 3], [1, 2, 2, 0, 3, 3, 0]])
    weight = normal(7, dtype=F64) if weighted else torch.ones(7, dtype=F64)
    a = torch.zeros(5, 5, dtype=F64).index_put((index[1], index[0]), weight, accumulate=True)
    loops, degree = torch.eye(5, dtype=F64), torch.ones(5, dtype=F64)
    degree += torch.zeros(5, dtype=F64).index_add(0, index[1], weight.abs())
    wanted = (a + loops) / degree.sqrt()[:, None] / degree.sqrt()
    found = Graph.from_edges(index, 5, weight=weight)
    torch.testing.assert_close(found.dense(), wanted)
    assert radius(found.dense()) <= 1 + 1e-12
    if not weighted:  # else the edge given twice is less in sum than in absolute values
        assert radius(found.dense()) >= 1 - 1e-12


@pytest.mark.parametrize("kind", ["random", "cycle", "bipartite", "path", "nilpotent", "triangles and a star"])
def test_an_adjacency_is_divided_by_a_bound_of_its_eigenvalue(kind):
    n = 12
    a = torch.zeros(n, n, dtype=F64)
    if kind == "random":
        a = normal(n, n, dtype=F64) * 3
    elif kind == "bipartite":
        a[:4, 4:] = 1
        a[4:, :4] = 1
    elif kind == "triangles and a star":
        a[0, 1:6] = a[1:6, 0] = 1
        a[6, 7] = a[7, 8] = a[8, 6] = 4
    else:
        a[torch.arange(n - 1), torch.arange(1, n)] = 2
        a = a + a.T if kind == "path" else a
        a[n - 1, 0] = 2 if kind == "cycle" else 0
    bound = float(Graph.from_adjacency(a / a.abs().sum()).perron_bound()[0] * a.abs().sum())
    assert radius(a) - 1e-9 <= bound <= max(1.02 * radius(a), 0.1)
    graph = Graph.from_adjacency(a.to_sparse())
    assert radius(graph.dense()) <= 1 + 1e-9
    torch.testing.assert_close(graph.dense() * max(bound, 1), a, rtol=1e-4, atol=1e-9)


def test_an_adjacency_below_1_is_taken_as_it_is_in_any_layout():
    a = 0.1 * normal(4, 4, dtype=F64)
    a[1] = 0
    for same in (a, a.to_sparse_coo(), a.to_sparse_coo().T):
        assert torch.equal(Graph.from_adjacency(same).dense(), same.to_dense())


def test_the_graphs_of_a_batch_are_divided_one_by_one():
    a, batch = torch.zeros(5, 5, dtype=F64), torch.tensor([0, 1, 0, 1, 1])
    a[0, 2] = a[2, 0] = 10
    a[1, 3] = a[3, 4] = a[4, 1] = 0.5
    found = Graph.from_adjacency(a, batch=batch).dense()
    torch.testing.assert_close(found[0, 2], torch.tensor(1.0, dtype=F64))
    assert found[1, 3] == 0.5


def test_no_matrix_is_written_out():
    n = 100_000  # whose square would not fit into memory
    ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
    layer = ImplicitGraph(1, 2)
    layer(torch.ones(n, 1), ring).sum().backward()
    assert layer.forward_solution.converged.all()
    assert layer.B.grad.abs().sum() > 0


# the model


def test_where_all_is_positive_it_is_the_solution_of_a_linear_equation():
    layer, index, u = model(3, 4), edges(6, 14), normal(6, 3, dtype=F64).abs()
    with torch.no_grad():
        for p in layer.parameters():
            p.abs_()
        x = layer(u, index)
        a = Graph.from_edges(index, 6, weight=torch.ones(14, dtype=F64)).dense()
        injection = u @ layer.B.T + layer.b
        wanted = torch.linalg.solve(torch.eye(24) - torch.kron(a, layer.W), injection.flatten()).reshape(6, 4)
    torch.testing.assert_close(x, wanted)


def test_it_knows_no_numbers_of_nodes():
    layer, index, u = model(3, 4), edges(7, 14), normal(7, 3, dtype=F64)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])  # node order[i] becomes node i
    renamed = order.argsort()[index]
    torch.testing.assert_close(layer(u[order], renamed), layer(u, index)[order])


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_a_graph_of_a_batch_is_solved_as_if_alone(activation):
    """Graphs of 4, 1 and 6 nodes, their nodes in any order; φ(0) is not 0 for the sigmoid."""
    layer = model(3, 4, activation=activation, solver=Picard(rtol=1e-6, max_steps=500))
    layer.parametrizations.W.original.data.abs_().mul_(4)
    batch, u = torch.tensor([2, 0, 2, 1, 0, 2, 2, 0, 2, 0, 2]), normal(11, 3, dtype=F64)
    u[batch == 0] *= 1e-3
    parts = [(batch == g).nonzero().flatten() for g in range(3)]
    inside = [edges(len(part), 2 * len(part), seed=g) for g, part in enumerate(parts)]
    whole = torch.cat([part[index] for part, index in zip(parts, inside, strict=True)], dim=1)
    together = layer(u, whole, batch)
    steps, state = layer.forward_solution.steps, layer.forward_solution.value
    assert activation == "sigmoid" or len(set(steps.tolist())) > 1
    for g in range(3):
        torch.testing.assert_close(layer(u[parts[g]], inside[g]), together[parts[g]])
        torch.testing.assert_close(state[g].norm(), together[parts[g]].norm())  # the padding counts for nothing
        assert layer.forward_solution.steps.tolist() == [int(steps[g])]
    layer(u, whole, batch, z0=together.detach())
    assert layer.forward_solution.steps.max() <= 1


def test_several_samples_on_one_graph_are_cut_as_they_finish(monkeypatch):
    monkeypatch.setattr(loop, "PRICE", 0)
    layer, index, u = (
        model(3, 4, solver=Picard(rtol=1e-9, atol=1e-6, max_steps=500)),
        edges(5, 10),
        normal(8, 5, 3, dtype=F64),
    )
    u[:4] *= 1e-6
    rows, product = [], Graph.propagate
    monkeypatch.setattr(Graph, "propagate", lambda *args: rows.append(len(args[1])) or product(*args))
    found = layer(u, index)
    assert rows[-1] < 8
    torch.testing.assert_close(found, torch.stack([layer(sample, index) for sample in u]), rtol=1e-5, atol=1e-5)


def test_weights_of_edges_are_learned():
    layer, index, u = model(2, 3, activation="tanh"), edges(5, 9), normal(5, 2, dtype=F64)
    weight = normal(9, dtype=F64).abs().requires_grad_()
    batch = torch.zeros(5, dtype=torch.int64)
    for given in (None, batch):
        assert torch.autograd.gradcheck(
            lambda w, given=given: layer(u, Graph.from_edges(index, 5, weight=w, batch=given)), weight
        )


def test_it_is_well_posed_for_any_weights_and_any_adjacency():
    layer, u = model(3, 4, activation="relu"), 100 * normal(6, 3, dtype=F64)
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(1000)
        graph = Graph.from_adjacency(50 * normal(6, 6, dtype=F64))
        wanted = layer(u, graph)
        for seed in range(20):
            found = layer(u, graph, z0=1e6 * normal(6, 4, dtype=F64, seed=seed))
            assert layer.forward_solution.converged.all()
            torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7 * float(wanted.abs().max()))
    assert (layer.W.abs().sum(1) > 0.94).all()  # the constraint is active


def chains(length: int, count: int = 10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chains whose nodes all have the class that only the first of them shows."""
    nodes = torch.arange(count * length).reshape(count, length)
    label = torch.arange(count) % 2
    u = torch.zeros(count * length, 2)
    u[nodes[:, 0], label] = 1
    index = torch.stack([nodes[:, :-1].flatten(), nodes[:, 1:].flatten()])
    return u, index, torch.arange(count).repeat_interleave(length), label.repeat_interleave(length)


class TwoConvolutions(nn.Module):
    """The graph convolutional network of Kipf and Welling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 16), nn.Linear(16, 16)

    def forward(self, u: Tensor, graph: Graph) -> Tensor:
        hidden = graph.propagate(self.first(u)[None], graph.weight).relu()
        return graph.propagate(self.second(hidden), graph.weight)[0].relu()


def accuracy(layer: nn.Module, length: int, steps: int = 60) -> float:
    u, index, _, label = chains(length)
    graph, head = Graph.from_edges(index, len(u)), nn.Linear(16, 2)
    train = torch.rand(len(u), generator=torch.Generator().manual_seed(0)) < 0.2
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], 2e-2)
    for _ in range(steps):
        loss = cross_entropy(head(layer(u, graph))[train], label[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float((head(layer(u, graph)).argmax(1) == label)[~train].float().mean())


def test_it_hears_what_is_said_at_the_other_end_of_a_chain():
    torch.manual_seed(0)
    assert accuracy(ImplicitGraph(2, 16), length=30) >= 0.95
    assert accuracy(TwoConvolutions(), length=30) <= 0.65


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (ValueError, "states=0", lambda u, e: ImplicitGraph(3, 0)),
        (ValueError, "kappa must be in", lambda u, e: ImplicitGraph(3, 4, kappa=1.0)),
        (ValueError, "no activation is called 'gelu'", lambda u, e: ImplicitGraph(3, 4, activation="gelu")),
        (ValueError, r"u has shape \(5, 2\), not \(nodes, 3\)", lambda u, e: ImplicitGraph(3, 4)(u[:, :2], e)),
        (ValueError, "there are 4 nodes", lambda u, e: ImplicitGraph(3, 4)(u, Graph.from_edges(e % 4, 4))),
        (ValueError, "entries from 0 to 4, but there are 3", lambda u, e: ImplicitGraph(3, 4)(u[:3], e)),
        (ValueError, r"not \(2, edges\) of int64", lambda u, e: ImplicitGraph(3, 4)(u, e.T)),
        (TypeError, "graph must be a Graph or an edge_index", lambda u, e: ImplicitGraph(3, 4)(u, [[0], [1]])),
        (TypeError, "batch goes with an edge_index", lambda u, e: ImplicitGraph(3, 4)(u, Graph.from_edges(e, 5), e[0])),
        (ValueError, "joins two graphs", lambda u, e: ImplicitGraph(3, 4)(u, e, torch.arange(5))),
        (ValueError, r"batch has shape \(2,\)", lambda u, e: ImplicitGraph(3, 4)(u, e, torch.arange(2))),
        (ValueError, r"weight has shape \(2,\)", lambda u, e: Graph.from_edges(e, 5, weight=torch.ones(2))),
        (ValueError, "use Graph.from_edges", lambda u, e: Graph.from_adjacency(e)),
        (ValueError, "learn the weights", lambda u, e: Graph.from_adjacency(torch.eye(5).requires_grad_())),
        (
            ValueError,
            r"for one graph \(samples, 5, 3\)",
            lambda u, e: ImplicitGraph(3, 4)(u[None], torch.zeros(2, 0).long(), torch.arange(5)),
        ),
    ],
)
def test_it_says_what_is_wrong(error, text, call):
    with pytest.raises(error, match=text):
        call(torch.randn(5, 3), torch.tensor([[0, 1, 4], [1, 2, 0]]))
