"""What sparsity finds in models where it was planted, and exact elimination."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from implicitnets.activations import Blocks, GroupSort, MaxPool
from implicitnets.analysis import compress, region, sparsity
from implicitnets.analysis.structure import Exact
from implicitnets.constraints import InfNorm
from implicitnets.models import ImplicitModel, MonotoneDEQ, from_sequential

F64 = torch.float64
seeds = st.integers(0, 10_000)
few = settings(max_examples=20, deadline=None)


def draw(seed, inputs=4, states=8, outputs=3, activation="relu", norm=0.8, **options):
    """A model of random weights with rows of A of a given absolute sum."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=F64)

    A = normal(states, states)
    A *= norm / A.abs().sum(1, keepdim=True)
    weights = (A, normal(states, inputs), normal(outputs, states), normal(outputs, inputs))
    return ImplicitModel.from_matrices(*weights, normal(states), normal(outputs), activation=activation, **options)


def weights_of(model):
    return {name: getattr(model, name).detach().to_dense().clone() for name in ("A", "B", "C", "D", "b", "c")}


def with_weights(model, **options):
    options = {"activation": model.activation} | options
    return lambda weights: ImplicitModel.from_matrices(**weights, **options)


def outputs(model, u):
    """Of the equilibria, to rounding."""
    form = model.affine().map(Tensor.detach)
    x = form.solve(u).value
    for _ in range(100):  # a contraction
        x = form.activation(form.preactivation(x, u))
    return form.readout(x, u)


def cube(inputs, radius=1.0, centre=0.0):
    return region(torch.full((1, inputs), centre, dtype=F64), radius)


def samples(inputs, radius=1.0, centre=0.0, count=200):
    return centre + radius * (2 * torch.rand(count, inputs, generator=torch.Generator().manual_seed(1), dtype=F64) - 1)


def assert_same_outputs(model, smaller, u):
    torch.testing.assert_close(outputs(smaller, u), outputs(model, u), rtol=1e-12, atol=1e-12)


# What is planted is found, and goes


def dead(weights):
    weights["B"][2] = 0
    weights["A"][2] = -weights["A"][2].abs()
    weights["b"][2] = -0.5


def idle(weights):
    weights["C"][:, [1, 5]] = 0
    weights["A"][[i for i in range(8) if i not in (1, 5)]][:, [1, 5]] = 0
    for i in range(8):
        if i not in (1, 5):
            weights["A"][i, [1, 5]] = 0


def unreached(weights):
    weights["B"][[0, 3]] = 0
    for i in (0, 3):
        weights["A"][i, [j for j in range(8) if j not in (0, 3)]] = 0
    weights["b"][[0, 3]] = 1.0


def double(weights):
    for name in ("A", "B", "b"):
        weights[name][6] = 0.5 * weights[name][4]
        weights[name][7] = weights[name][4]


PLANTS = {
    "dead": (dead, "constant", {2}),
    "idle": (idle, "idle", {1, 5}),
    "unreached": (unreached, "unreached", {0, 3}),
    "double": (double, "duplicates", {6, 7}),
}


@pytest.mark.parametrize("plant", PLANTS)
@given(seed=seeds)
@example(seed=416)  # a linear state beside the multiples
@few
def test_what_is_planted_is_found_and_can_go_exactly(plant, seed):
    change, name, expected = PLANTS[plant]
    model = draw(seed)
    weights = weights_of(model)
    change(weights)
    model = with_weights(model)(weights)
    found = getattr(sparsity(model), name)
    assert expected <= set((found.entry if name == "duplicates" else found).tolist())
    result = compress(model, Exact(), region=cube(4))
    assert not expected & set(result.states.tolist())
    assert result.sizes == (8, len(result.states))
    assert result.bound.max() < 1e-11
    assert_same_outputs(model, result.model, samples(4))


@given(seed=seeds)
@few
def test_linear_states_are_folded_in(seed):
    model = draw(seed)
    weights = weights_of(model)
    weights["b"][[1, 4]] = 20.0  # active for all inputs of the cube
    model = with_weights(model)(weights)
    found = sparsity(model, region=cube(4))
    assert {1, 4} <= set(found.linear.tolist())
    assert not len(sparsity(model).linear)  # not for all inputs
    result = compress(model, region=cube(4))
    assert not {1, 4} & set(result.states.tolist())
    assert result.bound.max() < 1e-10
    assert_same_outputs(model, result.model, samples(4))
    assert {1, 4} <= set(compress(model, Exact(linear=False), region=cube(4)).states.tolist())


def test_states_of_the_identity_are_linear_everywhere():
    phi = Blocks(("relu", 5), ("identity", 3))
    model = draw(0, activation=phi)
    assert sparsity(model).linear.tolist() == [5, 6, 7]
    smaller = compress(model).model
    assert (smaller.states, smaller.activation) == (5, "relu")
    assert_same_outputs(model, smaller, samples(4, 10.0))


def test_opposite_states_are_one_where_the_activation_is_odd():
    for activation, merged in (("tanh", True), ("relu", False), ("sigmoid", False)):
        model = draw(1, activation=activation)
        weights = weights_of(model)
        for name in ("A", "B", "b"):
            weights[name][7] = -weights[name][2]
        model = with_weights(model)(weights)
        smaller = compress(model).model
        assert smaller.states == (7 if merged else 8)
        assert_same_outputs(model, smaller, samples(4))


def test_multiples_are_no_duplicates_where_the_activation_is_not_homogeneous():
    for activation, merged in (("leaky_relu", True), ("tanh", False), ("relu", True)):
        model = draw(1, activation=activation)
        weights = weights_of(model)
        for name in ("A", "B", "b"):
            weights[name][7] = 0.5 * weights[name][2]
        assert compress(with_weights(model)(weights)).model.states == (7 if merged else 8)


def test_duplicates_of_duplicates_go_in_turn():
    """Two states that differ only in which of two equal states they see."""
    model = draw(2)
    weights = weights_of(model)
    for name in ("A", "B", "b"):
        weights[name][1] = weights[name][0]
        weights[name][3] = weights[name][2]
    weights["A"][3, 0], weights["A"][3, 1] = weights["A"][2, 1], weights["A"][2, 0]
    smaller = compress(with_weights(model)(weights)).model
    assert smaller.states == 6
    assert_same_outputs(with_weights(model)(weights), smaller, samples(4))


def test_groups_of_states_stay_together():
    phi = Blocks(("relu", 3), (MaxPool(size=2), 4), (GroupSort(size=2), 4))
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(11, 9, generator=generator, dtype=F64)
    A *= 0.5 / A.abs().sum(1, keepdim=True)
    B, C = (torch.randn(*shape, generator=generator, dtype=F64) for shape in ((11, 4), (2, 9)))
    C[:, [0, 3, 6]], A[:, [0, 3, 6]] = 0, 0  # of the first relu, the first maximum, one of two that are sorted together
    model = ImplicitModel.from_matrices(A, B, C, torch.zeros(2, 4, dtype=F64), activation=phi)
    assert sparsity(model).idle.tolist() == [0, 3, 6]
    result = compress(model)
    assert result.states.tolist() == [1, 2, 4, 5, 6, 7, 8]
    assert_same_outputs(model, result.model, samples(4))


def test_something_is_left_where_nothing_matters():
    model = draw(0)
    weights = weights_of(model)
    weights["C"][:] = 0
    result = compress(with_weights(model)(weights))
    assert result.model.states == 1
    assert_same_outputs(with_weights(model)(weights), result.model, samples(4))


# Order


@given(seed=seeds, layers=st.lists(st.integers(1, 4), min_size=1, max_size=4))
@few
def test_a_feed_forward_model_is_found_in_any_order(seed, layers):
    torch.manual_seed(seed)
    sizes = [4, *layers, 2]
    modules = [m for a, b in pairwise(sizes[:-1]) for m in (nn.Linear(a, b), nn.ReLU())]
    network = from_sequential(nn.Sequential(*modules, nn.Linear(sizes[-2], 2)).double(), 4)
    weights = weights_of(network)
    shuffled = torch.randperm(network.states)
    for name, axes in {"A": (0, 1), "B": (0,), "b": (0,), "C": (1,)}.items():
        for axis in axes:
            weights[name] = weights[name].index_select(axis, shuffled)
    model = ImplicitModel.from_matrices(**weights)
    found = sparsity(model).order
    assert found.feed_forward
    assert found.sizes == tuple(layers[::-1])
    assert "feed-forward" in str(found)
    A = weights["A"][found.permutation][:, found.permutation]
    ends = torch.tensor(found.sizes).cumsum(0).repeat_interleave(torch.tensor(found.sizes))
    assert (A[torch.arange(len(A)) < ends[:, None]] == 0).all()
    smaller = compress(model, Exact(linear=False)).model
    assert smaller.solver is None  # one pass
    assert_same_outputs(model, smaller, samples(4))


@given(seed=seeds, sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4))
@few
def test_blocks_with_feedback_are_found(seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    block = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    A = torch.rand(n, n, generator=generator, dtype=F64) + 0.1
    A[block[:, None] > block] = 0
    A *= 0.9 / A.abs().sum(1, keepdim=True)
    shuffled = torch.randperm(n, generator=generator)
    model = ImplicitModel.from_matrices(
        A[shuffled][:, shuffled], *(torch.ones(shape, dtype=F64) for shape in ((n, 2), (1, n), (1, 2)))
    )
    found = sparsity(model).order
    assert found.sizes == tuple(sizes)
    assert all(found.cyclic)
    assert not found.feed_forward
    assert torch.equal(block[shuffled][found.permutation], block)
    matrix = sparsity(model).ordered_matrix
    assert (matrix[:n, :n][block[:, None] > block] == 0).all()


# The record


def test_ranks_and_counts_are_those_of_the_matrices():
    model = draw(0)
    weights = weights_of(model)
    u, v = torch.randn(8, 2, dtype=F64), torch.randn(2, 8, dtype=F64)
    weights["A"] = u @ v / (u @ v).abs().sum()
    weights["D"] = torch.eye(3, 4, dtype=F64)
    weights["B"][weights["B"].abs() < 0.5] = 1e-9
    found = sparsity(with_weights(model)(weights)).spectra
    assert found["A"].rank == 2
    assert 1 <= found["A"].stable <= found["A"].effective <= 2.000001
    assert (found["D"].nonzeros, found["D"].rank) == (3, 3)
    assert found["D"].effective == pytest.approx(3)
    assert found["D"].stable == pytest.approx(3)
    assert found["B"].nonzeros == 32
    assert found["B"].large == int((weights["B"].abs() >= 0.5).sum())


def test_inputs_that_do_not_matter_are_named():
    model = draw(0)
    weights = weights_of(model)
    weights["C"][:, 4] = 0
    weights["A"][:, 4] = 0
    weights["B"][:, 1] = 0
    weights["B"][4, 1] = 3.0  # goes into a state that is idle
    weights["D"][:, 1] = 0
    for name in ("B", "D"):
        weights[name][:, 3] = -2 * weights[name][:, 0]
    found = sparsity(with_weights(model)(weights))
    assert found.unused_inputs.tolist() == [1]
    assert (found.duplicate_inputs.entry.tolist(), found.duplicate_inputs.of.tolist()) == ([3], [0])
    assert found.duplicate_inputs.factor.item() == pytest.approx(-2)
    text = str(found)
    assert "inputs without effect on outputs: 1: 1" in text
    assert "order of states: " in text


def test_activity_is_that_of_data():
    model = draw(0)
    x = samples(4)
    found = sparsity(model, x)
    states = model.affine().map(Tensor.detach).solve(x).value
    torch.testing.assert_close(found.activity, (states != 0).double().mean(0))
    assert found.inactive.tolist() == [j for j in range(8) if len(states[:, j].unique()) == 1]


def test_other_models_have_a_structure_too():
    model = nn.Sequential(nn.Flatten(), MonotoneDEQ(8, 6), nn.Linear(6, 3))
    found = sparsity(model, torch.rand(5, 2, 4), input_shape=(2, 4))
    assert found.matrix.shape == (9, 14)
    assert found.spectra["C"].shape == (3, 6)


def test_bad_arguments_are_named():
    model = draw(0)
    with pytest.raises(ValueError, match="tol=2"):
        sparsity(model, tol=2)
    with pytest.raises(ValueError, match="region is of inputs with 3 entries, and the model takes 4"):
        sparsity(model, region=cube(3))


def test_the_constraint_stays_where_it_is_kept():
    model = draw(0, constraint=InfNorm(kappa=0.85))
    assert compress(model).model.constraint == InfNorm(kappa=0.85)
