"""Every training method on the same model and data: it learns, it is resumed exactly, it refuses what it can't do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from implicitnets import data, training
from implicitnets.backward import Unroll
from implicitnets.experiment import Experiment, InvalidSetting
from implicitnets.models import ImplicitModel
from implicitnets.training import (
    SAM,
    Adversarial,
    Backprop,
    Certified,
    FAdjoint,
    ImplicitSGD,
    Lifted,
    Lipschitz,
    Method,
    ProxProp,
    SemiImplicit,
    Sobolev,
)

METHODS: dict[str, Method] = {
    "adversarial": Adversarial(),
    "backprop": Backprop(),
    "certified": Certified(),
    "f-adjoint": FAdjoint(),
    "implicit-sgd": ImplicitSGD(),
    "proxprop": ProxProp(),
    "lifted": Lifted(),
    "lipschitz": Lipschitz(),
    "sam": SAM(),
    "semi-implicit": SemiImplicit(),
    "sobolev": Sobolev(),
}
"""One row for each, under the name that the command line knows it by."""


def classifier(states: int = 40) -> ImplicitModel:
    torch.manual_seed(0)
    return ImplicitModel(64, states, 10)


def batches(size: int = 100):
    return data.digits().train.batches(size, generator=torch.Generator().manual_seed(0))


def test_every_method_is_in_the_table_under_its_name():
    assert {type(method) for method in METHODS.values()} == set(training.CLASSES.values())
    for name, method in METHODS.items():
        assert training.parse(name) == method
        assert training.parse(repr(method)) == method


ROWS = {**METHODS, "sgd": Backprop(optimizer="sgd")}
EACH = pytest.mark.parametrize("method", ROWS.values(), ids=ROWS)


@EACH
def test_it_learns_digits(method):
    model = classifier()
    trainer = method.trainer(model, cross_entropy, lr=0.1 if method == ROWS["sgd"] else method.lr)
    for _ in range(4):
        for inputs, labels in batches():
            trainer.step(inputs, labels)
    test = data.digits().test
    assert (model(test.inputs).argmax(1) == test.labels).float().mean() > 0.85


@EACH
def test_a_step_reports_what_was_before_it(method):
    model = classifier()
    trainer = method.trainer(model, cross_entropy, lr=method.lr)
    inputs, labels = next(batches())
    with torch.no_grad():
        outputs = model(inputs)
    loss, seen = trainer.step(inputs, labels)
    torch.testing.assert_close(seen, outputs)
    torch.testing.assert_close(loss, cross_entropy(outputs, labels))
    assert not (loss.requires_grad)
    assert not (seen.requires_grad)


@EACH
def test_it_goes_on_exactly_where_it_was(method):
    first, again = classifier(), classifier()
    trainer = method.trainer(first, cross_entropy, lr=method.lr)
    steps = list(batches())
    for inputs, labels in steps[:4]:
        trainer.step(inputs, labels)
    again.load_state_dict(first.state_dict())
    other = method.trainer(again, cross_entropy, lr=method.lr)
    other.load_state_dict({name: tensor.clone() for name, tensor in trainer.state_dict().items()})
    for inputs, labels in steps[4:8]:
        trainer.step(inputs, labels)
        other.step(inputs, labels)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@EACH
def test_a_loss_that_is_no_number_changes_nothing(method):
    model = classifier()
    trainer = method.trainer(model, lambda outputs, labels: outputs.sum() * torch.nan, lr=method.lr)
    before = [p.clone() for p in model.parameters()]
    loss, _ = trainer.step(*next(batches()))
    assert loss.isnan()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("method", [m for m in ROWS.values() if type(m) not in {Lipschitz, Sobolev}])  # which add to it
def test_where_the_gradient_is_zero_only_weight_decay_moves_the_weights(method):
    model, start = classifier(), classifier()
    trainer = method.trainer(model, lambda outputs, labels: 0 * outputs.sum(), lr=0.01, weight_decay=3.0)
    trainer.step(*next(batches()))
    for p, q in zip(model.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(p, 0.97 * q)


def test_a_nonlinear_toy_without_any_equilibrium_is_trained_too():
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    trainer = Backprop().trainer(net, cross_entropy, lr=1e-2)
    losses = [trainer.step(*batch)[0].item() for _ in range(5) for batch in batches()]
    assert losses[-1] < losses[0] / 3


def test_an_experiment_whose_method_fails_names_those_that_can():
    experiment = Experiment(method=SemiImplicit(), backward=Unroll())
    text = r"method SemiImplicit\(.*adjoint equation.*Adversarial, Backprop, Certified, ImplicitSGD, .*Sobolev can"
    with pytest.raises(InvalidSetting, match=text) as caught:
        experiment.trainer(experiment.model(data.digits()))
    assert "FAdjoint" not in str(caught.value)
