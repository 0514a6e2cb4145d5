"""The models there are, small and in float64, one row each; test_architectures.py holds every row to the same facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from problems import normal
from torch import nn

from implicitnets.activations import Blocks, GroupSort, LayerNorm, MaxPool, Softmax
from implicitnets.constraints import BlockNorm, InfNorm, Monotone, PerronFrobenius, SpectralNorm
from implicitnets.models import (
    DEQ,
    ConvCell,
    ConvDEQ,
    DenseCell,
    DEQTransformer,
    ImplicitGraph,
    ImplicitModel,
    ImplicitRNN,
    IntervalMonotoneDEQ,
    LipschitzDEQ,
    MonotoneConvDEQ,
    MonotoneDEQ,
    MonotoneMultiTierDEQ,
    MultiscaleDEQ,
    NonEuclideanDEQ,
    QPLayer,
    SparseCoding,
    TransformerCell,
    from_sequential,
)
from implicitnets.models.structures import BlockDiagonal, LowRank, Sparse, Triangular
from implicitnets.solvers import (
    Anderson,
    Broyden,
    ForwardBackward,
    Newton,
    PeacemanRachford,
    Picard,
    Solver,
)

F64_TIGHT: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-13, "max_steps": 500}
SOLVERS: tuple[Solver, ...] = (Anderson(**F64_TIGHT), Broyden(**F64_TIGHT), Newton(**F64_TIGHT))
STIFF: dict[str, Any] = F64_TIGHT | {"max_steps": 20000}
SPLIT: tuple[Solver, ...] = (PeacemanRachford(**STIFF), ForwardBackward(**STIFF), *SOLVERS)


@dataclass(frozen=True)
class Architecture:
    """A model for the table.

    Attributes:
        make: Builds a small model, at most about 30 state entries a sample; takes ``solver=`` and ``backward=``.
        inputs: What it is called on: float64, a batch of 3.
        solvers: Those that are to find its equilibrium, beside the model's own default.
        unique: Whether it promises one equilibrium whatever its weights.
        extreme: Sets weights to values far from the initial ones, for the test of that promise.
        spread: Standard deviation of the random starts of that test.
        smooth: Whether no kink is near, so that finite differences mean something.
        saved: Whether it can be written down with ``config()``.
    """

    make: Callable[..., nn.Module]
    inputs: Callable[[], Sequence[Any]]
    solvers: tuple[Solver, ...] = SOLVERS
    unique: bool = False
    extreme: Callable[[Any], None] | None = None
    spread: float = 3.0
    smooth: bool = True
    saved: bool = True


def large(model: nn.Module) -> None:
    """All weights a hundred times as large."""
    for p in model.parameters():
        p.data.mul_(100)


def threefold(model: nn.Module) -> None:
    """All weights three times as large: I − W then is about ten times as large."""
    for p in model.parameters():
        p.data.mul_(3)


def uneven(model: nn.Module) -> None:
    """Large weights, and the entries of the state weighted from exp(−2) to exp(2)."""
    tenfold(model)
    model.d.data.add_(torch.linspace(-2, 2, model.states))


class Cell(nn.Module):
    """A cell of the user's own, which can't be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.recur, self.inject = nn.Linear(5, 5), nn.Linear(4, 5)
        nn.init.uniform_(self.recur.weight, -0.15, 0.15)

    def forward(self, z, x):
        return (self.recur(z) + self.inject(x)).tanh()


def feedforward(**how: Any) -> ImplicitModel:
    """A network of three layers as one model."""
    layers = nn.Linear(4, 6), nn.Tanh(), nn.MaxPool1d(2), nn.Linear(3, 5), nn.ELU(), nn.Linear(5, 2)
    return from_sequential(nn.Sequential(*layers), 4, **how)


def vectors() -> Sequence[Any]:
    return (normal(3, 4, dtype=torch.float64),)


def ring() -> Sequence[Any]:
    """Three signals on a directed ring of five nodes with a chord."""
    return normal(3, 5, 3, dtype=torch.float64), torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])


def program() -> Sequence[Any]:
    """Three programs with active inequalities: the data Q, q, G, h, A, b, the matrices and b for all."""
    a, g = normal(4, 4, dtype=torch.float64), normal(5, 4, dtype=torch.float64, seed=2)
    q, h = 3 * normal(3, 4, dtype=torch.float64, seed=3), normal(3, 5, dtype=torch.float64, seed=4).square()
    return a @ a.T + torch.eye(4), q, g, h, normal(1, 4, dtype=torch.float64, seed=5), torch.zeros(1).double()


def alike(model: nn.Module) -> None:
    """A dictionary whose atoms are all the same, with a penalty of next to nothing."""
    model.parametrizations.D.original.data[:] = 1
    model.log_penalty.data.fill_(-10)


def implicit(unique: bool = True, extreme: Callable[[Any], None] = large, **options: Any) -> Architecture:
    """An ``ImplicitModel`` of six states, or as many as its activation makes of its rows."""
    return Architecture(
        lambda **how: ImplicitModel(4, 6, 2, **{"activation": "tanh", **options, **how}),
        vectors,
        unique=unique,
        extreme=extreme,
    )


def far_units(model: ImplicitModel) -> None:
    """Large weights, and states in very different units."""
    large(model)
    model.parametrizations.A[0].log_scale.data = torch.linspace(-3, 3, 6, dtype=torch.float64)


def tenfold(model: nn.Module) -> None:
    """All weights ten times as large: nothing bounds the states here, and rounding errors grow with them."""
    for p in model.parameters():
        p.data.mul_(10)


MIXED = Blocks(("tanh", 2), (MaxPool(size=2), 4), (Softmax(size=2), 2))
SORTED = Blocks((GroupSort(size=3), 3), ("softplus", 3))
NORMED = Blocks((LayerNorm(size=4, eps=0.1), 4), ("tanh", 2))

IMPLICIT: dict[str, Architecture] = {
    "full, blocks, InfNorm": implicit(activation=MIXED),
    "full, blocks, rescaled": implicit(activation=SORTED, constraint=InfNorm(kappa=0.9, method="rescale")),
    "full, blocks, SpectralNorm": implicit(activation=MIXED, constraint=SpectralNorm(kappa=0.9)),
    "full, blocks, BlockNorm": implicit(activation=NORMED, constraint=BlockNorm(kappa=0.9)),
    "full, PerronFrobenius": implicit(constraint=PerronFrobenius(kappa=0.9), extreme=far_units),
    "full, SpectralNorm": implicit(constraint=SpectralNorm(kappa=0.9)),
    "full, Monotone": implicit(constraint=Monotone(), extreme=tenfold),
    "low rank": implicit(structure=LowRank(rank=2)),
    "low rank, blocks": implicit(structure=LowRank(rank=2), activation=SORTED),
    "block diagonal": implicit(structure=BlockDiagonal(sizes=(3, 3))),
    "block diagonal, blocks": implicit(structure=BlockDiagonal(sizes=(3, 3)), activation=MIXED),
    "block diagonal, Monotone": implicit(structure=BlockDiagonal(sizes=(2, 4)), constraint=Monotone(), extreme=tenfold),
    "sparse": implicit(structure=Sparse(nonzeros=15)),
    "sparse, blocks": implicit(structure=Sparse(nonzeros=20), activation=MIXED, nonzeros={"B": 12, "C": 6, "D": 4}),
    "triangular": implicit(structure=Triangular(sizes=(2, 3, 1)), constraint=None, extreme=tenfold),
    "triangular, blocks": implicit(structure=Triangular(sizes=(2, 2, 2)), activation=MIXED),
    "triangular, sparse": implicit(structure=Triangular(sizes=(2, 3, 1), nonzeros=7), constraint=None, extreme=tenfold),
    "unconstrained": implicit(constraint=None, unique=False),
}


def states(*shape: int) -> Callable[[], Sequence[Any]]:
    """Inputs of three samples of that shape."""
    return lambda: (normal(3, *shape, dtype=torch.float64),)


ARCHITECTURES: dict[str, Architecture] = {
    "DEQ": Architecture(lambda **how: DEQ(Cell(), state_shape=(5,), **how), vectors, saved=False),
    "ImplicitModel": Architecture(
        lambda **how: ImplicitModel(4, 6, 2, activation="tanh", **how), vectors, unique=True, extreme=large
    ),
    "ImplicitGraph": Architecture(
        lambda **how: ImplicitGraph(3, 4, activation="tanh", **how), ring, unique=True, extreme=large
    ),
    "SparseCoding": Architecture(
        lambda **how: SparseCoding(4, 7, penalty=0.3, ridge=0.1, per_atom=True, **how),
        vectors,
        unique=True,
        extreme=alike,
    ),
    "QPLayer": Architecture(lambda **how: QPLayer(rho=1.0, **how), program),
    **{f"ImplicitModel {name}": row for name, row in IMPLICIT.items()},
    "from_sequential": Architecture(
        feedforward,
        vectors,
        solvers=(Picard(**F64_TIGHT), Broyden(**F64_TIGHT), Newton(**F64_TIGHT)),
        unique=True,
        extreme=large,
    ),
    "DenseCell": Architecture(lambda **how: DEQ(DenseCell(5), **how), states(5), unique=True, extreme=large),
    "ConvCell": Architecture(lambda **how: DEQ(ConvCell(2, hidden=3, groups=1), **how), states(2, 3, 4)),
    "TransformerCell": Architecture(lambda **how: DEQ(TransformerCell(6, 2, hidden=3), **how), states(4, 6)),
    "ConvDEQ": Architecture(lambda **how: ConvDEQ(1, 2, groups=1, **how), states(1, 3, 4)),
    "MultiscaleDEQ": Architecture(lambda **how: MultiscaleDEQ(1, (1, 2), groups=1, **how), states(1, 4, 4)),
    "DEQTransformer": Architecture(lambda **how: DEQTransformer(6, 2, hidden=3, **how), states(4, 6)),
    "ImplicitRNN": Architecture(lambda **how: ImplicitRNN(2, 5, **how), states(4, 2), unique=True, extreme=large),
    "MonotoneDEQ": Architecture(
        lambda **how: MonotoneDEQ(4, 6, m=0.5, **how), vectors, SPLIT, unique=True, extreme=tenfold
    ),
    "MonotoneDEQ-tanh": Architecture(
        lambda **how: MonotoneDEQ(4, 6, m=0.5, activation="tanh", **how), vectors, SPLIT, unique=True, extreme=tenfold
    ),
    "MonotoneConvDEQ": Architecture(
        lambda **how: MonotoneConvDEQ(1, 2, m=0.5, activation="tanh", **how),
        lambda: (normal(3, 1, 4, 3, dtype=torch.float64),),
        SPLIT,
        unique=True,
        extreme=threefold,
    ),
    "MonotoneMultiTierDEQ": Architecture(
        lambda **how: MonotoneMultiTierDEQ(1, (1, 2, 3), m=0.5, activation="softplus", **how),
        lambda: (normal(3, 1, 4, 4, dtype=torch.float64),),
        SPLIT,
        unique=True,
        extreme=threefold,
    ),
    "IntervalMonotoneDEQ": Architecture(
        lambda **how: IntervalMonotoneDEQ(4, 6, **how), vectors, SPLIT, unique=True, extreme=large
    ),
    "LipschitzDEQ": Architecture(
        lambda **how: LipschitzDEQ(4, 6, 2, lipschitz=2.0, m=0.5, **how), vectors, SPLIT, unique=True, extreme=uneven
    ),
    "NonEuclideanDEQ": Architecture(
        lambda **how: NonEuclideanDEQ(4, 6, **how), vectors, SPLIT, unique=True, extreme=uneven
    ),
}
