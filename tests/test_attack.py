"""Attacks: inside their region, exact where the answer is known, and of a model that stays as it is."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from implicitnets import ConvergenceWarning, Unroll
from implicitnets.analysis import FGSM, PGD, SPSA, LinearProgramAttack, Noise, Sparse, attack
from implicitnets.analysis.regions import region
from implicitnets.models import DEQ, ConvDEQ, ImplicitModel, MonotoneDEQ, WarmStart, from_sequential
from implicitnets.models.structures import Triangular
from implicitnets.solvers import Anderson, Picard

DUAL = {"inf": 1, "2": 2, "1": math.inf}
NORMS = [("inf", 0.05), (2, 0.15), (1, 0.3)]
by_norm = pytest.mark.parametrize(("norm", "radius"), NORMS, ids=["inf", "2", "1"])


def affine_model(classes=2, inputs=6, gain=0.5):
    """Y = Cx + Du + c with x = Ax + Bu + b: linear in u, but its states are found by iteration."""
    draw = torch.Generator().manual_seed(0)
    A, B, C, D, b, c = (
        torch.randn(*shape, generator=draw, dtype=torch.float64)
        for shape in ((4, 4), (4, inputs), (classes, 4), (classes, inputs), (4,), (classes,))
    )
    A = A * gain / A.abs().sum(1, keepdim=True)
    exact = Anderson(rtol=1e-12, atol=1e-13, max_steps=100)
    return ImplicitModel.from_matrices(A, B, C, D, b, c, activation="identity", solver=exact)


def slope(model):
    """Dy / du of that model."""
    eye = torch.eye(model.states, dtype=torch.float64)
    return (model.C @ torch.linalg.solve(eye - model.A, model.B) + model.D).detach()


def classifier(inputs=8, classes=3, states=10, seed=0, **options):
    torch.manual_seed(seed)
    model = ImplicitModel(inputs, states, classes, **options).double()
    with torch.no_grad():
        model.C.mul_(4)
    return model


def points(count=12, inputs=8, seed=1, dtype=torch.float64):
    return torch.rand(count, inputs, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ------------------------------------------------------------------------------------------- where the answer is known


@by_norm
@pytest.mark.parametrize("method", [FGSM(), FGSM(loss="ce"), PGD(steps=3)], ids=repr)
def test_linear_model_loses_the_radius_times_the_dual_norm(norm, radius, method):
    model, x = affine_model(), points(inputs=6)
    labels = model(x).argmax(1)
    w = slope(model)
    expected = radius * torch.linalg.vector_norm(w[0] - w[1], DUAL[str(norm)])
    safe = attack(model, x, labels, radius=0.0).before > 1.001 * expected
    assert safe.any()
    result = attack(model, x[safe], labels[safe], radius=radius, norm=norm, method=method)
    torch.testing.assert_close(result.before - result.after, expected.expand(int(safe.sum())), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        (result.inputs - x[safe]).norm(float(norm), dim=1), torch.full_like(result.after, radius)
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("method", [Sparse(), Sparse(rounds=1, steps=0), PGD()], ids=repr)
def test_sparse_attack_of_a_linear_model_changes_the_entries_that_weigh_most(count, method):
    model, x = affine_model(), points(inputs=6)
    labels, w = model(x).argmax(1), slope(model)
    expected = 0.2 * (w[0] - w[1]).abs().topk(count).values.sum()
    safe = attack(model, x, labels, radius=0.0).before > 1.001 * expected
    result = attack(model, x[safe], labels[safe], radius=0.2, cardinality=count, method=method)
    torch.testing.assert_close(result.before - result.after, expected.expand(int(safe.sum())), rtol=1e-9, atol=1e-9)
    assert ((result.inputs != x[safe]).sum(1) == count).all()


@by_norm
def test_linear_model_of_several_classes_loses_the_least_of_all_margins(norm, radius):
    model, x = affine_model(classes=5), points(inputs=6)
    labels, w = model(x).argmax(1), slope(model)
    lead = model(x).gather(1, labels[:, None]) - model(x)
    loss = radius * torch.linalg.vector_norm(w[labels][:, None] - w, DUAL[str(norm)], dim=2)
    expected = (lead - loss).scatter(1, labels[:, None], torch.inf).amin(1)
    result = attack(model, x, labels, radius=radius, norm=norm, method=PGD(steps=2, targets=4))
    survived = expected > 0
    assert 2 < survived.sum() < len(x)
    assert torch.equal(result.success, ~survived)
    torch.testing.assert_close(result.after[survived], expected[survived].detach())


@pytest.mark.parametrize(
    "how", [{"norm": "inf"}, {"norm": 1}, {"cardinality": 2}], ids=["inf", "1", "cardinality"]
)  # balls of the norm 2 are cut, not met
def test_linear_programmes_find_the_worst_input_of_a_linear_model(how):
    model, x = affine_model(classes=3), points(inputs=6)
    labels, how = model(x).argmax(1), {"radius": 0.1, **how}
    best, found = (attack(model, x, labels, method=m, **how) for m in (PGD(targets=2), LinearProgramAttack(classes=2)))
    open_ = ~best.success
    assert open_.any()
    assert torch.equal(found.success, best.success)
    torch.testing.assert_close(found.after[open_], best.after[open_], rtol=1e-6, atol=1e-6)


@by_norm
def test_linear_programmes_attack_models_that_are_not_linear(norm, radius):
    model, x = classifier(), points()
    result = attack(model, x, radius=radius, norm=norm, domain=(0, 1), method=LinearProgramAttack())
    one = attack(model, x, radius=radius, norm=norm, domain=(0, 1), method=FGSM())
    assert (result.after < result.before).all()
    assert result.after.sum() < 0.9 * one.after.sum() + 0.1 * one.before.sum()  # it gets nearly as far


def test_differences_find_what_gradients_find():
    model, x = affine_model(), points(inputs=6)
    labels = model(x).argmax(1)
    how = {"radius": 0.05, "norm": "inf"}
    best, found, noise = (attack(model, x, labels, method=m, **how) for m in (FGSM(), SPSA(), Noise()))
    open_ = ~best.success
    lost, regained = best.before - best.after, found.before - found.after
    assert (regained[open_] > 0.9 * lost[open_]).all()
    assert (noise.after[open_] >= best.after[open_] - 1e-9).all()
    assert (noise.after < noise.before).all()


# -------------------------------------------------------------------------------------------------- inside the region


@settings(max_examples=25, deadline=None)
@given(
    radius=st.floats(0, 2),
    norm=st.sampled_from(["inf", 2, 1, "few"]),
    domain=st.sampled_from([None, (0.0, 1.0)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 100),
)
def test_inputs_stay_in_the_region(radius, norm, domain, dtype, seed):
    few = norm == "few"
    how = {"radius": radius, "norm": "inf" if few else norm, "cardinality": 2 if few else None, "domain": domain}
    model, x = classifier(), points(seed=seed, dtype=dtype)
    result = attack(model, x, method=PGD(steps=4), **how)
    assert result.inputs.dtype == dtype
    assert region(x.double(), **how).contains(result.inputs.double(), tol=1e-12).all()
    assert (result.after <= result.before).all()
    torch.testing.assert_close(attack(model, result.inputs, result.labels, radius=0).before, result.after)


# ------------------------------------------------------------------------------------------------ one against another


@by_norm
def test_many_steps_are_never_worse_than_one(norm, radius):
    model, x = classifier(), points(40)
    one, many = (attack(model, x, radius=2 * radius, norm=norm, method=m) for m in (FGSM(), PGD()))
    assert (many.after <= one.after + 1e-12)[~one.success].all()  # some are the same point, up to rounding
    assert many.success[one.success].all()
    assert many.after[~many.success].sum() < one.after[~many.success].sum()


def test_a_larger_radius_fools_more_and_one_without_bounds_fools_all():
    model, x = classifier(), points(40)
    left = [attack(model, x, radius=radius).accuracy for radius in (0.0, 0.05, 0.1, 0.2, 20.0)]
    assert left == sorted(left, reverse=True)
    assert left[0] == 1
    assert left[-1] == 0


def test_exact_gradients_are_stronger_than_jacobian_free_ones():
    model, x = classifier(states=30, activation="tanh"), points(60)
    how = {"radius": 0.15, "norm": 2, "method": PGD(steps=10)}
    exact, jfb = (attack(model, x, gradient=gradient, **how) for gradient in ("exact", Unroll()))
    assert exact.accuracy <= jfb.accuracy
    both = ~exact.success & ~jfb.success
    assert exact.after[both].mean() < jfb.after[both].mean()


def test_gradient_of_the_model_is_the_one_it_is_set_to():
    model, x = classifier(states=30), points(20)
    model.backward = Unroll()
    how = {"radius": 0.2, "norm": 2, "method": FGSM()}
    own, jfb = (attack(model, x, gradient=gradient, **how) for gradient in ("model", Unroll()))
    torch.testing.assert_close(own.inputs, jfb.inputs, rtol=0, atol=1e-3)
    assert not torch.allclose(own.inputs, attack(model, x, **how).inputs, rtol=0, atol=1e-3)


def test_sensitivities_rank_entries_too():
    model, x = classifier(), points(30)
    how = {"radius": 1.0, "cardinality": 2}
    by_sample, for_all = (attack(model, x, method=Sparse(ranking=r), **how) for r in ("gradient", "sensitivity"))
    assert by_sample.accuracy <= for_all.accuracy < 1
    changed = (for_all.inputs != x).any(0)
    assert changed.sum() < (by_sample.inputs != x).any(0).sum()  # the same few entries in all samples


# --------------------------------------------------------------------------------------------- the model, its settings


def test_the_model_stays_as_it_is():
    model = nn.Sequential(ImplicitModel(8, 6, 5, start=WarmStart(samples=100)), nn.Dropout(0.5), nn.Linear(5, 3))
    model(points(dtype=torch.float32)).sum().backward()
    before, settings_ = copy.deepcopy(model.state_dict()), repr(model)
    grads = [p.grad.clone() for p in model.parameters()]
    record, state = model[0].forward_solution, torch.get_rng_state()
    attack(model, points(dtype=torch.float32), radius=0.3, method=PGD(steps=3, restarts=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) and p.requires_grad for p, g in zip(model.parameters(), grads, strict=True))
    assert model[0].forward_solution is record
    assert model.training
    assert repr(model) == settings_


def test_its_solver_and_backward_do_not_matter():
    sound, x = classifier(states=20), points()
    loose = copy.deepcopy(sound)
    loose.solver, loose.backward = Picard(rtol=0.5, max_steps=2), Unroll()
    results = [attack(model, x, radius=0.1, norm=2) for model in (sound, loose)]
    torch.testing.assert_close(results[0].inputs, results[1].inputs)
    torch.testing.assert_close(results[0].after, results[1].after)
    with torch.inference_mode():
        torch.testing.assert_close(attack(loose, x, radius=0.1, norm=2).inputs, results[0].inputs)


def feedforward():
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


MODELS = {
    "network": (feedforward, (8,)),
    "monotone": (lambda: nn.Sequential(MonotoneDEQ(8, 6), nn.Linear(6, 3)), (8,)),
    "triangular": (lambda: ImplicitModel(8, 6, 3, structure=Triangular(sizes=(3, 3))), (8,)),
    "converted": (lambda: from_sequential(feedforward(), 8), (8,)),
    "images": (lambda: nn.Sequential(ConvDEQ(1, 4, groups=2), nn.Flatten(), nn.Linear(64, 3)), (1, 4, 4)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_classifier_can_be_attacked(name, dtype):
    make, shape = MODELS[name]
    x = torch.rand(20, *shape, dtype=dtype)
    result = attack(make().to(dtype), x, radius=0.3, domain=(0, 1), method=PGD(steps=5))
    assert result.inputs.shape == x.shape
    assert (result.after < result.before).all()
    assert not result.unconverged.any()
    assert len(result) == 20
    assert "20 samples: 0 wrong before" in repr(result)


# ----------------------------------------------------------------------------------------------------- sample by sample


def test_what_a_sample_gets_does_not_depend_on_the_others():
    model, x = classifier(), points()
    how = {"radius": 0.1, "norm": 2, "method": [Noise(tries=5), PGD(steps=5, restarts=3)]}
    together, alone = attack(model, x, **how), attack(model, x[:1], **how)
    in_parts = attack(model, x, batch=5, **how)
    torch.testing.assert_close(together.inputs[:1], alone.inputs)
    torch.testing.assert_close(together.inputs, in_parts.inputs)
    with_another = attack(model, x[[0, 5]], **how | {"method": Noise(tries=5)})
    torch.testing.assert_close(attack(model, x[:1], **how | {"method": Noise(tries=5)}).inputs, with_another.inputs[:1])


def test_the_generator_decides():
    model, x = classifier(), points()
    how = {"radius": 0.1, "norm": 2, "method": Noise(tries=3)}
    first, again, other = (
        attack(model, x, generator=None if s is None else torch.Generator().manual_seed(s), **how) for s in (0, None, 1)
    )
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, other.inputs)


def test_a_sample_is_left_alone_once_it_is_fooled():
    model, x = classifier(), points(40)
    labels = attack(model, x, radius=0).labels
    labels[:5] = (labels[:5] + 1) % 3
    result = attack(model, x, labels, radius=0.1, method=PGD(steps=10))
    assert torch.equal(result.success[:5], result.before[:5] < 0)
    assert (result.evaluations[:5] == 1).all()
    assert torch.equal(result.inputs[:5], x[:5])
    assert (result.evaluations[~result.success] == 12).all()  # the input, ten gradients, and where they led
    assert result.evaluations[5:][result.success[5:]].max() < 12


def test_methods_share_the_work():
    model, x = classifier(), points(40)
    result = attack(model, x, radius=0.1, method=[FGSM(), PGD(steps=5)])
    alone = attack(model, x, radius=0.1, method=FGSM())
    assert torch.equal(result.inputs[alone.success], alone.inputs[alone.success])
    assert (result.evaluations[alone.success] == 3).all()
    assert (result.evaluations[~result.success] == 9).all()  # three, and five gradients and where they led


# ---------------------------------------------------------------------------------------- equilibria that are not there


class Square(nn.Module):
    """Z = z² + x has a solution for x ≤ 1/4 alone; the lesser is (1 − √(1 − 4x)) / 2."""

    def forward(self, z, x):
        return z.square() + x


class Threshold(nn.Module):
    """The first class as long as z < 0.4, that is, x < 0.24."""

    def __init__(self):
        super().__init__()
        self.deq = DEQ(Square(), solver=Picard(max_steps=30))

    def forward(self, x):
        z = self.deq(x)
        return torch.cat([0.4 - z, z - 0.4], 1)


def test_an_input_without_an_equilibrium_is_no_success():
    x, labels = torch.tensor([[0.2], [0.1]]).double(), torch.zeros(2, dtype=torch.int64)
    with pytest.warns(ConvergenceWarning, match="2 of 2 samples are unknown"):
        result = attack(Threshold(), x, labels, radius=0.5, method=FGSM())
    assert not result.success.any()
    assert result.unknown.all()
    assert result.unconverged.tolist() == [1, 1]
    assert torch.equal(result.inputs, x)
    assert result.accuracy == 1


def test_one_with_an_equilibrium_is_found_beside_those_without():
    x, labels = torch.tensor([[0.2], [0.22]]).double(), torch.zeros(2, dtype=torch.int64)
    with pytest.warns(ConvergenceWarning, match="0 of 2 samples are unknown"):
        result = attack(Threshold(), x, labels, radius=0.06, method=Noise(tries=40))
    assert result.success.all()
    assert ((result.inputs > 0.24) & (result.inputs <= 0.25)).all()


def test_a_region_with_equilibria_everywhere_is_survived():
    result = attack(Threshold(), torch.full((1, 1), 0.2).double(), torch.zeros(1, dtype=torch.int64), radius=0.035)
    assert not (result.success | result.unknown).any()


def test_an_input_that_has_no_equilibrium_itself_is_unknown():
    with pytest.warns(ConvergenceWarning):
        result = attack(Threshold(), torch.ones(1, 1).double(), radius=0.1, method=FGSM())
    assert result.unknown.all()


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, "one class for each"),
        ({"labels": torch.zeros(12)}, ValueError, "int64"),
        ({"labels": torch.full((12,), 3)}, ValueError, "from 0 to 2"),
        ({"method": "pgd"}, TypeError, "is not an attack"),
        ({"method": PGD}, TypeError, "is not an attack"),
        ({"method": []}, TypeError, "is not an attack"),
        ({"gradient": "jfb"}, ValueError, "gradient must be"),
        ({"gradient": 3}, TypeError, "gradient must be"),
        ({"radius": -1.0}, ValueError, "radius"),
        ({"norm": 3}, ValueError, "norm"),
        ({"method": Sparse()}, ValueError, "cardinality"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(change, error, says):
    with pytest.raises(error, match=says):
        attack(classifier(), points(), **{"radius": 0.1, **change})


def test_integers_are_refused_and_a_batch_of_none_is_answered():
    with pytest.raises(ValueError, match="floating point"):
        attack(classifier(), points().long(), radius=0.1)
    result = attack(classifier(), points()[:0], radius=0.1)
    assert result.inputs.shape == points()[:0].shape
    assert not result.success.numel()


@pytest.mark.parametrize(
    "make",
    [
        lambda: PGD(steps=0),
        lambda: PGD(restarts=0),
        lambda: PGD(targets=-1),
        lambda: PGD(step_size=0),
        lambda: PGD(loss="dlr"),
        lambda: FGSM(loss="dlr"),
        lambda: Sparse(ranking="random"),
        lambda: Sparse(rounds=0),
        lambda: Noise(tries=0),
        lambda: SPSA(directions=0),
        lambda: LinearProgramAttack(classes=0),
    ],
    ids=[
        "steps",
        "restarts",
        "targets",
        "step_size",
        "loss",
        "fgsm",
        "ranking",
        "rounds",
        "tries",
        "directions",
        "classes",
    ],
)
def test_bad_options_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_a_model_without_logits_is_refused():
    with pytest.raises(ValueError, match="at least two classes"):
        attack(nn.Linear(8, 1).double(), points(), radius=0.1)


def test_sensitivities_need_a_spectral_radius_below_one():
    model = nn.Sequential(MonotoneDEQ(8, 6), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].B.mul_(30)
    with pytest.raises(ValueError, match="not below 1"):
        attack(model, points(), radius=0.1, cardinality=2, method=Sparse(ranking="sensitivity"))
