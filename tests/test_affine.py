"""Affine forms compute what their models do, and are differentiable in the parameters."""

import pytest
import torch
from architectures import ARCHITECTURES
from problems import normal
from torch import nn

from implicitnets import Implicit
from implicitnets.models import (
    DEQ,
    AffineForm,
    ImplicitModel,
    IntervalMonotoneDEQ,
    LipschitzDEQ,
    MonotoneConvDEQ,
    MonotoneDEQ,
    NonEuclideanDEQ,
    NotAffine,
    SparseCoding,
    affine,
)
from implicitnets.solvers import GMRES, Anderson, Fallback, PeacemanRachford

CHAIN = Anderson(max_steps=300), PeacemanRachford(max_steps=3000)
TIGHT = Fallback(*CHAIN, rtol=1e-11, atol=1e-12)


def tight(model):
    """The model, its equilibria found to rounding."""
    for module in model.modules():
        if getattr(module, "solver", None) is not None:
            module.backward = Implicit(solver=GMRES(rtol=1e-12, atol=1e-13, max_steps=200))
            module.solver = TIGHT if "DEQ" in type(module).__name__ else Anderson(rtol=1e-11, atol=1e-12, max_steps=300)
    return model


AFFINE = [
    name
    for name in ARCHITECTURES
    if name.startswith(("ImplicitModel", "Monotone", "Interval", "Lipschitz", "NonEuclidean", "from_seq"))
]

SEQUENCES = {
    "linear layers around": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 20), nn.Linear(20, 9, bias=False), MonotoneDEQ(9, 6), nn.Identity(), nn.Linear(6, 3)
    ),
    "one after the other": lambda: nn.Sequential(
        nn.Flatten(), NonEuclideanDEQ(64, 8), nn.Sequential(nn.Linear(8, 5), IntervalMonotoneDEQ(5, 4))
    ),
    "activations between": lambda: nn.Sequential(
        nn.Flatten(), ImplicitModel(64, 8, 6, activation="tanh"), nn.Softplus(), nn.Linear(6, 5), LipschitzDEQ(5, 4, 2)
    ),
    "images": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), MonotoneConvDEQ(2, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 4)
    ),
    "images of images": lambda: nn.Sequential(MonotoneConvDEQ(1, 2), MonotoneConvDEQ(2, 1), nn.MaxPool2d(4)),
    "no equilibrium": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 4)
    ),
}


def compare(model, u):
    """The form of the model on u, beside the model."""
    with torch.no_grad():
        form = affine(model, tuple(u.shape[1:]))
        flat = u.flatten(1)
        y = form.readout(form.solve(flat).value, flat)
        out = model(u)
        out = out if isinstance(out, torch.Tensor) else torch.cat([tier.flatten(1) for tier in out], 1)
    torch.testing.assert_close(y, out.flatten(1), rtol=1e-8, atol=1e-9)
    return form


@pytest.mark.parametrize("name", AFFINE)
def test_form_computes_the_model(name):
    row = ARCHITECTURES[name]
    (u,) = row.inputs()
    compare(tight(row.make().double()), u)


@pytest.mark.parametrize("name", SEQUENCES)
def test_form_of_a_sequence_computes_it(name):
    form = compare(tight(SEQUENCES[name]().double()), normal(3, 1, 8, 8, dtype=torch.float64))
    assert form.inputs == 64


def test_linear_layers_make_no_states():
    form = affine(SEQUENCES["linear layers around"]())
    assert (form.states, form.rows, form.outputs) == (6, 6, 3)


def test_form_is_differentiable_in_all_parameters():
    model = SEQUENCES["linear layers around"]().double()
    u = normal(3, 64, dtype=torch.float64)

    def gradients(y):
        return torch.autograd.grad(y.square().sum(), list(model.parameters()))

    form = affine(tight(model))
    wanted = gradients(model(u))
    torch.testing.assert_close(gradients(form.readout(form.solve(u).value, u)), wanted, rtol=1e-8, atol=1e-10)


def test_what_was_converted_is_not_differentiated_in_silence():
    network = SEQUENCES["no equilibrium"]()
    with pytest.raises(NotAffine, match="not differentiable in the parameters"):
        affine(network, (1, 8, 8))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (DEQ(nn.Linear(2, 2)), "DEQ is not known to be of the form"),
        (SparseCoding(4, 7), "SparseCoding is not known to be of the form"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softsign()), "Linear, Softsign has no affine form"),
        (nn.ModuleDict({"a": MonotoneDEQ(2, 2)}), "write it as nn.Sequential"),
    ],
    ids=["DEQ", "SparseCoding", "unknown activation", "a module around"],
)
def test_other_models_are_named(model, message):
    with torch.no_grad(), pytest.raises(NotAffine, match=message):
        affine(model, (4,))


@pytest.mark.parametrize("name", ["images", "images of images", "no equilibrium"])
def test_size_of_images_is_asked_for(name):
    with torch.no_grad(), pytest.raises(ValueError, match="input_shape"):
        affine(SEQUENCES[name]())


def test_weights_of_a_lipschitz_model_prove_it_monotone():
    model = LipschitzDEQ(4, 6, 2)
    model.d.data = torch.linspace(-2, 2, 6)
    form: AffineForm = affine(model.double())
    half = form.weights[:, None] * (torch.eye(6) - form.A)
    assert torch.linalg.eigvalsh(half + half.T).min() > 0
