"""Smaller models: what the methods do, that they are well-posed, and that the bound of the change is never exceeded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sparsity import cube, draw, outputs, samples, weights_of
from torch import Tensor, nn

from implicitnets.activations import Blocks, MaxPool
from implicitnets.analysis import Bounds, compress, prune, region, sparsity, structure
from implicitnets.analysis.structure import (
    Exact,
    Inputs,
    LowRank,
    Magnitude,
    Match,
    Quantize,
    Salience,
    Share,
    Shrink,
    States,
)
from implicitnets.constraints import InfNorm, Monotone
from implicitnets.models import ImplicitModel, MonotoneDEQ, affine
from implicitnets.prox import L0, L1, GroupL1, ReverseHuber

F64 = torch.float64
METHODS = [
    Exact(),
    Magnitude(keep=0.5),
    Magnitude(keep=0.2, matrices="BD"),
    Salience(keep=0.5),
    Shrink(penalty=L1(0.05)),
    Shrink(penalty=L0(0.01)),
    Shrink(penalty=ReverseHuber(0.05, 0.3)),
    Shrink(penalty=GroupL1(0.5, dim=0)),
    States(keep=5),
    Inputs(keep=3),
    LowRank(rank=3),
    LowRank(rank=2, sparse=10),
    Quantize(bits=8),
    Quantize(bits=3),
    Share(values=16),
    Share(values=2, matrices="A"),
    Match(penalty=L1(1e-3), kappa=0.9),
]
MODELS = {
    "relu": lambda: draw(0, constraint=InfNorm(kappa=0.95)),
    "near 1": lambda: draw(1, norm=0.999),
    "tanh": lambda: draw(2, activation="tanh"),
    "blocks": lambda: draw(3, activation=Blocks(("leaky_relu", 3), ("sigmoid", 5))),
    "float32": lambda: draw(4).float(),
    "huge": lambda: scaled(draw(5), 1e6),
}
each_method = pytest.mark.parametrize("method", METHODS, ids=repr)
each_model = pytest.mark.parametrize("name", MODELS)


def scaled(model, factor):
    weights = weights_of(model)
    for name in ("B", "b", "D"):
        weights[name] *= factor
    return ImplicitModel.from_matrices(**weights)


def worst(change, model, u, smaller):
    """By how much the differences leave the bounds of one region."""
    difference = outputs(model, u) - outputs(smaller, u)
    size = 1e-12 * (1 + outputs(model, u).abs().max())  # of the equilibria that are found
    return torch.maximum(change.low - difference, difference - change.high).max() <= size


def climb(model, smaller, low, high, steps=10):
    """Inputs that drive the outputs apart: ascent on each difference, from corners."""
    forms = [affine(m.double()).map(Tensor.detach) for m in (model, smaller)]
    u = torch.where(torch.rand(64, low.shape[1], generator=torch.Generator().manual_seed(3)) > 0.5, high, low).to(F64)
    signs = torch.tensor([1.0, -1.0]).repeat(32)[:, None]
    for _ in range(steps):
        u.requires_grad_()
        first, second = (form.readout(form.solve(u).value, u) for form in forms)
        (gradient,) = torch.autograd.grad((signs * (first - second)).gather(1, pick(first)).sum(), u)
        u = torch.where(gradient > 0, 0.5 * (u + high), torch.where(gradient < 0, 0.5 * (u + low), u)).detach()
    return u


def pick(y):
    return (torch.arange(len(y)) // 2 % y.shape[1])[:, None]


# Soundness


@each_model
@each_method
def test_no_input_leaves_the_bound(name, method):
    model = MODELS[name]()
    x = samples(4, count=100).to(next(model.parameters()).dtype)
    result = compress(model, method, region=cube(4, 0.5, 0.2), x=x)
    before, after = model.double(), result.model.double()
    assert result.change.low.isfinite().all()
    assert worst(result.change, before, samples(4, 0.5, 0.2, count=3000), after)
    assert worst(result.change, before, climb(before, after, torch.full((1, 4), -0.3), torch.full((1, 4), 0.7)), after)


@given(seed=st.integers(0, 10_000), radius=st.sampled_from([0.0, 1e-3, 0.1, 3.0]), method=st.sampled_from(METHODS))
@settings(max_examples=30, deadline=None)
def test_no_input_leaves_the_bound_of_any_model(seed, radius, method):
    model = draw(seed, norm=0.9)
    u = samples(4, count=40)
    result = compress(model, method, region=region(u[:3], radius), x=u)
    for i in range(3):
        bound = Bounds(result.change.low[i], result.change.high[i])
        near = u[i] + radius * samples(4, count=300)
        assert worst(bound, model, near, result.model)


def test_a_bound_of_two_models_that_differ_is_not_zero_and_not_loose():
    model = draw(0)
    weights = weights_of(model)
    weights["D"][1, 2] += 0.25
    weights["c"][0] -= 0.5
    form = ImplicitModel.from_matrices(**weights).affine().map(Tensor.detach)
    first, all_states = model.affine().map(Tensor.detach), torch.arange(8)
    change = structure.output_change(first, form, all_states, all_states, cube(4))
    torch.testing.assert_close(change.high[0], torch.tensor([0.5, 0.25, 0.0], dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(change.low[0], torch.tensor([0.5, -0.25, 0.0], dtype=F64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [Magnitude(keep=0.5), Quantize(bits=8), Exact()], ids=repr)
def test_models_that_are_monotone_and_no_contraction(method):
    torch.manual_seed(0)
    model = nn.Sequential(MonotoneDEQ(4, 6, m=0.5), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    form = affine(model).map(Tensor.detach)
    assert torch.linalg.eigvals(form.A.abs()).abs().max() > 1
    result = compress(model, method, region=cube(4))
    assert result.change.low.isfinite().all()
    u = samples(4, count=2000)
    after = affine(result.model).map(Tensor.detach)
    difference = (form.readout(form.solve(u).value, u) - after.readout(after.solve(u).value, u)).abs()
    assert (difference <= result.bound + 1e-9).all()


def test_groups_of_rows_have_a_bound_too():
    phi = Blocks(("relu", 4), (MaxPool(size=2), 8))
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(12, 8, generator=generator, dtype=F64)
    A *= 0.7 / A.abs().sum(1, keepdim=True)
    B, C, D = (torch.randn(*shape, generator=generator, dtype=F64) for shape in ((12, 4), (2, 8), (2, 4)))
    model = ImplicitModel.from_matrices(A, B, C, D, activation=phi)
    for method in (Magnitude(keep=0.5), States(keep=6), Quantize(bits=5)):
        result = compress(model, method, region=cube(4))
        assert result.model.activation == phi or isinstance(method, States)
        assert worst(result.change, model, samples(4, count=2000), result.model)


# What the methods do


@pytest.mark.parametrize("name", ["relu", "near 1", "float32"])
@each_method
def test_the_smaller_model_is_proved_to_be_well_posed(name, method):
    model = MODELS[name]()
    result = compress(model, method, x=samples(4, count=50).to(next(model.parameters()).dtype))
    assert isinstance(result.model, ImplicitModel)
    assert result.proof.margin > 0
    A = result.model.A.detach().to_dense().double()
    slopes = torch.rand(200, len(A), 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    slopes[::2] = slopes[::2].round()
    assert (torch.linalg.det(torch.eye(len(A)) - slopes * A) > 0).all()
    assert result.weights[1] <= result.weights[0]
    assert next(result.model.parameters()).dtype == next(model.parameters()).dtype


@pytest.mark.parametrize("keep", [0.05, 0.3, 1.0])
def test_magnitude_keeps_the_largest_entries(keep):
    model = draw(0)
    result = compress(model, Magnitude(keep=keep))
    states = result.states
    before = torch.cat([model.A[states][:, states], model.B[states]], 1), torch.cat([model.C[:, states], model.D], 1)
    small = result.model
    after = (
        torch.cat([small.A.to_dense(), small.B.to_dense()], 1),
        torch.cat([small.C.to_dense(), small.D.to_dense()], 1),
    )
    first, second = (torch.cat([part.flatten() for part in parts]).abs().detach() for parts in (before, after))
    assert result.weights == (len(first), round(keep * len(first)))
    kept = second != 0
    assert torch.equal(second[kept], first[kept])
    assert not (~kept).any() or first[~kept].max() <= first[kept].min()


def test_salience_looks_at_what_is_multiplied():
    model, u = draw(0), samples(4)
    u[:, 0] *= 1e-3
    result = compress(model, Salience(keep=0.5, matrices="B"), x=u)
    assert (result.model.affine().B[:, 0] == 0).all()


def test_quantized_entries_are_multiples_near_by():
    model = draw(0)
    for bits in (2, 4, 8):
        result = compress(model, Quantize(bits=bits, matrices="BC"))
        for name in "BC":
            before, after = weights_of(model)[name], weights_of(result.model)[name]
            step = before.abs().max() / (2 ** (bits - 1) - 1)
            assert (after - before).abs().max() <= step / 2 * (1 + 1e-12)
            torch.testing.assert_close((after / step).round() * step, after)
            assert len(after.unique()) <= 2**bits - 1
        assert torch.equal(weights_of(model)["A"], weights_of(result.model)["A"])


def test_shared_values_are_few_and_means_of_their_clusters():
    model = draw(0)
    result = compress(model, Magnitude(keep=0.7), Share(values=5))
    for name in "ABCD":
        before, after = weights_of(model)[name], weights_of(result.model)[name]
        values = after[after != 0].unique()
        assert len(values) <= 5
        for value in values:
            assert before[after == value].mean() == pytest.approx(value.item())
            mine = before[after == value][:, None]
            assert ((mine - value).abs() <= (mine - values).abs() + 1e-12).all()


def test_as_many_values_as_entries_change_nothing():
    model = draw(0)
    assert torch.equal(compress(model, Share(values=64, matrices="A")).model.A, model.A)


def test_a_low_rank_is_found_and_stored_as_factors():
    model = draw(0)
    weights = weights_of(model)
    generator = torch.Generator().manual_seed(7)
    left, right = (0.2 * torch.randn(8, 2, generator=generator, dtype=F64) for _ in range(2))
    weights["A"] = torch.diag(torch.linspace(-0.3, 0.3, 8, dtype=F64)) + left @ right.T
    model = ImplicitModel.from_matrices(**weights)
    result = compress(model, LowRank(rank=2))
    torch.testing.assert_close(result.model.A, model.A, rtol=0, atol=1e-4)
    assert type(result.model.structure).__name__ == "LowRank"
    assert result.weights[0] - result.weights[1] == 64 - (8 + 16 + 16)


def test_a_low_rank_and_a_few_entries_are_told_apart():
    model = draw(0, states=16)
    weights = weights_of(model)
    generator = torch.Generator().manual_seed(7)
    left, right = (0.2 * torch.randn(16, 1, generator=generator, dtype=F64) for _ in range(2))
    sparse = torch.zeros(16, 16, dtype=F64)
    sparse[[1, 5, 9], [2, 5, 0]] = torch.tensor([0.5, -0.4, 0.6], dtype=F64)
    weights["A"] = left @ right.T + sparse
    model = ImplicitModel.from_matrices(**weights)
    torch.testing.assert_close(compress(model, LowRank(rank=1, sparse=3)).model.A, model.A, rtol=0, atol=1e-6)


def test_states_of_least_worth_go_and_their_means_stay():
    model = draw(0)
    weights = weights_of(model)
    weights["C"][:, 3] *= 1e-4
    weights["A"][:, 3] *= 1e-4
    model = ImplicitModel.from_matrices(**weights)
    u = samples(4)
    plain, centred = (compress(model, States(keep=7), region=cube(4), x=x) for x in (None, u))
    assert plain.states.tolist() == centred.states.tolist() == [0, 1, 2, 4, 5, 6, 7]
    gaps = [(outputs(model, u) - outputs(result.model, u)).square().mean() for result in (plain, centred)]
    assert gaps[1] < gaps[0] / 2


def test_inputs_that_stay_are_those_of_largest_columns():
    model = draw(0)
    weights = weights_of(model)
    for name in ("B", "D"):
        weights[name][:, 2] *= 1e-3
    model = ImplicitModel.from_matrices(**weights)
    result = compress(model, Inputs(keep=3), x=samples(4, centre=2.0))
    assert sparsity(result.model).unused_inputs.tolist() == [2]
    assert result.measured < 0.1


def test_prune_drops_states_that_lost_their_weights():
    model = draw(0, states=30)
    result = prune(model, Magnitude(keep=0.05), region=cube(4))
    assert result.model.states < 30
    same = compress(model, Magnitude(keep=0.05))
    u = samples(4)
    torch.testing.assert_close(outputs(result.model, u), outputs(same.model, u), rtol=1e-12, atol=1e-12)
    assert worst(result.change, model, u, result.model)


def test_a_sparse_model_keeps_its_zeros_in_training():
    model = draw(0, states=30, constraint=InfNorm(kappa=0.9))
    smaller = compress(model, Magnitude(keep=0.1, matrices="A"), Magnitude(keep=0.2, matrices="B")).model
    assert smaller.A.is_sparse
    assert smaller.B.is_sparse
    assert not smaller.C.is_sparse
    zeros = [smaller.B.to_dense() == 0, smaller.A.to_dense() == 0]
    optimizer = torch.optim.Adam(smaller.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        smaller(samples(4)).square().sum().backward()
        optimizer.step()
    assert (smaller.B.to_dense()[zeros[0]] == 0).all()
    assert (smaller.A.to_dense()[zeros[1]] == 0).all()
    assert smaller.A.to_dense().abs().sum(1).max() <= 0.9 + 1e-9


# What makes it well-posed


class Triple(structure.Reduction):
    """Rows of A of the sum 3, with eigenvalue 3."""

    def __call__(self, model, evidence):
        A = model.form.A
        return model.set(A=3 * A.abs() / A.abs().sum(1, keepdim=True))


def test_a_is_made_smaller_where_nothing_is_proved():
    model = draw(0, norm=0.9, constraint=InfNorm(kappa=0.94))
    result = compress(model, Triple(), region=cube(4))
    assert result.shrunk == pytest.approx(0.94 / 3)
    assert result.model.constraint == InfNorm(kappa=0.94)
    assert result.model.A.abs().sum(1).max() <= 0.94 + 1e-9
    assert worst(result.change, model, samples(4), result.model)
    assert "multiplied by 0.313" in str(result)
    assert compress(draw(0), Triple()).shrunk == pytest.approx(0.95 / 3)


def test_monotone_models_are_proved_by_what_holds_for_them():
    torch.manual_seed(0)
    model = ImplicitModel(4, 6, 2, constraint=Monotone(m=0.5)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    result = compress(model, Quantize(bits=12))
    assert result.proof.criterion in ("NEMON", "2-norm", "monotone", "Perron-Frobenius")
    assert result.shrunk == 1
    assert result.model.constraint is None


def test_the_record_says_what_there_is():
    model, u = draw(0), samples(4)
    labels = outputs(model, u).argmax(1)
    result = compress(model, Quantize(bits=8), region=cube(4), x=u, labels=labels)
    assert result.accuracy[0] > 0.99
    assert result.measured <= result.bound.max()
    assert result.bits[1] < result.bits[0] / 6
    text = str(result)
    assert all(part in text for part in ("states: 8 -> 8", "well-posed by", "over the region", "on data", "accuracy"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Magnitude(keep=0.0), r"Magnitude\(keep=0.0.*above 0 and at most 1"),
        (lambda: Magnitude(matrices="AE"), 'some of "ABCD"'),
        (lambda: States(keep=0), "keep must be a whole number, at least 1"),
        (lambda: Quantize(bits=1), "bits must be a whole number, from 2 to 24"),
        (lambda: LowRank(rank=0), "rank must be a whole number"),
        (lambda: Share(values=0), "values must be"),
        (lambda: compress(draw(0), Salience()), r"looks at data: pass x="),
        (lambda: compress(draw(0), region=cube(5)), "region is of inputs with 5 entries"),
        (lambda: compress(draw(0), labels=torch.zeros(3)), "pass both"),
    ],
    ids=range(9),
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_types_are_named():
    with pytest.raises(TypeError, match=r"0.5 is not a way to compress: write for instance Quantize\(bits=8\)"):
        prune(draw(0), 0.5)
    with pytest.raises(TypeError, match="not a Prox"):
        Shrink(penalty=0.1)
