"""Certificates hold: equilibria do not leave the bounds, whoever looks for them, and wrong bounds are found out."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from certificates import MODELS, REGIONS, equilibria, escapes, form_of, inputs, problem_of, scaled
from problems import normal
from torch import nn

from implicitnets.analysis import PGD, attack, region
from implicitnets.analysis.certificates.certificate import Verdict
from implicitnets.analysis.certificates.crown import Crown
from implicitnets.analysis.certificates.lp import LinearProgram
from implicitnets.analysis.certificates.milp import MixedInteger
from implicitnets.analysis.certificates.problem import Bounds, states
from implicitnets.analysis.certificates.run import certify, reachable
from implicitnets.analysis.certificates.simple import ClosedForm, Interval, MonotoneBall
from implicitnets.analysis.certificates.zonotope import Zonotope
from implicitnets.models import DEQ, ImplicitModel, MonotoneDEQ, NotAffine
from implicitnets.solvers import PeacemanRachford

BOUNDERS = {
    "closed form": ClosedForm(),
    "local closed form": ClosedForm(rounds=3),
    "ball": MonotoneBall(),
    "interval": Interval(),
    "crown": Crown(),
    "crown, from outside, one step": Crown(tries=0, steps=1),
}
TOLERANCE = 1e-9  # of the equilibria that are found


@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("name", MODELS)
def test_equilibria_stay_within_the_bounds(name, kind):
    form, problem = form_of(name), problem_of(name, kind)
    points = equilibria(form, problem.region, 60)
    for bounder in BOUNDERS.values():
        assert escapes(bounder, problem, form, points) <= TOLERANCE, bounder


class Euclidean(MonotoneBall):
    """The radius of a box taken for that of a ball."""

    def maximum(self, problem, x_part, u_part):
        u, reach = problem.region.centre, (problem.region.high - problem.region.low).amax(1, keepdim=True) / 2
        return super().maximum(replace(problem, region=region(u, reach, 2)), x_part, u_part)


class FromInside(Interval):
    """Interval iterations from the equilibrium of the centre, stopped early."""

    def tighten(self, problem):
        x = Bounds(problem.x0, problem.x0)
        for _ in range(3):
            z = replace(problem, x=x).values(problem.form.A, problem.form.B, problem.form.b)
            x = states(problem.form, z)
        return replace(problem, z=z, x=x)


class NoResidual(Crown):
    """The adjoint equation is taken to be solved, and is not."""

    def _adjoint(self, A, c, line):
        return c

    def _linear(self, problem, c, q, d):
        return super()._linear(replace(problem, x=Bounds(0 * problem.x.low, 0 * problem.x.high)), c, q, d)


class Noise(Crown):
    """Any solution of the adjoint equation, however wrong: bounds hold all the same."""

    def _adjoint(self, A, c, line):
        return super()._adjoint(A, c, line) + normal(*c.shape, dtype=c.dtype)


WRONG = {"Euclidean": Euclidean(), "from inside": FromInside(), "no residual": NoResidual(tries=0)}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_bounds_are_found_out(name):
    form, problem = form_of("sums"), problem_of("sums", "box")
    assert escapes(WRONG[name], problem, form, equilibria(form, problem.region, 300)) > 1e-3


@pytest.mark.parametrize("name", ["contraction of 0.999", "monotone", "every activation"])
def test_bounds_hold_for_any_solution_of_the_adjoint_equation(name):
    form, problem = form_of(name), problem_of(name, "box")
    assert escapes(Noise(tries=0), problem, form, equilibria(form, problem.region, 100)) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_hundred_thousand_equilibria_stay_within_the_bounds(name):
    form = form_of(name)
    for kind in REGIONS:
        problem = problem_of(name, kind)
        points = equilibria(form, problem.region, 5000)  # of three samples each, in seven regions: 105,000
        for bounder in BOUNDERS.values():
            assert escapes(bounder, problem, form, points) <= TOLERANCE, (kind, bounder)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_programmes_that_are_stopped_early_bound_every_equilibrium(name):
    form = form_of(name)
    for kind in REGIONS:
        problem = problem_of(name, kind)
        points = equilibria(form, problem.region, 500)
        for bounder in (Zonotope(), LinearProgram(), MixedInteger(time_limit=0.01)):
            assert escapes(bounder, problem, form, points) <= TOLERANCE, (kind, bounder)


@pytest.mark.parametrize("name", MODELS)
def test_methods_are_in_order(name):
    problem = problem_of(name, "box")
    C, D = problem.form.C, problem.form.D
    order = [ClosedForm(), ClosedForm(rounds=3), Interval(), Crown(rounds=1, tries=0), Crown()]
    bounds = [bounder.maximum(bounder.tighten(problem), C, D) for bounder in order]
    for looser, tighter in pairwise(bounds):
        assert (tighter <= looser + 1e-6 * (1 + looser.abs())).all()


def test_a_linear_model_is_bounded_exactly():
    A, B, C, D = (normal(*size, dtype=torch.float64, seed=i) for i, size in enumerate([(5, 5), (5, 4), (3, 5), (3, 4)]))
    model = ImplicitModel.from_matrices(A / 20, B, C, D, activation="identity")
    u = inputs()
    found = reachable(model, u, radius=0.2)
    S = C @ torch.linalg.solve(torch.eye(5) - A / 20, B) + D
    reach = 0.2 * S.abs().sum(1)
    torch.testing.assert_close(found.low, u @ S.T - reach, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.high, u @ S.T + reach, rtol=1e-9, atol=1e-9)


def test_nothing_is_claimed_of_a_model_with_two_equilibria():
    one = torch.ones(1, 1, dtype=torch.float64)
    model = ImplicitModel.from_matrices(2 * one, -one, torch.cat([one, -one]), 0 * torch.cat([one, one]), one[0] / 2)
    (found,) = certify(model.double(), one / 4, torch.tensor([0]), radius=0.01, method="crown")
    assert found.verdict is not Verdict.ROBUST
    assert found.states.high.isinf().all()


def classifier(activation="relu"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), scaled(MonotoneDEQ(4, 6, activation=activation), 2), nn.Linear(6, 3))


@pytest.mark.parametrize("kind", REGIONS)
def test_verdicts_are_right(kind):
    dtype = torch.float32 if kind in ("box", "ball") else torch.float64
    model, x = classifier().to(dtype), normal(20, 4, dtype=dtype).sigmoid()
    how = REGIONS[kind]
    found = certify(model, x, method="crown", **how)
    labels = torch.tensor([item.label for item in found])
    result = attack(model, x, labels, method=PGD(steps=10, restarts=1), **how)
    assert not (found.robust & result.success).any()
    assert (found.margins <= result.after + 1e-6).all()
    with torch.no_grad():
        for item, u in zip(found, x, strict=True):
            assert item.margin <= item.worst + 1e-6  # of inputs rounded to the dtype of x
            if item.verdict is Verdict.FALSIFIED:
                assert item.adversarial.dtype == dtype
                assert model.double()(item.adversarial[None].double()).argmax() != item.label
                assert region(u[None].double(), **per_sample(how)).contains(item.adversarial[None].double(), 1e-6)


def per_sample(how):
    return {key: value.double() if isinstance(value, torch.Tensor) else value for key, value in how.items()}


def test_all_verdicts_occur_and_say_what_decided():
    model, x = classifier(), normal(40, 4, dtype=torch.float32).sigmoid()
    wrong = (model(x).argmax(1) + 1) % 3
    found = certify(model, x, radius=0.05, method="crown")
    assert found.robust.any()
    assert all(item.method == "crown" for item in found if item.verdict is Verdict.ROBUST)
    assert certify(model, x, radius=2.0, method="crown").falsified.any()
    clean = certify(model, x, wrong, radius=0.05)
    assert clean.falsified.all()
    assert all(item.method == "clean" for item in clean)
    torch.testing.assert_close(torch.stack([item.adversarial for item in clean]), x)


def test_samples_that_are_not_finite_are_unknown_and_stop_nothing():
    model, x = classifier(), normal(5, 4, dtype=torch.float32).sigmoid()
    x[1, 2], x[3, 0] = torch.nan, torch.inf
    done = []
    found = certify(model, x, radius=1e-3, batch=2, progress=lambda *counts: done.append(counts))
    assert [item.verdict is Verdict.UNKNOWN for item in found] == [False, True, False, True, False]
    assert found[1].states.high.isinf().all()
    assert done == [(2, 5), (4, 5), (5, 5)]
    assert str(found).startswith("5 samples: ")
    assert len(found[1:3]) == 2
    bounds = reachable(model, x, radius=1e-3)
    assert torch.isfinite(bounds.high).all(1).tolist() == [True, False, True, False, True]


def test_the_model_and_its_settings_stay_and_play_no_part():
    model, x = classifier(), normal(5, 4, dtype=torch.float32).sigmoid()
    expected = certify(model, x, radius=0.01, method="crown").margins
    model[1].solver = PeacemanRachford(max_steps=1)
    model.train()
    torch.testing.assert_close(certify(model, x, radius=0.01, method="crown").margins, expected)
    assert model.training
    assert model[1].W.dtype == torch.float32


def test_goals_are_functionals_of_the_outputs():
    model, x = classifier(), normal(6, 4, dtype=torch.float64).sigmoid()
    low, high = reachable(model, x, radius=0.05, method=Crown())
    found = certify(model, x, radius=0.05, goals=torch.tensor([[1.0, 0.0, 0.0]]), method=Crown())
    torch.testing.assert_close(found.margins, low[:, 0])
    both = reachable(model, x, radius=0.05, goals=torch.tensor([[1.0, -1.0, 0.0]]), method=Crown())
    assert (both.low[:, 0] >= low[:, 0] - high[:, 1] - 1e-9).all()
    assert all(item.label is None for item in found)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "magic"}, ValueError, "the methods are"),
        ({"method": 3}, TypeError, "neither a name"),
        ({"labels": torch.tensor([0, 1])}, ValueError, "labels must be 5 classes"),
        ({"labels": torch.full((5,), 7)}, ValueError, "from 0 to 2"),
        ({"goals": torch.ones(1, 4)}, ValueError, "goals has shape"),
        ({"goals": torch.ones(1, 3), "labels": torch.zeros(5).long()}, ValueError, "both given"),
    ],
    ids=["method", "no method", "few labels", "no labels", "goals", "both"],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        certify(classifier(), torch.rand(5, 4), radius=0.1, **arguments)


def test_integers_are_refused_and_a_batch_of_none_is_answered():
    model = classifier()
    for ask in (certify, reachable):
        with pytest.raises(ValueError, match="floating point"):
            ask(model, torch.ones(5, 4).long(), radius=0.1)
    assert len(certify(model, torch.ones(0, 4), radius=0.1)) == 0
    assert reachable(model, torch.ones(0, 4), radius=0.1).low.shape == (0, 3)


def test_other_models_say_what_is_missing():
    with pytest.raises(NotAffine, match="DEQ is not known to be of the form"):
        certify(nn.Sequential(DEQ(nn.Linear(4, 4), state_shape=(4,)), nn.Linear(4, 3)), torch.rand(5, 4), radius=0.1)
    with pytest.raises(NotAffine, match="nothing is proved of activation"):
        certify(ImplicitModel(4, 6, 3, activation="gelu", constraint=None), torch.rand(5, 4), radius=0.1)
