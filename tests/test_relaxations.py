"""Zonotopes and the semidefinite relaxation: bounds that hold, and where they stand among the others."""

from itertools import cycle

import numpy as np
import pytest
import torch
from bounded import REGIONS, points, problem
from certificates import MODELS, equilibria, escapes, form_of, problem_of
from torch import nn

from implicitnets.analysis import region
from implicitnets.analysis.certificates import sdp
from implicitnets.analysis.certificates.crown import Crown
from implicitnets.analysis.certificates.lp import LinearProgram
from implicitnets.analysis.certificates.milp import MixedInteger
from implicitnets.analysis.certificates.prepare import prepare
from implicitnets.analysis.certificates.problem import Bounds, Problem
from implicitnets.analysis.certificates.run import certify
from implicitnets.analysis.certificates.sdp import Semidefinite
from implicitnets.analysis.certificates.zonotope import Zonotope
from implicitnets.models import ImplicitModel, MonotoneDEQ, affine

F64 = torch.float64
WAYS = {"zonotope": Zonotope(), "semidefinite": Semidefinite()}
each_way = pytest.mark.parametrize("way", WAYS)
each_region = pytest.mark.parametrize("kind", REGIONS)
CASES = [
    pytest.param(way, name, kind, marks=[pytest.mark.slow] if (way, name) == ("semidefinite", "network") else [])
    for way in WAYS
    for name, kind in zip(MODELS, cycle(["box of pixels", "diamond", "ball", "features"]))
]


def outputs(asked, bounder):
    return bounder.maximum(asked, asked.form.C, asked.form.D)


@each_region
@each_way
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "hardtanh", "tanh"])
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_bounds_hold(way, kind, activation, scale):
    asked = problem(kind=kind, activation=activation, scale=scale, sigma=0.7, seed=4)
    found = outputs(asked, WAYS[way])
    assert (found >= points(asked, count=100)).all()
    assert (found <= asked.maximum(asked.form.C, asked.form.D)).all()


@pytest.mark.parametrize(("way", "name", "kind"), CASES)
def test_equilibria_of_models_stay_within_the_bounds(way, name, kind):
    form, asked = form_of(name), problem_of(name, kind)
    assert escapes(WAYS[way], asked, form, equilibria(form, asked.region, 50)) <= 1e-9


@each_region
def test_multipliers_that_are_not_feasible_give_a_bound(kind, monkeypatch):
    asked = problem(kind=kind, batch=1)
    monkeypatch.setattr(sdp, "minimize", lambda pencil, weights, t, most, **_: (weights / 10, 1.0))
    form, c, d = sdp._Shor(asked), asked.form.C[1], asked.form.D[1]
    found = form.bound(c, d, (-10.0, 10.0), 1e-6)
    assert found >= float(points(asked, count=100)[0, 1])


@pytest.mark.parametrize("norm", [0.5, 0.9])
@pytest.mark.parametrize("sigma", [0.05, 0.3])
@pytest.mark.parametrize(("n", "p"), [(8, 4), (16, 8)])
def test_the_semidefinite_relaxation_is_between_linear_and_exact(n, p, norm, sigma):
    asked = Crown().tighten(problem(n, p, norm, sigma))
    linear, between, exact = (outputs(asked, way) for way in (LinearProgram(), Semidefinite(), MixedInteger()))
    assert (between <= linear + 1e-4 * (1 + linear.abs())).all()
    assert (between >= exact - 1e-9).all()
    if sigma == 0.3:
        assert (between - exact).sum() < 0.6 * (linear - exact).sum()


def test_one_relu_is_exact():
    """max x − z / 2 over x = relu(z), |z| ≤ 1 is 1/2 at both ends, and so is the chord; max −x + z / 2 is 0 at 0."""
    asked = problem(1, 1, sigma=1.0, batch=1)
    form, w = asked.form, asked.form.B[0, 0]
    form.A.zero_(), form.b.zero_()
    asked = Problem.of(form, asked.region, asked.x0)
    asked.region.centre.zero_(), asked.region.low.fill_(-1), asked.region.high.fill_(1)
    asked = asked.tighten(z=Bounds(-w.abs().view(1, 1), w.abs().view(1, 1)))
    for sign, best in ((1, float(w.abs()) / 2), (-1, 0.0)):
        c, d = torch.tensor([[1.0 * sign]], dtype=F64), torch.tensor([[-0.5 * sign]], dtype=F64) * w
        assert float(Semidefinite().maximum(asked, c, d)) == pytest.approx(best, abs=1e-4)


def test_zonotopes_are_solved_and_not_iterated():
    """The noise of each row through the inverse, by hand, is never below what is computed from the multipliers."""
    asked = problem(batch=1)
    form, (low, high) = asked.form, (end[0] for end in asked.z)
    apart = (low < 0) & (high > 0)
    slope = torch.where(apart, high / (high - low), (low >= 0).to(F64))
    noise = torch.where(apart, -slope * low / 2, 0)
    v = form.C @ torch.linalg.inv(torch.eye(8, dtype=F64) - slope[:, None] * form.A)
    centre = v @ (slope * (form.B @ asked.region.centre[0] + form.b) + noise) + form.D @ asked.region.centre[0]
    value = centre + v.abs() @ noise + asked.region.support((v * slope) @ form.B + form.D)[0]
    torch.testing.assert_close(outputs(asked, Zonotope())[0], torch.minimum(value, asked.maximum(form.C, form.D)[0]))


@each_way
def test_where_nothing_is_known_nothing_is_bounded(way):
    asked = problem()
    fresh = Problem.of(asked.form, asked.region, asked.x0)
    assert torch.isposinf(outputs(fresh, WAYS[way])).all()


def test_zonotopes_tighten():
    asked = problem(16, 8)
    tight = Zonotope().tighten(asked)
    assert (tight.z.high - tight.z.low <= asked.z.high - asked.z.low).all()
    assert (outputs(tight, Zonotope()) <= outputs(asked, Zonotope()) + 1e-12).all()


@pytest.mark.parametrize("method", ["zonotope", "sdp"])
def test_certificates_by_name(method):
    torch.manual_seed(1)
    model, x = MonotoneDEQ(6, 4, m=0.5).double(), torch.randn(10, 6, dtype=F64)
    found, exact = (certify(model, x, radius=0.1, method=name) for name in (method, "milp"))
    assert (found.robust <= exact.robust).all()
    assert np.all(found.margins.numpy() <= [item.worst + 1e-9 for item in found])


def test_feed_forward_networks_are_bounded_by_back_substitution():
    """Layer by layer with one slope for each unit, as verifiers of explicit networks do it."""
    torch.manual_seed(0)
    first, second, last = (nn.Linear(*sizes).double() for sizes in ((3, 5), (5, 4), (4, 2)))
    with torch.no_grad():
        form = affine(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last), (3,)).map(torch.Tensor.detach)
        asked = prepare(form, region(torch.zeros(1, 3, dtype=F64), 0.8), form.solve(torch.zeros(1, 3, dtype=F64)).value)
        low, high = (end[0] for end in asked.z)
        v, value = last.weight, last.bias
        for layer, rows in ((second, slice(0, 4)), (first, slice(4, 9))):
            below, above = low[rows], high[rows]
            slope = torch.where(above <= 0, 0, torch.where(below >= 0, 1, above / (above - below)))
            noise = torch.where((below < 0) & (above > 0), -slope * below / 2, 0)
            value = value + v @ noise + v.abs() @ noise + (v * slope) @ layer.bias
            v = (v * slope) @ layer.weight
        value = value + 0.8 * v.abs().sum(1)
        plain = asked.maximum(form.C, form.D)[0] + form.c
        torch.testing.assert_close(outputs(asked, Zonotope())[0] + form.c, torch.minimum(value, plain))


def test_a_zonotope_of_a_singular_matrix_bounds_nothing_and_raises_nothing():
    """x = 1 · x + u: no slope but 1, and I − ΛA is 0."""
    form = ImplicitModel.from_matrices(*(torch.ones(1, 1, dtype=F64),) * 4, activation="identity").affine()
    form = form.map(torch.Tensor.detach)
    asked = Problem.of(form, region(torch.zeros(1, 1, dtype=F64), 0.1), torch.zeros(1, 1, dtype=F64))
    asked = asked.tighten(z=Bounds(*torch.tensor([[[-5.0]], [[5.0]]], dtype=F64)))
    assert float(Zonotope().maximum(asked, form.C, form.B)) >= 5
