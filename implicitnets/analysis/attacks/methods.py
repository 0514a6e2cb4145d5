"""Attacks by gradients: one step, or many."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..regions import Ball, Box, Region
from .search import Search

__all__ = ["FGSM", "PGD", "AttackMethod"]


@dataclass(frozen=True, kw_only=True)
class AttackMethod(ABC):
    """A way to search for adversarial inputs. A value: frozen, comparable, printable."""

    @abstractmethod
    def run(self, search: Search) -> None:
        """Try inputs for the samples that are still open."""


@dataclass(frozen=True, kw_only=True)
class FGSM(AttackMethod):
    """The input of the region that is worst for the model's linearization at the given one.

    In the maximum norm x + ε sign ∇L, the fast gradient sign method (Goodfellow, Shlens and Szegedy 2015); elsewhere
    its analogue, x + argmax_δ ∇L·δ. For a model that is linear, with loss="margin" and two classes, nothing is worse.

    Attributes:
        loss: L: "margin" (the negative margin) or "ce" (the cross entropy).

    Raises:
        ValueError: If the loss is neither.
    """

    loss: Literal["margin", "ce"] = "margin"

    def __post_init__(self) -> None:
        check_loss(self, self.loss)

    def run(self, search: Search) -> None:  # noqa: D102
        rows = search.open
        if len(rows):
            region = search.region.take(rows)
            search.tell(rows, region.maximizer(search.ask(rows, region.centre, self.loss)))


@dataclass(frozen=True, kw_only=True)
class PGD(AttackMethod):
    """Projected gradient ascent of the loss (Madry, Makelov, Schmidt, Tsipras and Vladu 2018).

    The first start is the given input, and its first step the whole of ``FGSM``, than which PGD is thus never worse.
    The others are random inputs of the region. Then follow starts at the given input that are each aimed at one class,
    from the likeliest on: they make its logit large against that of the label (Gowal et al. 2019, "An alternative
    surrogate loss for PGD-based adversarial testing"). With a target for each wrong class, nothing in the region is
    worse for a model that is linear.

    Steps shrink in equal ratios from all of the region to ``step_size`` of it. They go along the sign of the gradient
    in the maximum norm, along the gradient in the Euclidean one; in the ℓ1 ball, and where the number of changes is
    limited, towards the region's point that is best for the gradient (the steps of Frank and Wolfe 1956).

    Attributes:
        steps: Steps of a start.
        restarts: Starts that are aimed at no class.
        targets: Starts that are aimed at one, at most as many as there are wrong classes.
        step_size: The last step, as a share of the region's width.
        loss: "margin" (the negative margin) or "ce" (the cross entropy).

    Raises:
        ValueError: If an option is out of range.
    """

    steps: int = 20
    restarts: int = 1
    targets: int = 0
    step_size: float = 0.01
    loss: Literal["margin", "ce"] = "margin"

    def __post_init__(self) -> None:
        check_loss(self, self.loss)
        for name, least in (("steps", 1), ("restarts", 1), ("targets", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"PGD({name}={getattr(self, name)!r}): {name} must be at least {least}")
        if not 0 < self.step_size <= 1:
            raise ValueError(f"PGD(step_size={self.step_size!r}): step_size must be in (0, 1], e.g. 0.01")

    def run(self, search: Search) -> None:  # noqa: D102
        centre, sizes = search.region.centre, [self._size(turn) for turn in range(self.steps)]
        for start in range(self.restarts):
            climb(search, search.draw() if start else centre.clone(), search.region, sizes, self.loss)
        for target in search.ranking[:, : self.targets].unbind(1):
            climb(search, centre.clone(), search.region, sizes, target)

    def _size(self, turn: int) -> float:
        """From 1 to ``step_size``, in equal ratios."""
        return math.pow(self.step_size, turn / max(self.steps - 1, 1))


def climb(search: Search, u: Tensor, region: Region, sizes: list[float], loss: str | Tensor) -> None:
    """Steps of these sizes within a region, from u, for the samples that are open; a loss may be a class for each."""
    for size in sizes:
        rows = search.open
        if not len(rows):
            return
        part = region.take(rows)
        aim = loss if isinstance(loss, str) else loss[rows]
        u[rows] = step(part, u[rows], search.ask(rows, u[rows], aim), size)
    rows = search.open
    if len(rows):
        search.tell(rows, u[rows])


def step(region: Region, u: Tensor, g: Tensor, size: float) -> Tensor:
    """A step uphill; one of size 1 from the centre leads to what is best for the gradient."""
    if isinstance(region, Box):
        return region.project(u + size * (region.high - region.low) * g.sign())
    if isinstance(region, Ball) and region.p == 2:
        radius = region.radius[:, None]
        way = u - region.centre + 2 * size * radius * g / _length(g)
        return region.project(region.centre + way * (radius / _length(way)).clamp_max(1))
    return region.project(u.lerp(region.maximizer(g), size))


def _length(v: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
    return size


def check_loss(owner: object, loss: object) -> None:
    """Check that it is known.

    Raises:
        ValueError: If not.
    """
    if loss not in ("margin", "ce"):
        raise ValueError(f'{type(owner).__name__}(loss={loss!r}): loss must be "margin" or "ce"')
