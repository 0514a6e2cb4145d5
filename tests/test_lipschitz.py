"""Lipschitz constants: closed forms, soundness on pairs, the order of the bounds, the matrix inequality."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from posed import MODELS, WEIGHTS, make, pairs
from problems import DTYPES
from test_sensitivity import random_form
from test_wellposed import form

from implicitnets.activations import GroupSort
from implicitnets.analysis import Lipschitz, lipschitz, sensitivity
from implicitnets.analysis.forms import double_form
from implicitnets.analysis.multipliers import Pencil, minimize, stabilizer
from implicitnets.analysis.semidefinite import _proved, multiplier_bound
from implicitnets.models import AffineForm, ImplicitModel, LipschitzDEQ, MonotoneDEQ

NORMS = {"2": 2.0, "inf": math.inf, "1": 1.0}
each_norm = pytest.mark.parametrize("norm", NORMS)
seeds = st.integers(0, 10_000)


def norm_of(matrix, norm):
    return float(torch.linalg.matrix_norm(matrix, NORMS[norm]))


# ------------------------------------------------------------------------------------------ closed forms


@each_norm
@pytest.mark.parametrize(("a", "gain"), [(0.5, 2.0), (-3.0, 1.0), (0.0, 1.0)])
def test_one_relu(norm, a, gain):
    f = AffineForm(
        **vars(form([[a]], "relu"))
        | {"B": torch.tensor([[3.0]], dtype=torch.float64), "C": torch.tensor([[-2.0]], dtype=torch.float64)}
    )
    found = lipschitz(f, norm)
    exact = 6 * (2.0 if a > 0 else 0.25 if a < 0 else 1.0)
    assert np.isclose(found.upper["multipliers"], exact, rtol=1e-4)
    assert np.isclose(found.lower, exact, rtol=1e-5)
    assert np.isclose(found.upper["product"], 6 * gain / (1 if a >= 0 else math.nan)) or a < 0


@each_norm
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_a_linear_model_has_the_norm_of_its_matrix(norm, seed):
    f = random_form(seed, activation="identity")
    exact = norm_of(f.C @ torch.linalg.solve(torch.eye(5) - f.A, f.B) + f.D, norm)
    found = lipschitz(f, norm, steps=1)
    assert np.isclose(found.lower, exact, rtol=1e-5)
    assert min(found.upper.values()) >= exact * (1 - 1e-12)
    assert found.upper["multipliers"] <= exact * (1.01 if norm == "2" else 1.5)


def test_monotone_bound_is_that_of_the_paper():
    model = MonotoneDEQ(4, 7, m=0.4).double()
    bound = lipschitz(model).upper["monotone"]
    margin = 1 - torch.linalg.eigvalsh((model.W + model.W.T).detach() / 2)[-1]
    assert margin >= 0.4
    assert np.isclose(bound, norm_of(model.U.detach(), "2") / margin)


def test_in_the_maximum_norm_the_sensitivity_matrix_gives_the_row_sums():
    f = random_form(1)
    assert np.isclose(lipschitz(f, "inf").upper["sensitivity"], sensitivity(f).matrix.sum(1).max())


# ------------------------------------------------------------------------------------------------- order


@given(seed=seeds, activation=st.sampled_from(["relu", "tanh", "sigmoid", "leaky_relu"]))
@settings(max_examples=25, deadline=None)
def test_order_of_the_bounds(seed, activation):
    f = random_form(seed, activation=activation)
    no_direct = AffineForm(**vars(f) | {"D": f.D * 0})
    found = lipschitz(no_direct, steps=0).upper
    assert found["multipliers"] <= min(found["monotone"], found["product"]) * (1 + 1e-4)
    inf = lipschitz(f, "inf", steps=0).upper
    size = {name: norm_of(getattr(f, name), "inf") for name in "ABCD"}
    product = size["C"] * size["B"] / (1 - size["A"]) + size["D"]
    assert max(inf["sensitivity"], inf["product"]) <= product * (1 + 1e-8)


@pytest.mark.parametrize("gamma", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("size", [1.0, 8.0])
def test_a_prescribed_constant_is_confirmed(gamma, size):
    model = LipschitzDEQ(5, 12, 3, lipschitz=gamma).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(size)
        model.d.normal_()
    found = lipschitz(model)
    assert found.best == "multipliers"
    assert found.lower <= found.bound <= gamma * (1 + 1e-4)


# ---------------------------------------------------------------------------------------------- soundness


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", MODELS)
def test_no_pair_of_inputs_is_steeper(name, weights, dtype):
    f = make(name, weights, dtype)
    du, dy = pairs(f)
    for norm, p in NORMS.items():
        found = lipschitz(f, norm, steps=4)  # which itself refuses bounds below the pair that it found
        ratio = torch.linalg.vector_norm(dy, p, dim=1) / torch.linalg.vector_norm(du, p, dim=1)
        for bound in found.upper.values():
            assert ratio.max() <= bound * (1 + 1e-6)
        assert math.isfinite(found.bound) or name == "softmax"
        assert found.lower > 0


@pytest.mark.parametrize("activation", ["abs", "gelu", "silu"])
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_slopes_below_zero(activation, seed):
    f = random_form(seed, activation=activation, gain=0.6)
    found = lipschitz(f, steps=5)
    assert found.upper["monotone"] == math.inf
    assert found.upper["multipliers"] < math.inf
    du, dy = pairs(f, 50)
    assert (dy.norm(dim=1) <= found.bound * du.norm(dim=1) * (1 + 1e-6)).all()


@each_norm
def test_the_pair_has_its_ratio(norm):
    model = ImplicitModel(5, 8, 3).double()
    f, found = double_form(model), lipschitz(model, norm)
    with torch.no_grad():
        y = f.readout(f.solve(found.pair).value, found.pair)
    ratio = torch.linalg.vector_norm(y[1] - y[0], NORMS[norm]) / torch.linalg.vector_norm(
        found.pair[1] - found.pair[0], NORMS[norm]
    )
    assert np.isclose(found.lower, ratio, rtol=1e-4)


def test_the_ascent_climbs_over_kinks():
    torch.manual_seed(0)
    model = MonotoneDEQ(10, 30)
    x = torch.randn(8, 10)
    assert lipschitz(model, 2, x, steps=40).lower > 1.02 * lipschitz(model, 2, x, steps=0).lower


def test_a_bound_below_what_was_found_is_refused():
    with pytest.raises(ArithmeticError, match=r"two inputs have the ratio 2.0, above the bound product = 1.0"):
        Lipschitz(norm=2.0, upper={"product": 1.0}, lower=2.0, pair=None)
    with pytest.raises(ArithmeticError):
        Lipschitz(norm=2.0, upper={"product": math.nan}, lower=0.0, pair=None)


def test_refusals_and_table():
    with pytest.raises(ValueError, match="norm='fro'"):
        lipschitz(torch.zeros(2, 2), "fro")
    with pytest.raises(ValueError, match="2 inputs"):
        lipschitz(torch.zeros(2, 2), 2, torch.zeros(4, 3))
    text = str(lipschitz(MonotoneDEQ(3, 4), "inf", multipliers=False))
    assert "| product | — |" in text or "| product | " in text
    assert "inf-norm" in text
    assert "multipliers" not in text


# --------------------------------------------------------------------------------------- the inequality


def test_path_following_finds_the_smallest_eigenvalue():
    rng = np.random.default_rng(0)
    k = rng.normal(size=(6, 6))
    k = k + k.T
    pencil = Pencil(p=np.zeros((1, 6)), q=np.zeros((1, 6)), g=np.ones(6), constant=k)
    _, t = minimize(pencil, np.ones(1), 100.0, 2 * np.ones(1), gap=1e-8)
    assert np.isclose(t, np.linalg.eigvalsh(k)[-1], rtol=1e-6)


@given(seed=seeds, n=st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_weights_are_found_in_any_units(seed, n):
    rng = np.random.default_rng(seed)
    skew = 3 * rng.normal(size=(n, n))
    e = np.exp(4 * rng.normal(size=n))
    w = (skew - skew.T + 0.9 * np.eye(n)) * e[:, None] / e
    weights = stabilizer(w, np.zeros(n), np.ones(n))
    root = np.sqrt(weights)
    scaled = w * root[:, None] / root
    assert np.linalg.eigvalsh(scaled + scaled.T)[-1] < 2
    hopeless = stabilizer(w + 0.2 * np.eye(n), np.zeros(n), np.ones(n))
    root = np.sqrt(hopeless)
    scaled = (w + 0.2 * np.eye(n)) * root[:, None] / root
    assert not np.linalg.eigvalsh(scaled + scaled.T)[-1] < 2


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_a_constant_that_is_too_small_is_raised_until_it_is_proved(seed):
    f = random_form(seed)
    best = multiplier_bound(f, 2)
    weights = stabilizer(f.A.numpy(), np.zeros(5), np.ones(5)) * 1e3
    raised = _proved(f, np.zeros(5), np.ones(5), weights, best**2 * 0.5)
    assert raised >= best**2 * (1 - 1e-4)


def test_without_multipliers_there_is_no_bound():
    unstable = form(2 * torch.eye(2), "relu")
    assert multiplier_bound(unstable, 2) == math.inf
    assert multiplier_bound(form(torch.zeros(4, 4), GroupSort(size=2)), 1) == math.inf
