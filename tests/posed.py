"""Small models with an affine form for the tests of what is proved of all their inputs, and pairs of equilibria."""

from __future__ import annotations

import torch
from torch import nn

from implicitnets.activations import Blocks, GroupSort, LayerNorm, MaxPool, Scaled, Softmax
from implicitnets.analysis.forms import double_form
from implicitnets.constraints import BlockNorm, PerronFrobenius
from implicitnets.models import (
    ImplicitModel,
    IntervalMonotoneDEQ,
    LipschitzDEQ,
    MonotoneConvDEQ,
    MonotoneDEQ,
    NonEuclideanDEQ,
)


def implicit(activation="relu", **how):
    return lambda: ImplicitModel(5, 8, 3, activation=activation, **how)


MIXED = Blocks(("relu", 3), (MaxPool(size=2), 6), (GroupSort(size=2), 2))
MODELS = {
    "relu": implicit(),
    "tanh": implicit("tanh"),
    "sigmoid": implicit("sigmoid"),
    "leaky_relu": implicit("leaky_relu", constraint=PerronFrobenius()),
    "softplus": implicit("softplus"),
    "scaled tanh": implicit(Scaled("tanh", tuple(range(1, 9)))),
    "mixed": implicit(MIXED, constraint=BlockNorm()),
    "softmax": implicit(Softmax(size=4), constraint=BlockNorm()),
    "layer norm": implicit(LayerNorm(size=4, eps=0.5), constraint=BlockNorm()),
    "monotone": lambda: nn.Sequential(MonotoneDEQ(5, 8, m=0.3), nn.Linear(8, 3)),
    "interval": lambda: IntervalMonotoneDEQ(5, 8, m=0.3),
    "lipschitz": lambda: LipschitzDEQ(5, 8, 3, lipschitz=0.7),
    "nemon": lambda: nn.Sequential(nn.Linear(5, 4), NonEuclideanDEQ(4, 8), nn.Linear(8, 3)),
    "convolutional": lambda: nn.Sequential(MonotoneConvDEQ(1, 2, kernel_size=3), nn.Flatten()),
    "two layers": lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)),
}
SHAPES = {"convolutional": (1, 2, 3)}
WEIGHTS = {"as drawn": 1.0, "large": 6.0}


def make(name, weights="as drawn", dtype=torch.float64):
    """The affine form of a model: that of its own dtype's parameters, in float64."""
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(WEIGHTS[weights])
    return double_form(model, SHAPES.get(name, (5,)))


def pairs(form, count=200, seed=1):
    """Inputs and outputs of pairs, near and far: Δu and Δy of those whose equilibria were found."""
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, count, form.inputs, generator=generator, dtype=torch.float64)
    u = u * torch.logspace(-1, 1.5, count, dtype=torch.float64)[:, None]
    v = u + v * torch.logspace(-3, 1, count, dtype=torch.float64).roll(count // 3)[:, None]
    found = form.solve(torch.cat([u, v]))
    y = form.readout(found.value, torch.cat([u, v]))
    known = found.converged[:count] & found.converged[count:]
    assert known.double().mean() > 0.9
    return (u - v)[known], (y[:count] - y[count:])[known]
