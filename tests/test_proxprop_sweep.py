"""Algorithm 1 of the paper: its sweep is the transform, and without a metric it is gradient descent."""

from __future__ import annotations

import copy

import pytest
import torch
from test_proxprop import data, directions, double, grads, mlp  # noqa: F401
from torch import nn
from torch.nn.functional import cross_entropy

from implicitnets.training import ProxProp, Unsupported


def convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Sequential(nn.Conv2d(1, 4, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2, stride=1)),
        nn.Conv2d(4, 4, 2, groups=2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


@pytest.mark.parametrize("make", [mlp, convnet])
@pytest.mark.parametrize("head", ["explicit", "prox"])
@pytest.mark.parametrize("tau", [1e-2, 3.0, 400.0])
@pytest.mark.parametrize("n", [3, 40])
def test_the_sweep_is_the_transform(make, head, tau, n):
    net, (x, y) = make(), data(n)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    v = directions(net, x, y, tau=tau, head=head)
    with torch.no_grad():
        expected = cross_entropy(net(x), y)
    record = ProxProp(tau=tau, head=head).sweep(net, cross_entropy, x, y, lr=0.3)
    torch.testing.assert_close(record.loss, expected)
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.3 * v[name], rtol=1e-10, atol=1e-12)


def test_its_variables_take_gradient_steps_on_the_penalty_energy():
    """The energy with γ = ρ = 1 and its gradients by autograd, one variable after the other (equations 8 to 10)."""
    net, (x, y) = mlp(), data()
    frozen = copy.deepcopy(net).requires_grad_(False)
    record = ProxProp(tau=2.0).sweep(net, cross_entropy, x, y, lr=0.1)
    first, second, head, sigma = frozen[0], frozen[2], frozen[4], torch.tanh

    def energy(a1, z1, a2, z2):
        return (
            cross_entropy(head(a2), y)
            + ((sigma(z1) - a1).square().sum() + (sigma(z2) - a2).square().sum()) / 2
            + ((first(x) - z1).square().sum() + (second(a1) - z2).square().sum()) / 2
        )

    variables = {}
    variables["z1"] = first(x)
    variables["a1"] = sigma(variables["z1"])
    variables["z2"] = second(variables["a1"])
    variables["a2"] = sigma(variables["z2"])
    for found, name in zip([*record.z, *record.a], ["z1", "z2", "a1", "a2"], strict=True):
        torch.testing.assert_close(found, variables[name])
    for name, found in (
        ("a2", record.a_half[1]),
        ("z2", record.z_half[1]),
        ("a1", record.a_half[0]),
        ("z1", record.z_half[0]),
    ):
        at = {k: v.clone().requires_grad_() for k, v in variables.items()}
        variables[name] = variables[name] - torch.autograd.grad(energy(**at), at[name])[0]
        torch.testing.assert_close(found, variables[name], rtol=1e-10, atol=1e-13)


def test_the_parameters_are_minimizers_of_their_proximal_problems():
    net, (x, y), tau, lr, n = mlp(), data(), 2.0, 0.1, 9
    before = copy.deepcopy(net)
    record = ProxProp(tau=tau).sweep(net, cross_entropy, x, y, lr=lr)
    t = n * lr / tau
    sources = [x, record.a[0]]
    for index, source, z, half in zip((0, 2), sources, record.z, record.z_half, strict=True):
        new, old = net[index], before[index]
        target = z + t * (half - z)
        objective = (new(source) - target).square().sum() / 2
        moved = sum((p - q).square().sum() for p, q in zip(new.parameters(), old.parameters(), strict=True))
        total = objective + n / (2 * tau) * moved
        for slope in torch.autograd.grad(total, list(new.parameters())):
            assert slope.abs().max() < 1e-12
        assert moved > 1e-6


@pytest.mark.parametrize("make", [mlp, convnet])
def test_an_explicit_sweep_is_a_gradient_step(make):
    """Proposition 1."""
    net, (x, y) = make(), data()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    g = grads(net, x, y)
    ProxProp(tau=0.0, head="prox").sweep(net, cross_entropy, x, y, lr=0.7)
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.7 * g[name], rtol=1e-10, atol=1e-13)


def test_it_trains():
    net, (x, y) = mlp(), data(30)
    losses = [float(ProxProp(tau=10.0).sweep(net, cross_entropy, x, y, lr=3.0).loss) for _ in range(200)]
    assert losses[-1] < 0.1 * losses[0]


def test_what_it_can_not_go_through_is_refused():
    x, y = data()
    for model, why in (
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), "BatchNorm1d"),
        (nn.Linear(4, 3), r"nn\.Sequential, not Linear"),
        (nn.Sequential(nn.ReLU()), "no linear"),
    ):
        with pytest.raises(Unsupported, match=why):
            ProxProp().sweep(model, cross_entropy, x, y, lr=0.1)
