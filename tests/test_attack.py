"""Attacks: inside their region, exact where the answer is known, and of a model that stays as it is."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from implicitnets.analysis import FGSM, PGD, Sparse, attack
from implicitnets.analysis.regions import region
from implicitnets.models import ImplicitModel

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
    return ImplicitModel.from_matrices(A, B, C, D, b, c, activation="identity")


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
