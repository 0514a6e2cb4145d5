"""Linear and mixed-integer programmes: bounds that hold, are the optima, and are in order."""

from dataclasses import replace
from itertools import cycle, pairwise

import numpy as np
import pytest
import torch
from bounded import REGIONS, enumerated, points, problem
from certificates import MODELS, equilibria, escapes, form_of, problem_of
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import normal
from scipy.optimize import linprog
from torch import nn

from implicitnets.activations import Blocks, MaxPool, Scaled
from implicitnets.analysis import region
from implicitnets.analysis.certificates.crown import Crown
from implicitnets.analysis.certificates.hull import bound, hull, kinks
from implicitnets.analysis.certificates.lp import LinearProgram
from implicitnets.analysis.certificates.milp import MixedInteger
from implicitnets.analysis.certificates.problem import Bounds, Problem
from implicitnets.analysis.certificates.run import certify
from implicitnets.models import MonotoneDEQ, NotAffine

F64 = torch.float64
MIXED = Blocks(("relu", 2), ("tanh", 3), ("hardtanh", 2), (Scaled("leaky_relu", (0.5,)), 1))
ACTIVATIONS = {"relu": "relu", "leaky_relu": "leaky_relu", "hardtanh": "hardtanh", "tanh": "tanh", "mixed": MIXED}
each_region = pytest.mark.parametrize("kind", REGIONS)
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def outputs(asked, bounder):
    return bounder.maximum(asked, asked.form.C, asked.form.D)


@pytest.mark.parametrize("kind", ["box", "diamond", "a few entries"])
@pytest.mark.parametrize(("activation", "n"), [("relu", 5), ("leaky_relu", 5), ("hardtanh", 3)])
def test_mixed_integer_programmes_are_exact(kind, activation, n):
    for seed in range(2):
        asked = problem(n, 3, sigma=0.8, kind=kind, activation=activation, seed=seed, batch=1)
        C, D = asked.form.C, asked.form.D
        expected = [enumerated(asked, *pair) for pair in zip(C, D, strict=True)]
        found = outputs(asked, MixedInteger(rtol=1e-9))[0]
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)
        assert (found >= torch.tensor(expected) - 1e-12).all()


def test_the_programme_is_that_of_the_triangles():
    asked = problem(sigma=0.6, batch=1)
    form, n = asked.form, 8
    A, B, b = form.A.numpy(), form.B.numpy(), form.b.numpy()
    low, high = (end[0].numpy() for end in asked.z)
    apart = (low < 0) & (high > 0)
    slope = np.where(apart, high / (high - low), low >= 0)
    start = np.where(apart, -slope * low, 0)
    M = np.eye(n) - A
    above, below = np.hstack([-M, B]), np.hstack([np.eye(n) - slope[:, None] * A, -slope[:, None] * B])
    rows, rest = np.vstack([above, below]), np.concatenate([-b, slope * b + start])
    ends = [*([(0, None)] * n), *zip(asked.region.low[0], asked.region.high[0], strict=True)]
    for k, found in enumerate(outputs(asked, LinearProgram())[0]):
        gain = np.concatenate([form.C[k], form.D[k]])
        optimum = -linprog(-gain, A_ub=rows, b_ub=rest, bounds=ends).fun
        assert float(found) == pytest.approx(optimum, rel=1e-9)


@pytest.mark.parametrize("norm", [0.5, 0.9])
@pytest.mark.parametrize("sigma", [0.05, 0.3])
@pytest.mark.parametrize(("n", "p"), [(8, 4), (16, 8)])
def test_methods_are_in_order(n, p, norm, sigma):
    asked = problem(n, p, norm, sigma)
    asked = Crown().tighten(asked)
    ladder = [
        asked.maximum(asked.form.C, asked.form.D),
        outputs(asked, Crown()),
        outputs(asked, LinearProgram()),
        outputs(asked, MixedInteger()),
        points(asked),
    ]
    for above, below in pairwise(ladder):
        assert (above >= below - 1e-9).all()
    torch.testing.assert_close(ladder[-1], ladder[-2], rtol=0.05, atol=0.02)  # the attack finds about the maximum


@each_region
@each_activation
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_bounds_hold(kind, activation, scale):
    asked = problem(kind=kind, activation=ACTIVATIONS[activation], scale=scale, sigma=0.7, seed=4)
    reached = points(asked, count=100)
    for way in (LinearProgram(), MixedInteger(time_limit=0.1)):
        found = outputs(asked, way)
        assert (found >= reached).all()
        assert (found <= asked.maximum(asked.form.C, asked.form.D)).all()


@each_region
def test_a_domain_cuts_off(kind):
    asked = problem(kind=kind, domain=(-0.5, 0.5), sigma=0.6)
    space = asked.region
    free = replace(asked, region=region(space.centre, 0.6, **REGIONS[kind]))
    found = outputs(asked, LinearProgram())
    assert (found >= points(asked, count=100)).all()
    assert (found <= outputs(free, LinearProgram()) + 1e-6).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 50), st.sampled_from([0.0, 1e-3, 1.0, 1e3]), st.sampled_from(list(ACTIVATIONS)))
def test_any_multipliers_give_a_bound(seed, size, activation):
    asked = problem(activation=ACTIVATIONS[activation], seed=seed % 5)
    y = size * normal(2, 2, 8, dtype=F64, seed=seed)
    found = bound(asked, hull(asked), asked.form.C, asked.form.D, y)
    assert (found >= points(asked, count=50, seed=seed)).all()


@each_activation
def test_polygons_hold_the_graph(activation):
    asked = problem(activation=ACTIVATIONS[activation], sigma=1.0, batch=1)
    polygons = hull(asked)
    z = asked.z.low + torch.linspace(0, 1, 100, dtype=F64)[:, None] * (asked.z.high - asked.z.low)
    x = asked.form.activation(z)
    for angle in torch.linspace(0, 6.28, 50, dtype=F64):
        ends = (angle.cos() * polygons.z + angle.sin() * polygons.x).amax(-1)
        assert (angle.cos() * z + angle.sin() * x <= ends + 1e-12).all()


def test_what_is_found_is_an_input_of_that_value():
    asked = problem(batch=1)
    found = MixedInteger().search(asked, asked.form.C[0], asked.form.D[0])
    assert asked.region.contains(found.u[None]).all()
    x = asked.form.solve(found.u[None]).value
    assert float(asked.form.readout(x, found.u[None])[0, 0]) == pytest.approx(found.value)
    assert found.value <= found.bound <= found.value + 1e-5


def test_what_is_enough_is_decided():
    asked = problem(16, 8, sigma=0.6, batch=1)
    c, d = asked.form.C[0], asked.form.D[0]
    exact = MixedInteger().search(asked, c, d)
    above = MixedInteger().search(asked, c, d, enough=exact.bound + 0.1)
    below = MixedInteger().search(asked, c, d, enough=exact.value - 0.1)
    assert exact.value <= above.bound < exact.bound + 0.1
    assert below.value > exact.value - 0.1


def test_without_time_the_bound_still_holds():
    asked = problem(16, 8, sigma=0.6)
    found = outputs(asked, MixedInteger(time_limit=0.0))
    assert (found >= points(asked, count=50)).all()
    assert (found >= outputs(asked, MixedInteger()) - 1e-9).all()


def test_where_nothing_is_known_nothing_is_bounded():
    asked = problem(batch=2)
    unknown = torch.full_like(asked.z.low, torch.inf)
    unknown[0] = 0
    open_ended = Bounds(asked.z.low - unknown, asked.z.high + unknown)
    fresh = Problem.of(asked.form, asked.region, asked.x0).tighten(z=open_ended)
    for way in (LinearProgram(), MixedInteger()):
        found = outputs(fresh, way)
        assert torch.isfinite(found[0]).all()
        assert (found[1] >= points(asked, count=20)[1]).all()


def test_curved_rows_are_not_branched_on():
    asked = problem(activation=MIXED, batch=1)
    linear, mixed = outputs(asked, LinearProgram()), outputs(asked, MixedInteger())
    assert (mixed >= points(asked, count=100)).all()
    assert (mixed <= linear + 1e-9).all()
    assert (mixed < linear - 1e-6).any()
    torch.testing.assert_close(*(outputs(problem(activation="tanh"), way) for way in (LinearProgram(), MixedInteger())))


def test_groups_have_no_polygons():
    with pytest.raises(NotAffine, match="componentwise"):
        kinks(MaxPool(size=2), 4)


@pytest.mark.parametrize(("name", "kind"), list(zip(MODELS, cycle(["box of pixels", "diamond", "features"]))))
def test_equilibria_of_models_stay_within_the_bounds(name, kind):
    form, asked = form_of(name), problem_of(name, kind)
    found = equilibria(form, asked.region, 50)
    for way in (LinearProgram(), MixedInteger(time_limit=0.02)):
        assert escapes(way, asked, form, found) <= 1e-9, way


def test_certificates_are_exact():
    torch.manual_seed(1)
    model = nn.Sequential(MonotoneDEQ(6, 12, m=0.5), nn.Linear(12, 3)).double()
    x = normal(30, 6, dtype=F64)
    crown, exact = certify(model, x, radius=0.3, method="crown"), certify(model, x, radius=0.3, method="milp")
    assert (exact.robust | exact.falsified).all()
    assert (crown.robust <= exact.robust).all()
    assert "mixed_integer" in {item.method for item in exact}
    for one, u in zip(exact, x, strict=True):
        if one.adversarial is not None:
            assert (one.adversarial - u).abs().max() <= 0.3 + 1e-12
            assert int(model(one.adversarial[None]).argmax()) != one.label


def test_a_ball_is_cut_out_of_its_box():
    asked = problem(16, 8, sigma=1.0, kind="ball")
    linear = outputs(asked, LinearProgram())
    spare = outputs(asked, Crown())  # feasible for the dual of the same programme
    assert (linear <= spare + 1e-3 * (spare - points(asked, count=50)).abs()).all()
    assert (linear < spare - 1e-3).any()
