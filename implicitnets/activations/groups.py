"""Activations that treat all their groups alike: component-wise, and on groups of a given size."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from .base import Activation, require_norm

__all__ = [
    "ACTIVATIONS",
    "OTHERS",
    "Componentwise",
    "GroupSort",
    "LayerNorm",
    "MaxPool",
    "Product",
    "Softmax",
    "Uniform",
]


class Uniform(Activation):
    """An activation of equal groups, as many as there are."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Rows and states of a group."""

    def groups(self, rows: int) -> list[tuple[int, int, int]]:  # noqa: D102
        before, after = self.shape
        if rows % before:
            raise ValueError(f"{self!r} acts on groups of {before} rows, and {rows} rows are no multiple of that")
        return [(rows // before, before, after)]

    def rows(self, states: int) -> int:  # noqa: D102
        before, after = self.shape
        if states % after:
            raise ValueError(f"{self!r} makes groups of {after} states, and {states} states are no multiple of that")
        return states // after * before

    def split(self, states: Sequence[int]) -> list[Activation]:  # noqa: D102
        for part in states:
            self.rows(part)
        return [self] * len(states)

    def slopes(self) -> tuple[float, float] | None:  # noqa: D102
        return None

    @property
    def componentwise(self) -> bool:  # noqa: D102
        return self.shape == (1, 1)


@dataclass(frozen=True)
class Componentwise(Uniform):
    """A function of one number, applied to every entry.

    Attributes:
        name: What it is called.
        function: The function of a tensor.
        bounds: The least and the largest slope, or None if they are not known.
        homogeneous: Whether φ(tz) = tφ(z) for every t > 0.
    """

    name: str
    function: Callable[[Tensor], Tensor] = field(compare=False, repr=False)
    bounds: tuple[float, float] | None = field(default=(0.0, 1.0), repr=False)
    homogeneous: bool = field(default=False, repr=False)

    @property
    def shape(self) -> tuple[int, int]:  # noqa: D102
        return 1, 1

    def __call__(self, z: Tensor) -> Tensor:  # noqa: D102
        return self.function(z)

    def lipschitz(self, p: float) -> float:  # noqa: D102
        require_norm(p)
        return math.inf if self.bounds is None else max(map(abs, self.bounds))

    def slopes(self) -> tuple[float, float] | None:  # noqa: D102
        return self.bounds


def _same(z: Tensor) -> Tensor:
    return z


ACTIVATIONS: dict[str, Componentwise] = {
    phi.name: phi
    for phi in (
        Componentwise("relu", torch.relu, homogeneous=True),
        Componentwise("leaky_relu", functional.leaky_relu, (0.01, 1.0), homogeneous=True),
        Componentwise("tanh", torch.tanh),
        Componentwise("sigmoid", torch.sigmoid, (0.0, 0.25)),
        Componentwise("softplus", functional.softplus),
        Componentwise("elu", functional.elu),
        Componentwise("hardtanh", functional.hardtanh),
        Componentwise("identity", _same, (1.0, 1.0), homogeneous=True),
    )
}
"""Component-wise activations by name, with slopes in [0, 1], so that ‖A‖∞ < 1 makes a model well-posed."""

OTHERS: dict[str, Componentwise] = {
    phi.name: phi
    for phi in (
        Componentwise("abs", torch.abs, (-1.0, 1.0), homogeneous=True),
        Componentwise("gelu", functional.gelu, (-0.129, 1.129)),
        Componentwise("silu", functional.silu, (-0.0999, 1.0999)),
        Componentwise("square", torch.square, None),
    )
}
"""Further component-wise activations by name, with slopes outside [0, 1] (rounded outwards)."""


@dataclass(frozen=True)
class Grouped(Uniform):
    """An activation of groups of ``size`` consecutive rows.

    Attributes:
        size: Rows in a group.

    Raises:
        ValueError: If size is not positive.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"{type(self).__name__}(size={self.size!r}): size must be at least 1")

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    @property
    def homogeneous(self) -> bool:
        return False

    def __call__(self, z: Tensor) -> Tensor:
        return self._of_groups(z.unflatten(-1, (-1, self.size))).flatten(-2)

    @abstractmethod
    def _of_groups(self, z: Tensor) -> Tensor:
        """Φ of groups along the last axis."""


class MaxPool(Grouped):
    """The largest of each ``size`` rows: ``size`` rows make one state. 1-Lipschitz in every norm; homogeneous."""

    @property
    def shape(self) -> tuple[int, int]:  # noqa: D102
        return self.size, 1

    @property
    def homogeneous(self) -> bool:  # noqa: D102
        return True

    def _of_groups(self, z: Tensor) -> Tensor:
        return z.amax(-1, keepdim=True)

    def lipschitz(self, p: float) -> float:
        """1, since |max z − max z′| ≤ ‖z − z′‖∞ ≤ ‖z − z′‖ₚ."""
        require_norm(p)
        return 1.0


class Product(Grouped):
    """The product of each ``size`` rows: ``size`` rows make one state. Lipschitz on bounded sets only."""

    @property
    def shape(self) -> tuple[int, int]:  # noqa: D102
        return self.size, 1

    @property
    def homogeneous(self) -> bool:  # noqa: D102
        return self.size == 1

    def _of_groups(self, z: Tensor) -> Tensor:
        return z.prod(-1, keepdim=True)

    def lipschitz(self, p: float) -> float:
        """Infinity: a slope is the product of the other factors."""
        require_norm(p)
        return math.inf if self.size > 1 else 1.0


class GroupSort(Grouped):
    """Each ``size`` rows in ascending order (Anil, Lucas and Grosse 2019). 1-Lipschitz in every norm; homogeneous."""

    @property
    def homogeneous(self) -> bool:  # noqa: D102
        return True

    def _of_groups(self, z: Tensor) -> Tensor:
        return z.sort(-1).values

    def lipschitz(self, p: float) -> float:
        """1: sorting brings two vectors closer in every p-norm (the rearrangement inequality)."""
        require_norm(p)
        return 1.0


class Softmax(Grouped):
    """exp(zᵢ) / Σ exp(zⱼ) over each ``size`` rows. 1/2-Lipschitz in every norm."""

    def _of_groups(self, z: Tensor) -> Tensor:
        return z.softmax(-1)

    def lipschitz(self, p: float) -> float:
        """1/2: J = diag(s) − ssᵀ is symmetric, and its i-th row has the absolute sum 2sᵢ(1 − sᵢ) ≤ 1/2."""
        require_norm(p)
        return 0.5


@dataclass(frozen=True)
class LayerNorm(Grouped):
    """(z − mean z) / √(var z + eps) over each ``size`` rows, the variance divided by ``size``.

    Attributes:
        size: Rows in a group.
        eps: What is added to the variance. The Lipschitz constant on all vectors is 1/√eps.

    Raises:
        ValueError: If size or eps is not positive.
    """

    eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.eps > 0:
            raise ValueError(f"LayerNorm(eps={self.eps!r}): eps must be positive")

    def _of_groups(self, z: Tensor) -> Tensor:
        return functional.layer_norm(z, (self.size,), eps=self.eps)

    def lipschitz(self, p: float, variance: float = 0.0) -> float:
        """1/√(variance + eps) in the 2-norm, and √size times that in the others.

        J = (P − ẑẑᵀ/size) / √(var + eps), with P the projection on vectors of mean zero and ‖ẑ‖² ≤ size, so that the
        bracket lies between 0 and P.

        Args:
            p: The norm.
            variance: A bound that holds on the domain of interest: the variance of every group on every segment
                between two points is at least this. 0 gives the constant on all vectors.
        """
        require_norm(p)
        return (1.0 if p == 2 else math.sqrt(self.size)) / math.sqrt(variance + self.eps)
