"""Models that are certified, regions of inputs, and what finds out bounds that are wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
from problems import normal
from torch import Tensor, nn

from implicitnets.activations import ACTIVATIONS, Blocks, GroupSort, MaxPool
from implicitnets.analysis import Region, region
from implicitnets.analysis.certificates.base import Bounder
from implicitnets.analysis.certificates.prepare import prepare
from implicitnets.analysis.certificates.problem import Problem
from implicitnets.constraints import BlockNorm
from implicitnets.models import (
    AffineForm,
    ImplicitModel,
    IntervalMonotoneDEQ,
    LipschitzDEQ,
    MonotoneConvDEQ,
    MonotoneDEQ,
    NonEuclideanDEQ,
    affine,
    rescale,
)
from implicitnets.solvers import PeacemanRachford

REGIONS = {
    "box": {"radius": 0.2},
    "box of pixels": {"radius": 0.3, "domain": (0.0, 1.0)},
    "features": {"radius": torch.linspace(0, 0.4, 4)},
    "ball": {"radius": 0.3, "norm": 2},
    "diamond": {"radius": 0.5, "norm": 1, "domain": (0.0, 1.0)},
    "a few entries": {"radius": 0.5, "cardinality": 2},
    "a point": {"radius": 0.0},
}


def scaled(model: nn.Module, factor: float) -> nn.Module:
    """All weights so many times as large."""
    for p in model.parameters():
        p.data *= factor
    return model


def contraction(kappa: float, activation: str) -> ImplicitModel:
    """‖A‖∞ = κ and A ≥ 0, so that nothing is lost in |A|."""
    sizes = ((6, 4), (3, 6), (3, 4))
    B, C, D = (normal(*size, dtype=torch.float64, seed=i) for i, size in enumerate(sizes))
    A = kappa * torch.softmax(normal(6, 6, dtype=torch.float64), 1)
    return ImplicitModel.from_matrices(A, B, C, D, activation=activation)


IMAGES = {"convolutional": (1, 2, 2)}
"""Models on images of four pixels; the others are for four numbers."""


def sums() -> ImplicitModel:
    """Two states that are the sum of all inputs, a thousand times."""
    A, one = torch.tensor([[0.0, 0.999], [0.999, 0.0]]), torch.ones(2, 4)
    C = torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.0, 1.0]])
    return ImplicitModel.from_matrices(A, one, C, torch.zeros(3, 4))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: ImplicitModel(4, 6, 3),
    "contraction of 0.999": lambda: contraction(0.999, "relu"),
    "contraction of 0.999, tanh": lambda: contraction(0.999, "tanh"),
    "sums": sums,
    "rescaled": lambda: rescale(contraction(0.8, "softplus")),
    "every activation": lambda: ImplicitModel(
        4,
        16,
        3,
        activation=Blocks(*((name, 2) for name in ACTIVATIONS)),
    ),
    "groups": lambda: ImplicitModel(
        4, 10, 3, activation=Blocks((MaxPool(size=3), 9), ("relu", 4), (GroupSort(size=3), 3)), constraint=BlockNorm()
    ),
    "monotone": lambda: scaled(MonotoneDEQ(4, 6, m=0.5), 3),
    "monotone, float32, unconverged": lambda: MonotoneDEQ(4, 6, m=0.1, solver=PeacemanRachford(max_steps=1)),
    "interval monotone, large": lambda: scaled(IntervalMonotoneDEQ(4, 6), 30),
    "not Euclidean": lambda: scaled(NonEuclideanDEQ(4, 6), 3),
    "Lipschitz": lambda: scaled(LipschitzDEQ(4, 6, 3, lipschitz=5.0), 3),
    "cascade": lambda: nn.Sequential(
        scaled(MonotoneDEQ(4, 6), 2), nn.Linear(6, 5), nn.Tanh(), scaled(MonotoneDEQ(5, 4), 2), nn.Linear(4, 3)
    ),
    "convolutional": lambda: nn.Sequential(
        scaled(MonotoneConvDEQ(1, 2, kernel_size=1), 2), nn.Flatten(), nn.Linear(8, 3)
    ),
    "network": lambda: nn.Sequential(
        *(nn.Linear(4, 32), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(8, 5), nn.Sigmoid(), nn.Linear(5, 3)),
    ),
}


def form_of(name: str) -> AffineForm:
    """The model of the table, as certify sees it."""
    torch.manual_seed(0)
    with torch.no_grad():
        return affine(MODELS[name]().double().eval(), IMAGES.get(name, (4,))).map(torch.Tensor.detach)


def inputs() -> torch.Tensor:
    return normal(3, 4, dtype=torch.float64).sigmoid()


def problem_of(name: str, kind: str) -> Problem:
    """All equilibria of a model over a region around three inputs."""
    form, u = form_of(name), inputs()
    return prepare(form, region(u, **REGIONS[kind]), form.solve(u).value)


def equilibria(form: AffineForm, space: Region, count: int) -> tuple[Tensor, Tensor]:
    """Inputs of a region and their states, (count + 4·outputs, batch, ...): random ones, and the worst by gradients."""
    generator = torch.Generator().manual_seed(0)
    points = [space.sample(generator) for _ in range(count)]
    for sign in (1, -1):
        for i in range(form.outputs):
            u = points[i % count]
            for _ in range(2):
                with torch.enable_grad():
                    u = u.detach().requires_grad_()
                    y = form.readout(form.solve(u).value, u)[:, i].sum()
                u = space.maximizer(sign * torch.autograd.grad(y, u)[0])
                points.append(u)
    flat = torch.cat(points)
    solution = form.solve(flat)
    assert solution.converged.all()
    return flat.unflatten(0, (-1, len(space.centre))), solution.value.unflatten(0, (-1, len(space.centre)))


def escapes(bounder: Bounder, problem: Problem, form: AffineForm, points: tuple[Tensor, Tensor]) -> float:
    """How far equilibria leave what a bounder says, at most: of states, and of outputs by shared and by own rows."""
    us, xs = points
    tight = bounder.tighten(problem)
    own = slice(None) if tight.kept is None else tight.kept
    found = [xs - tight.x.high[:, own], tight.x.low[:, own] - xs]
    for sign in (1, -1):
        c, d = sign * tight.form.C, sign * tight.form.D
        values = xs @ (sign * form.C).T + us @ d.T
        found.append(values - bounder.maximum(tight, c, d))
        each = torch.arange(1.0, 1 + len(problem.x0)).to(c)[:, None, None]
        found.append(values * each[:, 0] - bounder.maximum(tight, each * c, each * d))
    return max(float(excess.max()) for excess in found)
