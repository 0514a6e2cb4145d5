"""Methods that go through a model stage by stage: the F-adjoint, and semi-implicit backpropagation."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import normal
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import implicitnets as inn
from implicitnets.constraints import inf_norm
from implicitnets.models import DEQ, ImplicitModel
from implicitnets.solvers import Anderson, Dense
from implicitnets.training import FAdjoint, FPropagation, SemiImplicit, Unsupported
from implicitnets.training.descent import minimize

F64 = torch.float64
TIGHT = {"rtol": 1e-12, "atol": 1e-14, "max_steps": 300}


def network(output=None) -> nn.Sequential:
    torch.manual_seed(0)
    tail = [] if output is None else [output]
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5), nn.Sigmoid(), nn.Linear(5, 3), *tail).double()


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recur, self.inject = nn.Linear(6, 6), nn.Linear(7, 6)
        inf_norm(self.recur, "weight", 0.9)

    def forward(self, z, x):
        return (self.recur(z) + self.inject(x)).tanh()


def implicit(activation="tanh") -> ImplicitModel:
    torch.manual_seed(0)
    exact = inn.Implicit(solver=Dense(**TIGHT))
    return ImplicitModel(4, 6, 3, activation=activation, solver=Anderson(**TIGHT), backward=exact).double()


def mixed() -> nn.Sequential:
    torch.manual_seed(0)
    exact = inn.Implicit(solver=Dense(**TIGHT))
    deq = DEQ(Cell(), state_shape=(6,), solver=Anderson(**TIGHT), backward=exact)
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), deq, nn.Linear(6, 3)).double()


MODELS = pytest.mark.parametrize("make", [network, implicit, mixed])


def data(samples=8):
    return normal(samples, 4, dtype=F64), torch.arange(samples) % 3


def gradient(model, loss=cross_entropy):
    inputs, targets = data()
    return torch.autograd.grad(loss(model(inputs), targets), list(model.parameters()))


def change(model, method, *, lr):
    """By how much a step changes each parameter."""
    before = [p.detach().clone() for p in model.parameters()]
    method.trainer(model, cross_entropy, lr=lr).step(*data())
    return [p.detach() - q for p, q in zip(model.parameters(), before, strict=True)]


# the F-adjoint


def test_the_f_adjoint_is_backpropagation():
    net, (inputs, targets) = network(), data()
    F = FPropagation.of(net, inputs)
    torch.testing.assert_close(F.X[-1], net(inputs))
    outputs = F.X[-1].clone().requires_grad_()
    seed = torch.autograd.grad(cross_entropy(outputs, targets), outputs)[0]
    weights = [m.weight for m in net if isinstance(m, nn.Linear)]
    wanted = torch.autograd.grad(cross_entropy(net(inputs), targets), weights)
    for got, exact in zip(F.adjoint(seed).gradients(F), wanted, strict=True):
        torch.testing.assert_close(got, exact)


def test_the_relaxation_is_forward_euler_and_ends_at_the_f_adjoint():
    net, (inputs, _) = network(), data()
    F, seed = FPropagation.of(net, inputs), normal(8, 3, dtype=F64, seed=5)
    X, goal = F.X[-1], seed
    for _ in range(20):
        X = X + 0.1 * (goal - X)
    torch.testing.assert_close(F.relaxed(seed, tau=0.1, steps=20).X[-1], X)
    for near, exact in zip(F.relaxed(seed, tau=0.1, steps=400).X, F.adjoint(seed).X, strict=True):
        torch.testing.assert_close(near, exact)


@MODELS
def test_without_new_weights_below_an_f_adjoint_step_is_a_gradient_step(make):
    model = make()
    wanted = [-0.1 * g for g in gradient(model)]
    steps = change(model, FAdjoint(tau=0.9, steps=200, local=False), lr=0.1)
    for got, exact in zip(steps, wanted, strict=True):
        near = {"rtol": 3e-2, "atol": 3e-2 * exact.abs().max().item()}  # as the relaxation is
        torch.testing.assert_close(got, exact, **near)


def test_the_local_rule_hands_down_the_error_through_the_new_weights():
    net, (inputs, targets) = network(), data()
    reference = copy.deepcopy(net)
    change(net, FAdjoint(tau=1.0, local=True), lr=0.5)
    first, middle, last = (m for m in reference if isinstance(m, nn.Linear))
    hidden = torch.tanh(first(inputs))
    top = torch.sigmoid(middle(hidden)).detach().requires_grad_()
    loss = cross_entropy(last(top), targets)
    d, w, b = torch.autograd.grad(loss, [top, last.weight, last.bias], retain_graph=True)
    outputs = last(top).detach().requires_grad_()
    error = torch.autograd.grad(cross_entropy(outputs, targets), outputs)[0]
    new = last.weight - 0.5 * w
    torch.testing.assert_close(net[4].weight, new)
    torch.testing.assert_close(net[4].bias, last.bias - 0.5 * b)
    below = (error @ new) * top.detach() * (1 - top.detach())
    torch.testing.assert_close(net[2].weight, middle.weight - 0.5 * below.T @ hidden)
    assert not torch.allclose(error @ new, d)


def test_the_published_script_damps_the_output_layer():
    plain = change(network(nn.Sigmoid()), FAdjoint(tau=1.0), lr=0.1)
    published = change(network(nn.Sigmoid()), FAdjoint(tau=1.0, published=True), lr=0.1)
    torch.testing.assert_close(published[-2], plain[-2] / 4, rtol=2e-2, atol=1e-5)
    assert not torch.allclose(published[-2], plain[-2] / 4, rtol=1e-6, atol=0)
    with pytest.raises(Unsupported, match="an output layer with an activation"):
        FAdjoint(published=True).trainer(network(), cross_entropy, lr=0.1)


def test_the_f_adjoint_of_an_equilibrium_is_damped_picard():
    model = implicit()
    FAdjoint(tau=0.25, steps=60).trainer(model, cross_entropy, lr=0.1)
    assert model.backward.solver.damping == 0.75
    assert model.backward.solver.max_steps == 60


# semi-implicit backpropagation


@pytest.mark.parametrize("samples", [3, 40])
def test_a_layer_without_activation_steps_to_the_solution_of_stacked_least_squares(samples):
    layer, tau, lr = nn.Linear(4, 3).double(), 3.0, 0.7
    inputs, goal = normal(samples, 4, dtype=F64), normal(samples, 3, dtype=F64, seed=2)
    start = torch.cat((layer.weight.T, layer.bias[None])).detach()
    columns = torch.cat((inputs, torch.ones(samples, 1, dtype=F64)), 1)
    target = columns @ start - lr * 2 / 3 * (columns @ start - goal)  # by the error of each sample's mean square
    stacked = torch.cat((columns / samples**0.5, torch.eye(5, dtype=F64) / tau**0.5))
    right = torch.cat((target / samples**0.5, start / tau**0.5))
    SemiImplicit(tau=tau).trainer(layer, mse_loss, lr=lr).step(inputs, goal)
    wanted = torch.linalg.lstsq(stacked, right).solution
    torch.testing.assert_close(torch.cat((layer.weight.T, layer.bias[None])).detach(), wanted)


@MODELS
def test_with_a_small_proximal_step_it_is_a_gradient_step(make):
    model, tau, lr = make(), 1e-6, 1e-4
    wanted = [-lr * tau * g for g in gradient(model)]
    for got, exact in zip(change(model, SemiImplicit(tau=tau), lr=lr), wanted, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


def test_a_proximal_step_through_the_activation_ends_where_its_energy_is_least():
    net, tau, lr = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()).double(), 10.0, 0.7
    inputs, goal = normal(8, 4, dtype=F64), normal(8, 3, dtype=F64, seed=3)
    start = [p.detach().clone() for p in net.parameters()]
    target = net(inputs).detach() - lr * 2 / 3 * (net(inputs).detach() - goal)  # d of a sample's mean square error
    SemiImplicit(tau=tau, inner_steps=200).trainer(net, mse_loss, lr=lr).step(inputs, goal)
    far = sum((p - q).square().sum() for p, q in zip(net.parameters(), start, strict=True))
    energy = (net(inputs) - target).square().sum() / (2 * 8) + far / (2 * tau)
    for g in torch.autograd.grad(energy, list(net.parameters())):
        torch.testing.assert_close(g, torch.zeros_like(g), atol=1e-7, rtol=0)


@MODELS
def test_it_lowers_the_loss(make):
    model, (inputs, targets) = make(), data()
    trainer = SemiImplicit(tau=10.0).trainer(model, cross_entropy, lr=0.1)
    losses = [trainer.step(inputs, targets)[0].item() for _ in range(80)]
    assert losses[-1] < losses[0] / 2


def test_the_equilibrium_is_found_once_a_step():
    model, evaluations = mixed(), []
    model[2].cell.register_forward_hook(lambda *_: evaluations.append(1))
    trainer = SemiImplicit(inner_steps=5).trainer(model, cross_entropy, lr=0.1)
    trainer.step(*data())
    found = model[2].forward_solution
    assert found.converged.all()
    assert (found.steps > 1).all()  # the record is that of the solve, not of what came after
    assert len(evaluations) < found.evaluations + 60


def test_conjugate_gradients_solve_a_quadratic():
    a, b = normal(6, 6, dtype=F64), normal(6, dtype=F64)
    matrix, x = a @ a.T + torch.eye(6, dtype=F64), torch.zeros(6, dtype=F64, requires_grad=True)
    minimize(lambda: x @ matrix @ x / 2 - b @ x, [x], 40)
    torch.testing.assert_close(matrix @ x.detach(), b, rtol=1e-5, atol=1e-6)


# what neither can do


@pytest.mark.parametrize("method", [FAdjoint(), SemiImplicit()])
def test_what_can_not_be_trained_is_refused(method):
    with pytest.raises(Unsupported, match="not through Conv2d"):
        method.trainer(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), cross_entropy, lr=0.1)
    with pytest.raises(Unsupported, match=r"adjoint equation, which Unroll\(.* has not"):
        method.trainer(ImplicitModel(4, 6, 3, backward=inn.Unroll()), cross_entropy, lr=0.1)


@pytest.mark.parametrize(
    ("text", "make"),
    [
        ("tau must be in", lambda: FAdjoint(tau=0)),
        ("steps must be at least 1", lambda: FAdjoint(steps=0)),
        ("tau must be positive", lambda: SemiImplicit(tau=0)),
        ("inner_steps must be at least 1", lambda: SemiImplicit(inner_steps=0)),
    ],
)
def test_bad_options_are_named(text, make):
    with pytest.raises(ValueError, match=text):
        make()
