"""Well-posedness: closed forms, the hierarchy, brute force over minors, witnesses that are what they say."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from posed import MODELS, make
from torch import nn

from implicitnets.activations import MaxPool, Product, as_activation
from implicitnets.analysis import well_posedness
from implicitnets.models import DEQ, AffineForm, ImplicitModel, NotAffine

seeds = st.integers(0, 100_000)
SMALL = 1e-6  # margins within it are left to rounding


def draw(seed, n):
    """A random A whose structure varies, so that every criterion holds for some."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, n)) * rng.uniform(0.2, 1.5) / n**0.5
    if seed % 4 == 1:
        a *= rng.random((n, n)) < 0.4
    if seed % 4 == 2:
        a -= np.diag(rng.uniform(0, 3, n))
    if seed % 4 == 3:
        a += 2 * (a - a.T)
    e = np.exp(rng.normal(size=n) * (seed % 3))
    return torch.from_numpy(a * e[:, None] / e)


def least_minor(a):
    n = len(a)
    subsets = (list(s) for k in range(1, n + 1) for s in itertools.combinations(range(n), k))
    m = np.eye(n) - a.numpy()
    return min(np.linalg.det(m[np.ix_(s, s)]) for s in subsets)


def form(A, activation, B=None):
    A = torch.as_tensor(A, dtype=torch.float64)
    B = torch.eye(len(A), dtype=torch.float64) if B is None else B
    zeros = torch.zeros(len(A), dtype=torch.float64)
    C = torch.eye(A.shape[1], dtype=torch.float64)
    return AffineForm(
        A=A,
        B=B,
        C=C,
        D=torch.zeros(A.shape[1], B.shape[1], dtype=torch.float64),
        b=zeros,
        c=C[0] * 0,
        activation=as_activation(activation),
    )


# ------------------------------------------------------------------------------------------ closed forms


def test_diagonal():
    found = well_posedness(torch.tensor([0.5, -3.0, 0.25]).diag())
    assert found.criterion == "NEMON"
    for name, margin in {
        "infinity norm": -2,
        "Perron-Frobenius": -2,
        "2-norm": -2,
        "NEMON": 0.5,
        "monotone": 0.5,
    }.items():
        assert np.isclose(found.margins[name], margin, atol=1e-4), name
    assert [loop.tolist() for loop in found.loops] == [[0], [1], [2]]


def test_symmetric():
    a = draw(4, 6)
    a = a + a.T
    values = torch.linalg.eigvalsh(a)
    found = well_posedness(a)
    assert np.isclose(found.margins["2-norm"], 1 - values.abs().max())
    assert np.isclose(found.margins["monotone"], 1 - values.max())


@pytest.mark.parametrize("activation", ["relu", "square", Product(size=2)], ids=str)
def test_what_is_triangular_in_some_order_is_well_posed_whatever_its_entries_and_activation(activation):
    shape = (8, 4) if isinstance(activation, Product) else (8, 8)
    a = 1e3 * torch.ones(shape, dtype=torch.float64).triu(1)
    if isinstance(activation, Product):
        a = 1e3 * torch.ones(4, 4, dtype=torch.float64).triu(1).repeat_interleave(2, 0)
    order = torch.randperm(a.shape[1], generator=torch.Generator().manual_seed(0))
    size = a.shape[0] // a.shape[1]
    a = a.unflatten(0, (-1, size))[order].flatten(0, 1)[:, order]
    found = well_posedness(form(a, activation))
    assert (found.verdict, found.criterion, found.loops) == ("proved", "feed-forward", ())
    a.unflatten(0, (-1, size))[order == 1, 0, order == 1] = 1.0  # one state that depends on itself
    assert well_posedness(form(a, activation)).verdict != "proved"


def test_units_found_for_a_feed_forward_model_make_it_a_strong_contraction():
    found = well_posedness(nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 2)), (4,))
    assert found.margins["Perron-Frobenius"] > 0.99


@given(seed=seeds)
@settings(max_examples=40, deadline=None)
def test_block_triangular_is_well_posed_exactly_if_its_blocks_are(seed):
    blocks = [draw(seed, 3), draw(seed + 1, 2), draw(seed + 2, 1)]
    minors = [least_minor(block) for block in blocks]
    if min(map(abs, minors)) < SMALL:
        return
    a = torch.block_diag(*blocks)
    a[:3, 3:], a[3:5, 5:] = 100.0, -100.0
    found = well_posedness(a)
    assert found.verdict == ("proved" if min(minors) > 0 else "refuted")
    if found.verdict == "refuted":
        check_witness(found, a)


def test_loops_are_proved_one_by_one():
    a = torch.block_diag(
        torch.tensor([[0.0, 4.0], [-4.0, 0.0]]), -torch.tensor([[0.0, -2.0, 0.0], [0.0, 0.0, -3.0], [3.0, 1.0, 0.0]])
    )
    a[0, 2] = 7.0
    found = well_posedness(a)
    assert (found.verdict, found.criterion) == ("proved", "loops")
    assert sorted(answer.criterion for answer in found.answers) == ["P-matrix", "monotone"]
    assert max(found.margins.values()) < 0 < found.margin


# -------------------------------------------------------------------------------------- all matrices


CHAIN = [
    ("infinity norm", "Perron-Frobenius"),
    ("Perron-Frobenius", "NEMON"),
    ("2-norm", "monotone"),
    ("monotone", "Lyapunov"),
]


@given(seed=seeds, n=st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_hierarchy_and_verdict(seed, n):
    a = draw(seed, n)
    found, minor = well_posedness(a), least_minor(a)
    if found.loops:
        for strong, weak in CHAIN:
            if found.margins[strong] > SMALL:
                assert found.margins[weak] > 0, (strong, weak)
    if max(found.margins.values()) > 0:
        assert minor > 0
    if abs(minor) > SMALL:
        assert found.verdict == ("proved" if minor > 0 else "refuted")
    assert (found.margin > 0) == (found.verdict == "proved")


@given(seed=seeds, n=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_the_scaled_norm_is_the_perron_frobenius_eigenvalue(seed, n):
    a = draw(seed, n)
    found = well_posedness(a)
    scaled = (a.abs() @ found.scaling / found.scaling).max()
    radius = np.abs(np.linalg.eigvals(a.abs().numpy())).max()
    assert found.scaling.min() > 0
    assert radius <= scaled + 1e-12 <= 1 - found.margins["Perron-Frobenius"] + 1e-9
    assert np.isclose(scaled, radius, rtol=1e-4, atol=2e-3)


@given(seed=seeds, n=st.integers(2, 6))
@settings(max_examples=50, deadline=None)
def test_weights_show_stability(seed, n):
    a = draw(seed, n)
    found = well_posedness(a)
    if found.margins.get("Lyapunov", 0) > 0:
        m = found.weights[:, None] * (torch.eye(n) - a)
        assert torch.linalg.eigvalsh(m + m.T)[0] > 0


# ------------------------------------------------------------------------------------------ witnesses


def check_witness(found, a):
    d, v = found.witness.slopes, found.witness.null_vector
    element = torch.eye(len(a), dtype=a.dtype) - d[:, None] * a
    assert torch.linalg.svdvals(element)[-1] < 1e-9 * (1 + a.abs().max())
    assert (element @ v).norm() < 1e-9 * (1 + a.abs().max())


@pytest.mark.parametrize(("activation", "slopes"), [("relu", (0, 1)), ("leaky_relu", (0.01, 1)), ("abs", (-1, 1))])
@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_a_refutation_shows_two_equilibria(activation, slopes, seed):
    a = 2 * draw(seed, 4)
    found = well_posedness(form(a, activation))
    if found.verdict != "refuted":
        return
    check_witness(found, a)
    assert (found.witness.slopes >= slopes[0]).all()
    assert (found.witness.slopes <= slopes[1]).all()
    twins = found.twins
    phi = as_activation(activation)
    assert (phi(twins.states @ a.T + twins.v) - twins.states).abs().max() < 1e-9 * (1 + a.abs().max())
    assert (twins.states[0] - twins.states[1]).abs().max() > 0.1
    torch.testing.assert_close(twins.u, twins.v)  # B is the identity here


def test_of_an_input_matrix_of_low_rank_there_may_be_no_input_with_two_equilibria():
    a, column = torch.diag(torch.tensor([2.0, 0.5])), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    found = well_posedness(form(a, "relu", column))
    assert found.twins is not None
    assert found.twins.u is None


def test_a_smooth_activation_is_refuted_as_one_of_its_slopes():
    assert well_posedness(form([[3.9]], "sigmoid")).verdict == "proved"
    found = well_posedness(form([[4.1]], "sigmoid"))
    assert (found.verdict, found.twins) == ("refuted", None)
    assert np.isclose(found.witness.slopes[0], 1 / 4.1)


# --------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("name", MODELS)
def test_what_is_well_posed_by_construction_is_proved(name):
    for weights in ("as drawn", "large"):
        found = well_posedness(make(name, weights))
        assert found.verdict == "proved"
        assert found.margin > 0


@pytest.mark.parametrize("size", [2, 4])
def test_maxima_have_the_norm_of_their_largest_rows(size):
    a = torch.tensor([[0.3, -0.3], [0.1, 0.8], [0.2, 0.2], [-0.6, 0.3]], dtype=torch.float64)
    a = a if size == 2 else a.repeat_interleave(2, 0)
    found = well_posedness(form(a, MaxPool(size=size)))
    assert np.isclose(found.margins["infinity norm"], 0.1)
    assert found.margins["Perron-Frobenius"] >= found.margins["infinity norm"]
    assert "NEMON" not in found.margins


def test_what_is_unknown_is_said_to_be():
    found = well_posedness(form(torch.full((4, 2), 3.0), MaxPool(size=2)))
    assert (found.verdict, found.witness) == ("unknown", None)


def test_table():
    found = well_posedness(torch.diag(torch.tensor([2.0, 0.5])))
    assert "| NEMON | -1 |  |" in str(found)
    assert "refuted" in str(found)
    assert "two equilibria" in str(found)
    assert "feed-forward" in str(well_posedness(torch.zeros(3, 3)))


def test_refusals():
    with pytest.raises(ValueError, match="square"):
        well_posedness(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="A of the model is not finite"):
        well_posedness(torch.full((2, 2), torch.nan))
    with pytest.raises(TypeError, match="square matrix, not int"):
        well_posedness(3)
    with pytest.raises(NotAffine):
        well_posedness(DEQ(nn.Tanh()))
    with pytest.raises(ValueError, match="input_shape"):
        well_posedness(nn.Linear(3, 3))


def test_the_model_is_left_as_it_is():
    model = ImplicitModel(4, 6, 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    well_posedness(model.train())
    assert model.training
    assert all(torch.equal(before[k], v) and v.dtype == torch.float32 for k, v in model.state_dict().items())
