"""Attacks that change few entries."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ...models import affine
from ..regions import Box, Cardinality
from ..sensitivity import sensitivity_matrix
from .methods import AttackMethod, climb
from .search import Search

__all__ = ["Sparse"]


@dataclass(frozen=True, kw_only=True)
class Sparse(AttackMethod):
    """Choose the entries to change greedily, some at a time, then improve their values by gradient steps.

    What an entry is worth is the derivative of the negative margin times how far the entry can go ("gradient"), or how
    far, times the bound |C|(I − |A|)⁻¹|B| + |D| of the change of the label's logit and of the most sensitive other one
    ("sensitivity"; El Ghaoui et al. 2021, section 4). The former is the stronger attack by far, as it sees the sample;
    the latter says which entries matter for all samples. For a model that is linear, with two classes, the former finds
    the worst input.

    Attributes:
        ranking: "gradient" or "sensitivity".
        rounds: In how many portions entries are chosen, the gradient taken anew for each.
        steps: Gradient steps on the values of the chosen entries.

    Raises:
        ValueError: If an option is out of range; when run, if no cardinality was given, or λ(|A|) is not below 1 where
            the sensitivities are wanted.
        NotAffine: When run, if the model has no affine form where they are.
    """

    ranking: Literal["gradient", "sensitivity"] = "gradient"
    rounds: int = 8
    steps: int = 10

    def __post_init__(self) -> None:
        if self.ranking not in ("gradient", "sensitivity"):
            raise ValueError(f'Sparse(ranking={self.ranking!r}): ranking must be "gradient" or "sensitivity"')
        if self.rounds < 1 or self.steps < 0:
            raise ValueError(f"{self!r}: rounds must be at least 1 and steps at least 0")

    def run(self, search: Search) -> None:  # noqa: D102
        region = search.region
        if not isinstance(region, Cardinality):
            raise ValueError(f"{self!r} changes a limited number of entries: give attack(..., cardinality=...)")
        weight = _sensitivity(search) if self.ranking == "sensitivity" else None
        u, chosen = region.centre.clone(), torch.zeros_like(region.centre, dtype=torch.bool)
        for portion in _portions(min(region.count, u.shape[1]), self.rounds):
            rows = search.open
            if not len(rows):
                return
            centre, low, high = region.centre[rows], region.low[rows], region.high[rows]
            g = search.ask(rows, u[rows], "margin")
            far = torch.where(g > 0, high, torch.where(g < 0, low, centre))
            worth = (far - centre) * g if weight is None else (far - centre).abs() * weight[rows]
            worth = worth.masked_fill(chosen[rows], -1)  # none is worth less than nothing
            picked = torch.zeros_like(chosen[rows]).scatter_(1, worth.topk(portion, dim=1).indices, True)
            chosen[rows] |= picked
            u[rows] = torch.where(chosen[rows], far, centre)
        rows = search.open
        if len(rows):
            search.tell(rows, u[rows])
        low, high = (torch.where(chosen, end, region.centre) for end in (region.low, region.high))
        sizes = [0.5 * 0.8**step for step in range(self.steps)]
        climb(search, u, Box(centre=region.centre, low=low, high=high), sizes, "margin")


def _portions(count: int, rounds: int) -> list[int]:
    """``count`` in at most so many positive parts, as equal as can be."""
    ends = [round(count * step / rounds) for step in range(rounds + 1)]
    return [b - a for a, b in pairwise(ends) if b > a]


def _sensitivity(search: Search) -> Tensor:
    """What a change of 1 of each input can do to the label's logit and to the most sensitive other, (batch, inputs).

    Raises:
        ValueError: If there is no bound.
    """
    with torch.no_grad():
        form = affine(search.victim.judge.module, search.victim.judge.shape)
        found = sensitivity_matrix(form.map(Tensor.double))
        if found is None:
            raise ValueError('λ(|A|) is not below 1, so there are no sensitivities: use Sparse(ranking="gradient")')
        every = found.matrix.to(search.best)
        others = every.expand(len(search.labels), -1, -1).clone()
        own = every[search.labels]
        others[torch.arange(len(own)), search.labels] = 0
        worst: Tensor = own + others.amax(1)
        return worst
