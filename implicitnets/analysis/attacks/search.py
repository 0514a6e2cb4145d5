"""What an attack has found so far, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor

from ..regions import Region
from .victim import Victim, margins

__all__ = ["Search"]


class Search:
    """The search for inputs of a region that a model misclassifies; methods ask it, and it keeps the best answers.

    Attributes:
        victim: The model.
        region: Where the inputs may be, in the victim's dtype.
        labels: The right classes, (batch,).
        dtype: That of the inputs that were given: every input tried can be written in it.
        best: The inputs of the least margins so far, (batch, inputs).
        margin: Their margins.
        found: Whether the equilibrium was found there.
        before: The margins of the inputs given.
        ranking: The wrong classes, the likeliest first, (batch, classes − 1).
        suspect: Where an input looked adversarial whose equilibrium was not found.
        evaluations: How many inputs were tried for each sample.
        unconverged: For how many of them an equilibrium or its gradient was not found.
    """

    def __init__(self, victim: Victim, region: Region, labels: Tensor, dtype: torch.dtype, seeds: list[int]) -> None:
        self.victim, self.region, self.labels, self.dtype = victim, region, labels, dtype
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.best = region.centre.clone()
        logits, self.found = victim.logits(self.best)
        self.ranking = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]
        self.before = margins(logits, labels)
        self.margin = self.before.clone()
        self.suspect = ~self.found & (self.margin < 0)
        self.evaluations = torch.ones_like(labels)
        self.unconverged = (~self.found).long()

    @property
    def fooled(self) -> Tensor:
        """For which samples it is over, (batch,)."""
        return self.found & (self.margin < 0)

    @property
    def open(self) -> Tensor:
        """The indices of the others."""
        return (~self.fooled).nonzero()[:, 0]

    def draw(self) -> Tensor:
        """A random input of each region; what a sample gets does not depend on the others."""
        rows = torch.arange(len(self.best), device=self.best.device)
        pairs = zip(rows.split(1), self._generators, strict=True)
        return torch.cat([self.region.take(row).sample(generator) for row, generator in pairs])

    def noise(self) -> Tensor:
        """Normal numbers, (batch, inputs), likewise."""
        draws = [torch.randn(self.best.shape[1], generator=each, dtype=self.best.dtype) for each in self._generators]
        return torch.stack(draws).to(self.best.device)

    def peek(self, rows: Tensor, u: Tensor) -> Tensor:
        """The margins at any inputs, nan where an equilibrium was not found; a sample may be among the rows often."""
        logits, found = self.victim.logits(u)
        self.evaluations.index_add_(0, rows, torch.ones_like(rows))
        self.unconverged.index_add_(0, rows, (~found).long())
        return torch.where(found, margins(logits, self.labels[rows]), torch.nan)

    def tell(self, rows: Tensor, u: Tensor) -> None:
        """Try inputs u for the samples of these indices."""
        u = self._written(rows, u)
        logits, found = self.victim.logits(u)
        self._keep(rows, u, margins(logits, self.labels[rows]), found, found)

    def ask(self, rows: Tensor, u: Tensor, loss: str | Tensor) -> Tensor:
        """Try them, and return the gradient of the loss there."""
        u = self._written(rows, u)
        logits, found, g, solved = self.victim.gradient(u, self.labels[rows], loss)
        self._keep(rows, u, margins(logits, self.labels[rows]), found, found & solved)
        return g

    def _keep(self, rows: Tensor, u: Tensor, margin: Tensor, found: Tensor, solved: Tensor) -> None:
        self.evaluations[rows] += 1
        self.unconverged[rows] += (~solved).long()
        self.suspect[rows] |= ~found & ~(margin >= 0)
        better = found & (~self.found[rows] | (margin < self.margin[rows]))
        kept = rows[better]
        self.best[kept], self.margin[kept], self.found[kept] = u[better], margin[better], True

    def _written(self, rows: Tensor, u: Tensor) -> Tensor:
        """U brought into the region and rounded to what can be written in ``dtype``, towards the centre if need be."""
        region, centre = self.region.take(rows), self.region.centre[rows]
        u = region.project(u.detach())
        if self.dtype == u.dtype:
            return u
        result, missing = centre.clone(), torch.ones(len(u), dtype=torch.bool, device=u.device)
        for share in (0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
            rounded = u.lerp(centre, share).to(self.dtype).to(u.dtype)
            fits = missing & region.contains(rounded, tol=1e-12)
            result[fits], missing = rounded[fits], missing & ~fits
            if not bool(missing.any()):
                break
        return result
