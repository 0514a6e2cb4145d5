"""Attacks that take no gradient: what one by gradients has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..regions import Region
from .methods import AttackMethod, step
from .search import Search

__all__ = ["SPSA", "Noise"]


@dataclass(frozen=True, kw_only=True)
class Noise(AttackMethod):
    """Random inputs: by turns any of the region, and the best of the region for a random direction.

    Attributes:
        tries: How many.

    Raises:
        ValueError: If tries is not positive.
    """

    tries: int = 100

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ValueError(f"Noise(tries={self.tries!r}): tries must be at least 1")

    def run(self, search: Search) -> None:  # noqa: D102
        for turn in range(self.tries):
            u = search.region.maximizer(search.noise()) if turn % 2 else search.draw()
            rows = search.open
            if not len(rows):
                return
            search.tell(rows, u[rows])


@dataclass(frozen=True, kw_only=True)
class SPSA(AttackMethod):
    """Steps as those of ``PGD`` along gradients that are estimated by differences of the margin.

    For random signs s, the estimate is the mean of (margin(u − hs) − margin(u + hs)) / 2h · s (Spall 1992; Uesato,
    O'Donoghue, van den Oord and Kohli 2018, "Adversarial risk and the dangers of evaluating against weak attacks").
    The inputs u ± hs need not be in the region.

    Attributes:
        steps: Steps.
        directions: Signs that are drawn for each.
        width: h, as a share of the region's width.

    Raises:
        ValueError: If an option is not positive.
    """

    steps: int = 10
    directions: int = 32
    width: float = 0.01

    def __post_init__(self) -> None:
        for name in ("steps", "directions", "width"):
            if not getattr(self, name) > 0:
                raise ValueError(f"SPSA({name}={getattr(self, name)!r}): {name} must be positive")

    def run(self, search: Search) -> None:  # noqa: D102
        u = search.region.centre.clone()
        for turn in range(self.steps):
            signs = [search.noise().sign() for _ in range(self.directions)]
            rows = search.open
            if not len(rows):
                return
            part = search.region.take(rows)
            uphill = self._uphill(search, part, rows, u[rows], torch.stack(signs)[:, rows])
            u[rows] = step(part, u[rows], uphill, 1 / (1 + turn))
            search.tell(rows, u[rows])

    def _uphill(self, search: Search, region: Region, rows: Tensor, u: Tensor, signs: Tensor) -> Tensor:
        """The estimate; 0 where an equilibrium was not found. No difference is shorter than rounding allows."""
        h = (self.width * (region.high - region.low).amax(1)).clamp_min(1e-6)[:, None]
        way = (h * signs).flatten(0, 1)
        at, several = u.repeat(len(signs), 1), rows.repeat(len(signs))
        falls = search.peek(several, at - way) - search.peek(several, at + way)
        return (falls.view(len(signs), -1, 1) / (2 * h) * signs).mean(0).nan_to_num(0, 0, 0)
