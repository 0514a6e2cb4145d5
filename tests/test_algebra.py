"""Compositions of implicit models compute the composed function; rescaling keeps it and reaches its bound."""

from __future__ import annotations

import itertools
import math
from functools import reduce
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import normal
from torch import nn

import implicitnets as inn
from implicitnets.activations import Blocks, GroupSort, MaxPool, Scaled, Softmax
from implicitnets.constraints import InfNorm
from implicitnets.models import ImplicitModel, algebra, from_config, perron, pf_eigenvalue, rescale
from implicitnets.models.structures import BlockDiagonal, Full, LowRank, Sparse, Triangular
from implicitnets.solvers import Anderson, Picard

F64 = torch.float64
TIGHT = Anderson(rtol=1e-13, atol=1e-14, max_steps=500)
MIXED = Blocks(("tanh", 2), (MaxPool(size=2), 4), (Softmax(size=2), 2))
KINDS: list[dict[str, Any]] = [
    {},
    {"activation": "tanh", "structure": LowRank(rank=1)},
    {"activation": MIXED, "structure": BlockDiagonal(sizes=(2, 4))},
    {"activation": Blocks((GroupSort(size=3), 3), ("sigmoid", 3)), "bias": False},
    {"structure": Sparse(nonzeros=12), "nonzeros": {"B": 5, "C": 5, "D": 3}},
    {"structure": Triangular(sizes=(2, 3, 1)), "activation": "tanh", "constraint": None},
    {"structure": Triangular(sizes=(2, 2, 2), nonzeros=6), "activation": MIXED, "nonzeros": {"B": 7}},
]
FEED_FORWARD = KINDS[5:]


def model(kind: dict[str, Any], inputs: int = 3, outputs: int = 2, seed: int = 0) -> ImplicitModel:
    """A model with active constraints, in float64."""
    torch.manual_seed(seed)
    iterates = not kind.get("structure", Full()).direct
    found = ImplicitModel(inputs, 6, outputs, **kind, **({"solver": TIGHT} if iterates else {})).double()
    with torch.no_grad():
        for name, p in found.named_parameters():
            p.mul_(3 if name.startswith(("A", "param")) else 1)
            if name in "bc":
                p.uniform_(-1, 1)
    return found


def close(a, b):
    """Equal but for what the solver leaves: a residual of 1e-13, which ‖A‖∞ ≤ 0.95 makes an error of 20 times that."""
    assert torch.allclose(a, b, rtol=1e-11, atol=1e-11)


kinds, seeds = st.sampled_from(KINDS), st.integers(0, 10**6)
few = settings(max_examples=25, deadline=None)


@few
@given(kinds, kinds, kinds, seeds)
def test_cascade_is_one_after_the_other(first, second, third, seed):
    models = [model(first, 3, 4, seed), model(second, 4, 2, seed + 1), model(third, 2, 3, seed + 2)]
    u, whole = normal(5, 3, dtype=F64, seed=seed), algebra.cascade(*models)
    close(whole(u), reduce(lambda x, m: m(x), models, u))
    assert pf_eigenvalue(whole) == pytest.approx(max(map(pf_eigenvalue, models)), rel=1e-9)


def test_choices_that_rounding_cannot_tell_apart_come_to_an_end():
    """The worst choices of rows of this model led to each other in turn, for ever."""
    models = [model(KINDS[2], 3, 4, 192885), model(KINDS[3], 4, 2, 192886), model(KINDS[2], 2, 3, 192887)]
    assert pf_eigenvalue(algebra.cascade(*models)) == pytest.approx(max(map(pf_eigenvalue, models)), rel=1e-9)


@few
@given(kinds, kinds, seeds)
def test_models_side_by_side(first, second, seed):
    a, b, other = model(first, 3, 2, seed), model(second, 3, 2, seed + 1), model(second, 4, 5, seed + 2)
    u, v = normal(5, 3, dtype=F64, seed=seed), normal(5, 4, dtype=F64, seed=seed + 1)
    close(algebra.parallel(a, other, b)(torch.cat([u, v, 2 * u], 1)), torch.cat([a(u), other(v), b(2 * u)], 1))
    close(algebra.concatenate(a, b, a)(u), torch.cat([a(u), b(u), a(u)], 1))
    close(algebra.add(a, b, b)(u), a(u) + 2 * b(u))
    close(algebra.multiply(a, b)(u), a(u) * b(u))
    largest = max(pf_eigenvalue(a), pf_eigenvalue(b))
    for whole in (algebra.parallel(a, b), algebra.concatenate(a, b), algebra.add(a, b), algebra.multiply(a, b)):
        assert pf_eigenvalue(whole) == pytest.approx(largest, rel=1e-9)


@few
@given(kinds, seeds, st.booleans())
def test_affine_maps_before_and_after(kind, seed, sparse):
    m, u = model(kind, 3, 2, seed), normal(5, 4, dtype=F64, seed=seed)
    K, k = normal(3, 4, dtype=F64, seed=seed), normal(3, dtype=F64, seed=seed)
    L, n = normal(5, 2, dtype=F64, seed=seed), normal(5, dtype=F64, seed=seed)
    given = (lambda t: t.to_sparse()) if sparse else (lambda t: t)
    close(algebra.affine_input(m, given(K), k)(u), m(u @ K.T + k))
    close(algebra.affine_input(m, given(K))(u), m(u @ K.T))
    close(algebra.affine_output(m, given(L), n)(u[:, :3]), m(u[:, :3]) @ L.T + n)
    close(algebra.affine_output(m, given(L))(u[:, :3]), m(u[:, :3]) @ L.T)


@few
@given(kinds, seeds)
def test_feedback_closes_the_loop(kind, seed):
    m, v = model(kind, 3, 2, seed), normal(5, 3, dtype=F64, seed=seed)
    K = 0.01 * normal(3, 2, dtype=F64, seed=seed)
    closed = algebra.feedback(m, K)
    closed.solver = TIGHT
    y = closed(v)
    close(y, m(v + y @ K.T))


def test_feedback_is_checked():
    m = model(KINDS[0])
    with torch.no_grad():
        m.D.zero_()
    with pytest.warns(UserWarning, match=r"not proved to be well-posed: λ\(\|A\|\) = [\d.]+, where 1 is the limit"):
        algebra.feedback(m, 20 * normal(3, 2, dtype=F64))
    with torch.no_grad():
        m.D.copy_(torch.eye(2, 3, dtype=F64))
    with pytest.raises(ValueError, match="singular"):
        algebra.feedback(m, torch.eye(3, 2, dtype=F64))
    narrow = model({"activation": "sigmoid", "constraint": InfNorm(kappa=3.0)})
    assert 1 < pf_eigenvalue(narrow) < 4
    algebra.feedback(narrow, torch.zeros(3, 2, dtype=F64))  # γ = 1/4


@pytest.mark.parametrize("first", FEED_FORWARD)
@pytest.mark.parametrize("second", FEED_FORWARD)
def test_feed_forward_parts_make_a_feed_forward_whole(first, second):
    a, b, other = model(first, 3, 3), model(second, 3, 3), model(first, 3, 3, 1)
    K = torch.eye(3, dtype=F64)
    for whole in (
        algebra.cascade(a, b),
        algebra.parallel(a, b),
        algebra.concatenate(a, b),
        algebra.add(a, b),
        algebra.multiply(a, other),
        algebra.affine_input(a, K),
        algebra.affine_output(a, K),
        rescale(a, 0.9),
    ):
        assert whole.solver is None
        assert pf_eigenvalue(whole) == 0
        assert isinstance(whole.structure, Triangular)
        again = from_config(whole.config())
        again.load_state_dict(whole.state_dict(), assign=True)
        u = normal(4, whole.inputs, dtype=F64)
        assert torch.equal(again(u), whole(u))


def test_one_part_that_iterates_makes_the_whole_iterate_with_its_strategies():
    backward = inn.Implicit(solver=Picard(rtol=1e-9))
    feed_forward = model(KINDS[5], 3, 3)
    loop = ImplicitModel(3, 6, 3, solver=TIGHT, backward=backward).double()
    for whole in (algebra.cascade(feed_forward, loop), algebra.cascade(loop, feed_forward)):
        assert whole.solver == TIGHT
        assert whole.backward == backward
        assert whole.constraint is None


def test_the_parts_are_copied():
    a, b = model(KINDS[0], 3, 3), model(KINDS[1], 3, 3)
    whole, u = algebra.cascade(a, b), normal(4, 3, dtype=F64)
    before = whole(u)
    with torch.no_grad():
        for p in (*a.parameters(), *b.parameters()):
            p.zero_()
    assert torch.equal(whole(u), before)
    before.sum().backward()
    assert all(p.grad is not None for p in whole.parameters())
    assert all(p.grad is None for p in (*a.parameters(), *b.parameters()))


def test_a_function_as_activation_is_composed_but_not_written_down():
    a, b = model({"activation": torch.sin}, 3, 3), model({}, 3, 3)
    whole, u = algebra.cascade(a, b), normal(4, 3, dtype=F64)
    close(whole(u), b(a(u)))
    with pytest.raises(ValueError, match="can't be written down"):
        whole.config()


# rescaling


@few
@given(kinds, kinds, seeds, st.floats(0.2, 0.99))
def test_rescaling_keeps_the_function_and_reaches_the_bound(first, second, seed, share):
    whole = algebra.cascade(model(first, 3, 4, seed), model(second, 4, 2, seed + 1))
    radius, u = pf_eigenvalue(whole), normal(5, 3, dtype=F64, seed=seed)
    kappa = radius + (1 - radius) * share
    scaled = rescale(whole, kappa)
    assert torch.allclose(scaled(u), whole(u), rtol=1e-10, atol=1e-10)
    assert scaled.A.to_dense().abs().sum(1).max() <= kappa * (1 + 1e-9)
    assert pf_eigenvalue(scaled) == pytest.approx(radius, rel=1e-6, abs=1e-12)
    assert scaled.A.is_sparse == whole.A.is_sparse


def test_rescaled_models_stay_contractions_in_training_and_are_saved():
    whole = algebra.cascade(model(KINDS[0], 3, 4), model(KINDS[2], 4, 2))
    assert whole.A.abs().sum(1).max() > 1
    scaled, u = rescale(whole), normal(5, 3, dtype=F64)
    kappa = (1 + pf_eigenvalue(whole)) / 2
    assert scaled.constraint == InfNorm(kappa=kappa)
    phi = scaled.activation
    assert [type(part) for part, _ in phi.blocks] == [Scaled, MaxPool, Scaled, str]  # relu and maxima have no units
    assert [rows for _, rows in phi.blocks] == [2, 4, 2, 6]
    again = from_config(scaled.config())
    again.load_state_dict(scaled.state_dict(), assign=True)
    assert torch.equal(again(u), scaled(u))
    with torch.no_grad():
        for p in scaled.parameters():
            p.add_(3)
    assert scaled.A.abs().sum(1).max() <= kappa * (1 + 1e-12)
    twice = rescale(rescale(whole), 0.99)
    assert torch.allclose(twice(u), whole(u), rtol=1e-10)
    assert not any(isinstance(part, Scaled) and isinstance(part.inner, Scaled) for part, _ in twice.activation.parts)


def test_what_can_not_be_rescaled_is_told_with_the_number():
    free = model({"constraint": None})
    with torch.no_grad():
        free.A.copy_(torch.full((6, 6), 0.25, dtype=F64))
    with pytest.raises(ValueError, match=r"λ\(\|A\|\) = 1.5$"):
        rescale(free)
    with torch.no_grad():
        free.A.div_(2)
    with pytest.raises(ValueError, match=r"kappa=0.7 must be larger than λ\(\|A\|\) = 0.75"):
        rescale(free, 0.7)
    with torch.no_grad():
        free.A[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        rescale(free)
    with pytest.raises(ValueError, match="Product"):
        rescale(algebra.multiply(model({}), model({})))


@pytest.mark.parametrize("n", [3, 40, 300])
def test_the_perron_frobenius_eigenvalue_is_that_of_numpy(n):
    A = normal(n, n, dtype=F64) / n
    A[: n // 3] = 0  # so that there are several irreducible blocks
    A = A[torch.randperm(n)][:, torch.randperm(n)]
    other = torch.zeros(n, 1, dtype=F64)
    m = ImplicitModel.from_matrices(A, other, other.T, torch.zeros(1, 1, dtype=F64), solver=TIGHT)
    wanted = torch.linalg.eigvals(A.abs()).real.max().item()
    assert pf_eigenvalue(m) == pytest.approx(wanted, rel=1e-8)
    sparse = ImplicitModel.from_matrices(A.to_sparse(), other, other.T, torch.zeros(1, 1, dtype=F64))
    assert pf_eigenvalue(sparse) == pf_eigenvalue(m)


def test_large_irreducible_blocks_have_an_eigenvalue_too(monkeypatch):
    A = normal(60, 60, dtype=F64) / 60
    m = ImplicitModel.from_matrices(A, A[:, :1], A[:1], A[:1, :1])
    wanted = pf_eigenvalue(m)
    monkeypatch.setattr(perron, "LARGE", 10)
    assert pf_eigenvalue(m) == pytest.approx(wanted, rel=1e-10)


@few
@given(seeds, st.floats(0.2, 1.0))
def test_with_groups_it_is_the_largest_over_all_choices_of_rows(seed, density):
    """Five groups of two rows, some states alone and some in pairs."""
    torch.manual_seed(seed)
    phi = Blocks((MaxPool(size=2), 6), (GroupSort(size=2), 4))
    A = torch.randn(10, 7, dtype=F64) * (torch.rand(10, 7) < density)
    m = ImplicitModel.from_matrices(A, A[:, :1], A[:1, :7], A[:1, :1], activation=phi)
    sums = torch.cat([A[:, :3].abs(), A[:, 3:5].abs().sum(1, True), A[:, 5:].abs().sum(1, True)], 1)
    choices = [sums[torch.arange(0, 10, 2) + torch.tensor(choice)] for choice in itertools.product((0, 1), repeat=5)]
    wanted = max(float(torch.linalg.eigvals(c).abs().max()) for c in choices)
    assert pf_eigenvalue(m) == pytest.approx(wanted, rel=1e-6, abs=1e-3 if wanted < 1e-3 else 0)
    assert pf_eigenvalue(m) <= float(A.abs().sum(1).max()) * (1 + 1e-9)


def test_groups_have_the_eigenvalue_of_their_block_norms():
    A = torch.tensor([[0.5, 1.0], [0.25, 0.0], [0.0, 0.0], [0.0, 0.1]], dtype=F64)
    B, C, D = torch.zeros(4, 1, dtype=F64), torch.zeros(1, 2, dtype=F64), torch.zeros(1, 1, dtype=F64)
    pooled = ImplicitModel.from_matrices(A, B, C, D, activation=MaxPool(size=2))
    assert pf_eigenvalue(pooled) == pytest.approx(0.5)  # of [[1/2, 1], [0, 1/10]]
    A = torch.tensor([[0.1, -0.2], [0.3, 0.0]], dtype=F64)
    softened = ImplicitModel.from_matrices(A, B[:2], C, D, activation=Softmax(size=2))
    assert pf_eigenvalue(softened) == pytest.approx(0.3)  # the infinity norm of A
    nilpotent = torch.zeros(30, 30, dtype=F64)
    nilpotent[range(29), range(1, 30)] = 1e3
    order = torch.randperm(30)
    weights = (nilpotent[order][:, order], torch.ones(30, 1, dtype=F64), torch.ones(1, 30, dtype=F64), D)
    assert pf_eigenvalue(ImplicitModel.from_matrices(*weights)) == 0


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("2 outputs is followed by one of 3 inputs", lambda m: algebra.cascade(m, m)),
        ("3 and with 4 inputs", lambda m: algebra.concatenate(m, model({}, 4))),
        ("3 and with 4 inputs", lambda m: algebra.add(m, model({}, 4))),
        ("different numbers of outputs: 2, 3", lambda m: algebra.add(m, model({}, 3, 3))),
        ("different numbers of outputs", lambda m: algebra.multiply(m, model({}, 3, 3))),
        (r"shape \(3, any\), not \(2, 3\)", lambda m: algebra.affine_input(m, torch.zeros(2, 3, dtype=F64))),
        (r"shape \(any, 2\)", lambda m: algebra.affine_output(m, torch.zeros(2, 3, dtype=F64))),
        (r"shape \(3, 2\), not 0.5", lambda m: algebra.feedback(m, 0.5)),
        ("no model to compose", lambda m: algebra.cascade()),
        ("not an ImplicitModel", lambda m: algebra.cascade(m, nn.Linear(2, 2))),
        ("torch.float32 on cpu", lambda m: algebra.cascade(m, ImplicitModel(2, 3, 1))),
    ],
)
def test_misuse_is_named(text, call):
    with pytest.raises((ValueError, TypeError), match=text):
        call(model({}))


def test_a_product_keeps_all_digits_and_is_not_lipschitz():
    large, small = (algebra.affine_output(model(KINDS[5]), s * torch.eye(2, dtype=F64)) for s in (1e9, 1e-9))
    product, u = algebra.multiply(large, small), normal(5, 3, dtype=F64)
    assert torch.allclose(product(u), large(u) * small(u), rtol=1e-14, atol=0)
    assert inn.activations.as_activation(product.activation).lipschitz(math.inf) == math.inf
