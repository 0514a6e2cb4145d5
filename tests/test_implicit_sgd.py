"""Implicit stochastic gradient descent: a step ends where the energy of its definition is least."""

import pytest
import torch
from problems import normal
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import implicitnets as inn
from implicitnets.models import ImplicitModel, WarmStart
from implicitnets.models.structures import Triangular
from implicitnets.solvers import Anderson, Dense
from implicitnets.training import ImplicitSGD, Unsupported

F64 = torch.float64
TIGHT = {"rtol": 1e-12, "atol": 1e-14, "max_steps": 300}
LONG = pytest.mark.parametrize("method", [ImplicitSGD(inner_steps=300), ImplicitSGD(inner="cg", inner_steps=300)])


def model() -> ImplicitModel:
    torch.manual_seed(0)
    exact = inn.Implicit(solver=Dense(**TIGHT))
    return ImplicitModel(4, 6, 3, activation="tanh", solver=Anderson(**TIGHT), backward=exact).double()


def data():
    return normal(8, 4, dtype=F64), torch.arange(8) % 3


def energy_gradient(net, before, states, lr, weight):
    """Of L(θ) + ‖θ − θₖ‖² / (2 lr) + weight · ‖z(θ) − z(θₖ)‖² / (2 lr), written out."""
    inputs, targets = data()
    far = sum((p - q).square().sum() for p, q in zip(net.parameters(), before, strict=True))
    moved = (net.state(inputs) - states).square().sum(1).mean()
    energy = cross_entropy(net(inputs), targets) + (far + weight * moved) / (2 * lr)
    return torch.cat([g.flatten() for g in torch.autograd.grad(energy, list(net.parameters()))])


@LONG
def test_a_step_of_least_squares_is_ridge_regression(method):
    layer, x, y, lr = (
        nn.Linear(4, 2, bias=False).double(),
        normal(8, 4, dtype=F64),
        normal(8, 2, dtype=F64, seed=2),
        3.0,
    )
    start = layer.weight.detach().clone()
    method.trainer(layer, mse_loss, lr=lr).step(x, y)
    gram = 2 / y.numel() * x.T @ x + torch.eye(4, dtype=F64) / lr
    wanted = torch.linalg.solve(gram, 2 / y.numel() * x.T @ y + start.T / lr).T
    torch.testing.assert_close(layer.weight.detach(), wanted, rtol=1e-3, atol=1e-4)


@LONG
@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_a_step_of_an_implicit_model_ends_where_its_energy_is_least(method, weight):
    net, lr = model(), 0.5
    before, states = [p.detach().clone() for p in net.parameters()], net.state(data()[0]).detach()
    start = energy_gradient(net, before, states, lr, weight).norm()
    rule = ImplicitSGD(inner=method.inner, inner_steps=method.inner_steps, states=weight)
    rule.trainer(net, cross_entropy, lr=lr).step(*data())
    assert energy_gradient(net, before, states, lr, weight).norm() < 1e-4 * start


def test_a_heavier_weight_of_the_states_moves_them_less():
    moves = []
    for weight in (0.0, 10.0, 1000.0):
        net = model()
        states = net.state(data()[0]).detach()
        ImplicitSGD(inner_steps=100, states=weight).trainer(net, cross_entropy, lr=1.0).step(*data())
        moves.append((net.state(data()[0]) - states).norm().item())
    assert moves[0] > 2 * moves[1] > 4 * moves[2] > 0


def test_it_is_stable_at_learning_rates_at_which_gradient_descent_is_not():
    inputs, targets = normal(40, 4, dtype=F64), normal(40, 2, dtype=F64, seed=2)
    layer = nn.Linear(4, 2).double()
    trainer = ImplicitSGD(inner_steps=50).trainer(layer, mse_loss, lr=1e4)
    trainer.step(inputs, targets)
    best = torch.linalg.lstsq(torch.cat((inputs, torch.ones(40, 1, dtype=F64)), 1), targets).solution
    torch.testing.assert_close(layer.weight.detach().T, best[:4], rtol=1e-2, atol=1e-3)


def test_within_a_step_an_equilibrium_starts_where_it_was_last():
    net, steps = model(), []
    solve = net.equilibrium

    def watched(f, z0, *inputs):
        state = solve(f, z0, *inputs)
        steps.append(net.forward_solution.steps.double().mean().item())
        return state

    net.equilibrium = watched
    ImplicitSGD(inner_steps=20).trainer(net, cross_entropy, lr=0.1).step(*data())
    assert steps[0] > 5
    assert steps[-1] < 0.7 * steps[0]


def test_a_model_without_a_solver_is_trained_too():
    net = ImplicitModel(4, 6, 3, structure=Triangular(sizes=(3, 3)), constraint=None).double()
    trainer = ImplicitSGD().trainer(net, cross_entropy, lr=0.5)
    losses = [trainer.step(*data())[0].item() for _ in range(5)]
    assert losses[-1] < losses[0]
    with pytest.raises(Unsupported, match="this model has none"):
        ImplicitSGD(states=1.0).trainer(net, cross_entropy, lr=0.5)


def test_a_step_leaves_the_model_as_it_was():
    net = model()
    net.start = start = WarmStart(8)
    ImplicitSGD(states=1.0).trainer(net, cross_entropy, lr=0.1).step(*data())
    assert net.start is start
    assert "equilibrium" not in vars(net)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="inner must be 'lbfgs' or 'cg'"):
        ImplicitSGD(inner="sgd")
    with pytest.raises(ValueError, match="inner_steps must be at least 1"):
        ImplicitSGD(inner_steps=0)
    with pytest.raises(ValueError, match="states must be at least 0"):
        ImplicitSGD(states=-1)
    with pytest.raises(Unsupported, match="this model has none"):
        ImplicitSGD(states=1.0).trainer(nn.Linear(2, 2), mse_loss, lr=0.1)
