"""Models that classify images, and how well they do after one pass through the training images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from implicitnets import Implicit, images
from implicitnets.activations import Blocks, MaxPool
from implicitnets.constraints import BlockNorm
from implicitnets.models import (
    DEQ,
    ConvDEQ,
    DenseCell,
    DEQTransformer,
    ImplicitModel,
    IntervalMonotoneDEQ,
    LipschitzDEQ,
    MonotoneConvDEQ,
    MonotoneDEQ,
    MonotoneMultiTierDEQ,
    MultiscaleDEQ,
    NonEuclideanDEQ,
    SparseCoding,
    from_sequential,
)
from implicitnets.models.structures import LowRank, Sparse, Triangular
from implicitnets.solvers import PeacemanRachford

needs_images = pytest.mark.skipif(
    not (images.root_folder() / "MNIST").is_dir(),
    reason=f"MNIST is not in {images.root_folder()}: say where by the environment variable {images.ROOT}",
)


@dataclass(frozen=True)
class Learner:
    """A classifier of images.

    Attributes:
        make: Builds it for images of (channels, height, width) and ten classes.
        few: The accuracy on 2000 test images that it has to beat after 5000 training images, batches of 100.
        all: Likewise on the whole test part after the whole training part.
        lr: Of Adam, from where it falls to 0 in a line.
    """

    make: Callable[[tuple[int, int, int]], nn.Module]
    few: float
    all: float
    lr: float = 1e-2


class Cell(nn.Module):
    """A cell of the user's own: dense, bounded by its initialization alone."""

    def __init__(self, inputs: int, states: int) -> None:
        super().__init__()
        self.recur, self.inject = nn.Linear(states, states), nn.Linear(inputs, states)
        nn.init.uniform_(self.recur.weight, -0.5 / states, 0.5 / states)

    def forward(self, z, x):
        return (self.recur(z) + self.inject(x)).tanh()


def convolutional(shape: tuple[int, int, int]) -> nn.Module:
    """A small convolutional network as one model; in training each connection has its own weight."""
    network = nn.Sequential(
        *(nn.Conv2d(shape[0], 8, 5, 2, 1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)),
    )
    return nn.Sequential(nn.Flatten(), from_sequential(network, shape))


class Pool(nn.Module):
    """States of several resolutions to one vector, each averaged over the quarters of the image."""

    def forward(self, states: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([nn.functional.adaptive_avg_pool2d(z, 2).flatten(1) for z in states], 1)


def stem(channels: int, to: int) -> nn.Sequential:
    """A fourth of the resolution, so that the tests are quick."""
    return nn.Sequential(nn.Conv2d(channels, to, 5, stride=4, padding=2), nn.ReLU())


def head(*layers: nn.Module, features: int) -> nn.Sequential:
    """What reads a state off: normalized, so that the loss does not ask for larger states."""
    return nn.Sequential(*layers, nn.Flatten(), nn.LayerNorm(features), nn.Linear(features, 10))


def size(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]


SPLIT = {
    "solver": PeacemanRachford(rtol=1e-2, max_steps=200),
    "backward": Implicit(solver=PeacemanRachford(rtol=1e-2, max_steps=200)),
}


class Together(nn.Module):
    """Two tiers as channels of the coarser one."""

    def forward(self, tiers):
        return torch.cat((nn.functional.avg_pool2d(tiers[0], 2), tiers[1]), 1)


def dense(kind, **how):
    return lambda shape: nn.Sequential(nn.Flatten(), kind(size(shape), 80, **how), nn.Linear(80, 10))


def halved(model, features, *between):
    """A convolutional model on images of half the size."""
    return lambda shape: nn.Sequential(nn.AvgPool2d(2), model(), *between, nn.Flatten(), nn.Linear(features, 10))


LEARNERS: dict[str, Learner] = {
    "MonotoneDEQ": Learner(dense(MonotoneDEQ), few=0.83, all=0.95),
    "IntervalMonotoneDEQ": Learner(dense(IntervalMonotoneDEQ), few=0.83, all=0.95),
    "NonEuclideanDEQ": Learner(dense(NonEuclideanDEQ), few=0.83, all=0.95),
    "LipschitzDEQ": Learner(
        lambda shape: nn.Sequential(nn.Flatten(), LipschitzDEQ(size(shape), 80, 10, lipschitz=10.0)), few=0.82, all=0.94
    ),
    "MonotoneConvDEQ": Learner(halved(lambda: MonotoneConvDEQ(1, 8), 8 * 14 * 14), few=0.84, all=0.95),
    "MonotoneMultiTierDEQ": Learner(
        halved(lambda: MonotoneMultiTierDEQ(1, (4, 8), **SPLIT), 12 * 7 * 7, Together()), few=0.75, all=0.9
    ),
    "DEQ": Learner(
        lambda shape: nn.Sequential(nn.Flatten(), DEQ(Cell(size(shape), 80), state_shape=(80,)), nn.Linear(80, 10)),
        few=0.84,
        all=0.95,
    ),
    "ImplicitModel low rank": Learner(
        lambda shape: nn.Sequential(nn.Flatten(), ImplicitModel(size(shape), 80, 10, structure=LowRank(rank=5))),
        few=0.84,
        all=0.95,
    ),
    "ImplicitModel sparse": Learner(
        lambda shape: nn.Sequential(nn.Flatten(), ImplicitModel(size(shape), 80, 10, structure=Sparse(nonzeros=800))),
        few=0.84,
        all=0.95,
    ),
    "ImplicitModel triangular": Learner(
        lambda shape: nn.Sequential(
            nn.Flatten(), ImplicitModel(size(shape), 80, 10, structure=Triangular(sizes=(30, 50)), constraint=None)
        ),
        few=0.84,
        all=0.95,
    ),
    "ImplicitModel blocks": Learner(
        lambda shape: nn.Sequential(
            nn.Flatten(),
            ImplicitModel(
                size(shape), 80, 10, activation=Blocks(("relu", 60), (MaxPool(size=2), 40)), constraint=BlockNorm()
            ),
        ),
        few=0.84,
        all=0.95,
    ),
    "ImplicitModel": Learner(
        lambda shape: nn.Sequential(nn.Flatten(), ImplicitModel(size(shape), 80, 10)), few=0.84, all=0.95
    ),
    "SparseCoding": Learner(
        lambda shape: nn.Sequential(nn.Flatten(), SparseCoding(size(shape), 100, penalty=0.5), nn.Linear(100, 10)),
        few=0.84,
        all=0.95,
        lr=5e-2,
    ),
    "from_sequential": Learner(convolutional, few=0.85, all=0.96, lr=2e-2),
    "DenseCell": Learner(
        lambda shape: nn.Sequential(nn.Flatten(), nn.Linear(size(shape), 80), DEQ(DenseCell(80)), nn.Linear(80, 10)),
        few=0.83,
        all=0.95,
    ),
    "ConvDEQ": Learner(
        lambda shape: nn.Sequential(stem(shape[0], 8), ConvDEQ(8, 16), head(nn.AdaptiveAvgPool2d(4), features=256)),
        few=0.84,
        all=0.97,
    ),
    "MultiscaleDEQ": Learner(
        lambda shape: nn.Sequential(stem(shape[0], 8), MultiscaleDEQ(8, (8, 16)), head(Pool(), features=96)),
        few=0.72,
        all=0.96,
    ),
    "DEQTransformer": Learner(  # on the rows of the image
        lambda shape: nn.Sequential(
            nn.Flatten(1, 2),
            nn.Linear(shape[2], 32),
            DEQTransformer(32, 4, causal=False),
            head(features=shape[0] * shape[1] * 32),
        ),
        few=0.76,
        all=0.9,
        lr=3e-3,
    ),
}
