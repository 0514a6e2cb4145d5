"""Training for robustness: bounds hold and have exact gradients, schedules are kept, and what is trained is robust."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from implicitnets import data
from implicitnets.analysis import attack, region
from implicitnets.models import (
    DEQ,
    DenseCell,
    ImplicitModel,
    IntervalMonotoneDEQ,
    MonotoneDEQ,
    NonEuclideanDEQ,
    NotAffine,
    affine,
)
from implicitnets.solvers import Anderson
from implicitnets.training import (
    SAM,
    Adversarial,
    Backprop,
    Certified,
    Lipschitz,
    Unsupported,
    certified_loss,
    lipschitz_bound,
    worst_outputs,
)

F64 = torch.float64
TIGHT = Anderson(rtol=1e-12, atol=1e-13, max_steps=500)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def headed(equilibrium):
    return nn.Sequential(nn.Flatten(), equilibrium, nn.Linear(equilibrium.states, 3))


def skew(inputs, states):
    """A monotone model whose W is large, so that |W| has no bounded powers."""
    deq = MonotoneDEQ(inputs, states, m=1.0)
    with torch.no_grad():
        deq.B.mul_(100)
    return headed(deq)


MODELS = {
    "ImplicitModel": lambda: ImplicitModel(6, 8, 3),
    "ImplicitModel tanh": lambda: ImplicitModel(6, 8, 3, activation="tanh"),
    "IntervalMonotoneDEQ": lambda: headed(IntervalMonotoneDEQ(6, 8)),
    "NonEuclideanDEQ": lambda: headed(NonEuclideanDEQ(6, 8)),
    "feed-forward": lambda: nn.Sequential(headed(IntervalMonotoneDEQ(6, 8)), nn.Linear(3, 3)),
}
RELU = [name for name in MODELS if "tanh" not in name]
EACH = pytest.mark.parametrize(("name", "bounds"), [*((n, "interval") for n in MODELS), *((n, "linear") for n in RELU)])


def build(name):
    torch.manual_seed(1)
    model = MODELS[name]().double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def batch():
    return normal(5, 6), torch.arange(5) % 3


def differences(outputs, labels):
    return outputs - outputs.gather(1, labels[:, None])


@pytest.mark.parametrize("norm", ["inf", 2, 1])
@EACH
def test_no_input_of_the_region_is_worse(name, bounds, norm):
    model, (x, labels) = build(name), batch()
    where, generator = region(x, 0.3, norm), torch.Generator().manual_seed(0)
    with torch.no_grad():
        worst = worst_outputs(model, x, labels, 0.3, norm=norm, bounds=bounds, solver=TIGHT)
        inner = [where.sample(generator) for _ in range(200)]
        u = torch.stack([*inner, *(where.project(x + 10 * far) for far in normal(200, *x.shape))])
        seen = differences(model(u.flatten(0, 1)), labels.repeat(400)).unflatten(0, (400, 5)).amax(0)
        assert (seen <= worst + 1e-3).all()  # the model's own tolerance
        found = attack(model, x, labels, radius=0.3, norm=norm)
        assert (differences(model(found.inputs), labels) <= worst + 1e-3).all()
        largest = cross_entropy(model(found.inputs), labels)
        assert certified_loss(model, x, labels, 0.3, norm=norm, bounds=bounds) >= largest - 1e-3
    assert torch.equal(worst.gather(1, labels[:, None]), torch.zeros(5, 1, dtype=F64))


@EACH
def test_without_a_radius_it_is_the_loss_itself(name, bounds):
    model, (x, labels) = build(name), batch()
    exact = affine(model, (6,)).map(torch.Tensor.detach)
    outputs = exact.readout(exact.solve(x).value, x)
    loss = certified_loss(model, x, labels, 0.0, bounds=bounds, solver=TIGHT)
    torch.testing.assert_close(loss, cross_entropy(outputs, labels), rtol=1e-9, atol=1e-9)


class Scalar(nn.Module):
    """A model as a function that is a number."""

    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs):
        return self.function(self.model, *inputs)


def gradient_is_exact(model, function, *inputs):
    module = Scalar(model, function)
    names, values = zip(*module.named_parameters(), strict=True)
    inputs = [u.detach().clone().requires_grad_() for u in inputs]

    def at(*tensors):
        used, values = tensors[: len(inputs)], tensors[len(inputs) :]
        return functional_call(module, dict(zip(names, values, strict=True)), used)

    return gradcheck(at, (*inputs, *(p.detach().clone().requires_grad_() for p in values)), fast_mode=True)


@EACH
def test_the_gradient_of_the_bound_is_exact(name, bounds):
    x, labels = batch()
    exact = {"bounds": bounds, "solver": TIGHT, "domain": (-9.0, 9.0)}
    assert gradient_is_exact(build(name), lambda model, x: certified_loss(model, x, labels, 0.2, **exact), x)


def test_linear_bounds_are_never_worse_and_often_better():
    model, (x, labels) = build("ImplicitModel"), batch()
    wide, narrow = (worst_outputs(model, x, labels, 0.1, bounds=b, solver=TIGHT) for b in ("interval", "linear"))
    assert (narrow <= wide).all()
    assert (narrow < wide - 1e-3).any()


@pytest.mark.parametrize("bounds", ["interval", "linear"])
@pytest.mark.parametrize(("norm", "dual"), [("inf", 1), (2, 2), (1, torch.inf)], ids=["inf", "2", "1"])
def test_of_a_linear_model_it_is_exact(norm, dual, bounds):
    D, (x, labels) = normal(3, 6, seed=2), batch()
    one = torch.zeros(1, 1, dtype=F64)
    model = ImplicitModel.from_matrices(one, torch.zeros(1, 6, dtype=F64), torch.zeros(3, 1, dtype=F64), D)
    steps = D - D[labels][:, None]
    expected = (steps @ x[:, :, None])[..., 0] + 0.3 * torch.linalg.vector_norm(steps, dual, dim=-1)
    torch.testing.assert_close(worst_outputs(model, x, labels, 0.3, norm=norm, bounds=bounds), expected)


def test_the_diagonal_costs_nothing():
    """x = relu(−ax + u) is relu(u / (1 + a)): with |a| instead, bounds would not even exist."""
    one = torch.ones(1, 1)
    model = ImplicitModel.from_matrices(-4 * one, one, torch.tensor([[0.0], [1.0]]), torch.zeros(2, 1))
    worst = worst_outputs(model, one, torch.tensor([0]), 0.5, solver=TIGHT)
    torch.testing.assert_close(worst[0, 1], torch.tensor(1.5 / 5))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (skew(6, 8), "IntervalMonotoneDEQ"),
        (DEQ(DenseCell(6)), "not known to be of the form"),
        (ImplicitModel(6, 8, 3, constraint=None, activation=torch.abs), "component-wise and rising"),
    ],
    ids=["monotone", "any cell", "not rising"],
)
def test_models_without_bounds_are_refused(model, text):
    x, labels = (part.float() if part.is_floating_point() else part for part in batch())
    with pytest.raises(NotAffine, match=text):
        certified_loss(model, x, labels, 0.1)
    with pytest.raises(Unsupported, match=text):
        Certified().trainer(model, cross_entropy, lr=1e-3)


# Penalties


@pytest.mark.parametrize("norm", ["inf", 2, 1])
@pytest.mark.parametrize("name", RELU)
def test_the_lipschitz_bound_holds_and_has_an_exact_gradient(name, norm):
    model, p = build(name), {"inf": torch.inf}.get(norm, norm)
    bound = lipschitz_bound(model, norm).detach()
    u, v = normal(500, 6), normal(500, 6, seed=1)
    with torch.no_grad():
        steepest = (model(u) - model(u + 0.1 * v)).norm(p, dim=1) / (0.1 * v).norm(p, dim=1)
    assert steepest.max() <= bound * (1 + 1e-2)
    assert gradient_is_exact(model, lambda model: lipschitz_bound(model, norm))


def test_a_monotone_model_has_a_bound_in_the_euclidean_norm_only():
    torch.manual_seed(0)
    model = skew(6, 8).double()
    deq, head = model[1], model[2]
    gain = torch.linalg.matrix_norm(deq.U, 2) * torch.linalg.matrix_norm(head.weight, 2)
    assert lipschitz_bound(model) <= gain * (1 + 1e-9)
    assert gradient_is_exact(model, lipschitz_bound)
    with pytest.raises(Unsupported, match="no Lipschitz constant is known of this model in the norm 'inf'"):
        Lipschitz(norm="inf").trainer(model, cross_entropy, lr=1e-3)


def test_one_step_of_sharpness_aware_minimization_is_foret_s():
    model, again = build("ImplicitModel"), build("ImplicitModel")
    x, labels = batch()
    trainer = SAM(radius=0.1).trainer(model, cross_entropy, lr=1e-2)
    plain = Backprop().trainer(again, cross_entropy, lr=1e-2)
    start = [p.detach().clone() for p in again.parameters()]
    loss = cross_entropy(again(x), labels)
    gradient = torch.autograd.grad(loss, list(again.parameters()))
    size = torch.cat([g.flatten() for g in gradient]).norm()
    with torch.no_grad():
        for p, g in zip(again.parameters(), gradient, strict=True):
            p.add_(0.1 * g / size)
    plain.change = lambda: [p.data.copy_(q) for p, q in zip(again.parameters(), start, strict=True)]
    plain.step(x, labels)
    assert trainer.step(x, labels)[0] == pytest.approx(loss.item())
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p, q)


# Methods on real images


def accuracies(method, radius, epochs=8):
    """On the digits: of the model itself, and what interval bounds prove within a radius."""
    torch.manual_seed(0)
    model, (train, test) = ImplicitModel(64, 40, 10), (data.digits().train, data.digits().test)
    trainer, shuffle = method.trainer(model, cross_entropy, lr=1e-2), torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for inputs, labels in train.batches(100, generator=shuffle):
            trainer.step(inputs, labels)
    with torch.no_grad():
        worst = worst_outputs(model, test.inputs, test.labels, radius, domain=(0, 1))
        worst.scatter_(1, test.labels[:, None], -torch.inf)
        natural = (model(test.inputs).argmax(1) == test.labels).double().mean().item()
        fooled = 1 - attack(model, test.inputs[:100], test.labels[:100], radius=radius, domain=(0, 1)).accuracy
    return natural, (worst.amax(1) < 0).double().mean().item(), 1 - fooled


def test_certified_training_makes_robustness_provable_and_adversarial_training_real():
    radius, domain = 0.05, (0.0, 1.0)
    plain = accuracies(Backprop(), radius)
    certified = accuracies(Certified(radius=radius, domain=domain, ramp=60), radius)
    adversarial = accuracies(Adversarial(radius=radius, domain=domain, ramp=60, steps=2), radius)
    assert certified[0] > 0.9
    assert certified[1] > 0.75
    assert plain[1] < 0.4
    assert adversarial[2] > plain[2] + 0.03


def test_lipschitz_training_lowers_the_bound():
    bounds = []
    for method in (Backprop(), Lipschitz(weight=1e-2)):
        torch.manual_seed(0)
        model = ImplicitModel(64, 20, 10)
        trainer = method.trainer(model, cross_entropy, lr=1e-2)
        for inputs, labels in data.digits().train.batches(100):
            trainer.step(inputs, labels)
        bounds.append(lipschitz_bound(model, "inf").item())
    assert bounds[1] < bounds[0] / 2


# The schedule


def test_radius_and_weight_follow_the_ramp():
    seen = []

    class Watched(Certified):
        def worst(self, model, loss, inputs, targets, radius):
            seen.append(radius)
            return 2 + 0 * loss(model(inputs), targets)

    (x, labels), model = batch(), build("ImplicitModel")
    trainer = Watched(radius=0.4, natural=0.5, ramp=4).trainer(model, cross_entropy, lr=1e-9)
    for _ in range(6):
        trainer.step(x, labels)
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])  # the first step has the loss alone
    _, loss, total = trainer.losses(x, labels)
    assert total.item() == pytest.approx(0.5 * loss.item() + 0.5 * 2)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Certified(radius=-0.1), r"Certified\(radius=-0.1\): radius must be at least 0"),
        (lambda: Certified(norm=3), "the norms are"),
        (lambda: Certified(natural=2), "a weight from 0 to 1"),
        (lambda: Adversarial(ramp=-1), r"Adversarial\(ramp=-1\)"),
        (lambda: Adversarial(steps=0), "steps must be at least 1"),
        (lambda: Certified(bounds="tight"), "'interval' or 'linear'"),
        (lambda: Lipschitz(weight=0), "weight must be positive"),
        (lambda: Lipschitz(norm=3), "the norms are"),
        (lambda: SAM(radius=0), "radius must be positive"),
        (lambda: worst_outputs(build("ImplicitModel"), *batch(), 0.1, bounds="tight"), "'interval' or 'linear'"),
        (lambda: worst_outputs(build("ImplicitModel tanh"), *batch(), 0.1, bounds="linear"), "for ReLUs"),
        (lambda: lipschitz_bound(build("ImplicitModel"), 3), "the norms are"),
    ],
    ids=range(12),
)
def test_bad_input_is_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()
