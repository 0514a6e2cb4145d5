"""The Sobolev loss against derivatives taken by other means."""

from __future__ import annotations

import pytest
import torch
from problems import normal
from torch import nn
from torch.autograd.functional import hessian, jacobian

import implicitnets as inn
from implicitnets.models import ImplicitModel, MonotoneDEQ
from implicitnets.solvers import Anderson, Dense, PeacemanRachford
from implicitnets.training import Sobolev, sobolev_loss, tangent

F64 = torch.float64
TIGHT = {"rtol": 1e-12, "atol": 1e-14, "max_steps": 300}


def implicit() -> nn.Module:
    torch.manual_seed(0)
    exact = inn.Implicit(solver=Dense(**TIGHT))
    return ImplicitModel(3, 5, 2, activation="tanh", solver=Anderson(**TIGHT), backward=exact).double()


def explicit() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()


MODELS = pytest.mark.parametrize("make", [implicit, explicit])


def data(samples: int = 4):
    shapes = [(samples, 3), (samples, 2), (samples, 2, 3), (samples, 2, 3, 3)]
    x, y, g, h = (normal(*shape, dtype=F64, seed=i) for i, shape in enumerate(shapes))
    return x, y, g, h + h.transpose(2, 3)


def derivatives(model: nn.Module, x: torch.Tensor):
    """Values, Jacobians and Hessians, sample by sample and output by output."""
    one = [lambda u, o=o: model(u[None])[0, o] for o in range(2)]
    with torch.no_grad():
        values = model(x)
    return (
        values,
        torch.stack([torch.stack([jacobian(f, u) for f in one]) for u in x]),
        torch.stack([torch.stack([hessian(f, u) for f in one]) for u in x]),
    )


@MODELS
def test_the_full_loss_is_that_of_derivatives_taken_one_by_one(make):
    model, (x, *given) = make(), data()
    parts = [(a - b).square().sum() / 4 for a, b in zip(derivatives(model, x), given, strict=True)]
    torch.testing.assert_close(sobolev_loss(model, x, given[0]), parts[0])
    torch.testing.assert_close(sobolev_loss(model, x, given[0], given[1]), parts[0] + parts[1])
    weighted = sobolev_loss(model, x, *given, weights=(1.0, 0.5, 0.1))
    torch.testing.assert_close(weighted, parts[0] + 0.5 * parts[1] + 0.1 * parts[2])


@MODELS
def test_a_model_that_has_the_derivatives_has_no_loss(make):
    model, (x, *_) = make(), data()
    exact = derivatives(model, x)
    for directions in (None, 2):
        loss = sobolev_loss(model, x, *exact, directions=directions)
        torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-16, rtol=0)


@MODELS
def test_its_gradient_is_that_of_central_differences(make):
    model, (x, *given) = make(), data()
    loss = lambda: sobolev_loss(model, x, *given)  # noqa: E731
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss(), parameters)
    for p, g in zip(parameters, grads, strict=True):
        direction, step = normal(*p.shape, dtype=F64, seed=9), 1e-5
        with torch.no_grad():
            p.add_(direction, alpha=step)
            above = loss()
            p.sub_(direction, alpha=2 * step)
            below = loss()
            p.add_(direction, alpha=step)
        torch.testing.assert_close((g * direction).sum(), (above - below) / (2 * step), rtol=1e-5, atol=1e-7)


def test_random_directions_give_the_full_loss_on_average():
    model, (x, *given) = explicit(), data()
    full = sobolev_loss(model, x, *given)
    drawn = sobolev_loss(model, x, *given, directions=20_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, full, rtol=2e-2, atol=0)
    assert drawn != full


class Cell(nn.Module):
    """With a state of two parts."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(8, 3)
        self.mix.weight.data.mul_(0.5)

    def forward(self, z, x):
        return torch.tanh(self.mix(torch.cat((z[0], z[1].flatten(1), x), 1))), 0.3 * z[0][:, :2, None]

    def initial_state(self, x):
        return x.new_zeros(len(x), 3), x.new_zeros(len(x), 2, 1)


class First(nn.Module):
    def forward(self, z):
        return z[0]


def sequence() -> nn.Module:
    torch.manual_seed(0)
    deq = inn.DEQ(Cell(), solver=Anderson(**TIGHT), backward=inn.Implicit(solver=Dense(**TIGHT)))
    return nn.Sequential(deq, First(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def kinked() -> nn.Module:
    """The first unit is at its kink whatever the state: ∂f/∂z is what autograd takes there."""
    model = ImplicitModel(3, 5, 2, solver=Anderson(**TIGHT), backward=inn.Implicit(solver=Dense(**TIGHT))).double()
    model.parametrizations.A.original.data[0] = 0
    model.B.data[0] = 0
    return model


def split() -> nn.Module:
    torch.manual_seed(0)
    tight = PeacemanRachford(**TIGHT)
    return nn.Sequential(MonotoneDEQ(3, 5, solver=tight, backward=inn.Implicit(solver=tight)), nn.Linear(5, 2)).double()


@pytest.mark.parametrize("make", [implicit, explicit, sequence, kinked, split])
def test_a_tangent_is_the_directional_derivative_and_so_is_its_gradient(make):
    model, (x, *_) = make(), data()
    v = list(normal(2, 4, 3, dtype=F64, seed=7))
    y, dots = tangent(model, x, v)
    torch.testing.assert_close(y, model(x))
    wanted = [torch.func.jvp(model, (x,), (w,))[1] for w in v]
    parameters = list(model.parameters())
    for got, exact in zip(dots, wanted, strict=True):
        torch.testing.assert_close(got, exact)
        for a, b in zip(
            torch.autograd.grad(got.square().sum(), parameters, materialize_grads=True, retain_graph=True),
            torch.autograd.grad(exact.square().sum(), parameters, materialize_grads=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_a_tangent_that_the_larger_equilibrium_does_not_give_is_taken_otherwise():
    model, (x, *_) = implicit(), data()
    wanted = torch.func.jvp(model, (x,), (x,))[1]
    model.solver = Anderson(rtol=1e-12, atol=1e-14, max_steps=3)  # too few for both
    with pytest.warns(inn.ConvergenceWarning):
        _, (dot,) = tangent(model, x, [x])
    torch.testing.assert_close(dot, wanted, rtol=1e-1, atol=1e-1)


def test_a_tangent_leaves_the_model_as_it_was():
    model, (x, *_) = implicit(), data()
    tangent(model, x, [torch.zeros(4, 3, dtype=F64)])
    assert "equilibrium" not in vars(model)


def test_the_method_makes_outputs_flatter():
    x, labels = normal(60, 3, dtype=F64), torch.arange(60) % 2
    slopes = {}
    for weight in (1e-9, 1e-1):
        model = explicit()
        trainer = Sobolev(weight=weight, directions=2).trainer(model, nn.functional.cross_entropy, lr=1e-2)
        for _ in range(100):
            trainer.step(x, labels)
        slopes[weight] = derivatives(model, x)[1].norm()
    assert slopes[1e-1] < slopes[1e-9] / 2


@pytest.mark.parametrize(
    ("text", "call"),
    [
        (r"inputs has shape \(3,\), not", lambda x, y, g, h: sobolev_loss(explicit(), x[0], y)),
        (r"values has shape \(4, 1\)", lambda x, y, g, h: sobolev_loss(explicit(), x, y[:, :1])),
        (
            r"gradients has .* \(batch, outputs, inputs\)",
            lambda x, y, _, h: sobolev_loss(explicit(), x, y, h),
        ),
        (
            r"hessians has .*\(batch, outputs, inputs, inputs\)",
            lambda x, y, g, _: sobolev_loss(explicit(), x, y, g, g),
        ),
        (r"directions=0 must", lambda x, y, g, h: sobolev_loss(explicit(), x, y, g, directions=0)),
        (r"weight must be positive", lambda *_: Sobolev(weight=0)),
        (r"directions must be at least 1", lambda *_: Sobolev(directions=0)),
    ],
)
def test_bad_input_is_named(text, call):
    with pytest.raises(ValueError, match=text):
        call(*data())
