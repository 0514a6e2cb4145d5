"""The ladder: bounders one after the other, each for the samples that are still undecided."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ...models import AffineForm
from ..regions import Region
from .base import Bounder
from .certificate import Certificate, Verdict
from .prepare import prepare
from .problem import Bounds, shifted
from .search import search

__all__ = ["Climb"]

STEPS = 6
"""Gradients of the search for a counterexample."""


class Climb:
    """What is known of the samples of a chunk, and how it grows.

    Args:
        form: The model, in float64.
        region: Where the inputs are, of each sample.
        goals: G, (batch, k, outputs): Gy is to be positive.
        x0: States at the centres, about.
        dtype: Inputs are rounded to it before they are tried.

    Raises:
        NotAffine: If nothing is known of the activation.
    """

    def __init__(self, form: AffineForm, region: Region, goals: Tensor, x0: Tensor, dtype: torch.dtype) -> None:
        self._last, count = time.perf_counter(), len(goals)
        self.form, self.region, self.goals, self.dtype = form, region, goals, dtype
        self.verdicts: list[Verdict] = [Verdict.UNKNOWN] * count
        self.methods: list[str | None] = [None] * count
        self.seconds = goals.new_zeros(count)
        self.problem = prepare(form, region, x0)
        self.margins = goals.new_full(goals.shape[:2], -torch.inf)
        self.found = search(form, region, goals, region.centre, 0, dtype)
        self._decide(torch.arange(count), self.found.missed, Verdict.FALSIFIED, "clean")

    def run(self, bounders: Sequence[Bounder], budget: float) -> None:
        """Try the bounders in turn, and a search for counterexamples after two, within a budget per sample."""
        for number, bounder in enumerate(bounders):
            rows = self._open()
            if not len(rows) or float(self.seconds.sum()) > budget * len(self.goals):
                return
            for part in rows.split(bounder.together):
                if float(self.seconds.sum()) <= budget * len(self.goals):
                    self._bound(part, bounder)
            rows = self._open()
            if number == min(1, len(bounders) - 1) and len(rows):
                self._look(rows, "attack", STEPS, self.region.centre[rows])

    def _bound(self, rows: Tensor, bounder: Bounder) -> None:
        problem = bounder.tighten(self.problem.take(rows))
        goals, form = self.goals[rows], problem.form
        c, d, bias = -goals @ form.C, -goals @ form.D, goals @ form.c
        answer = bounder.answer(problem, c, d, torch.where(self.margins[rows] > 0, torch.inf, bias))
        low, _ = shifted(Bounds(-answer.bound, bias), bias)
        self.margins[rows] = torch.maximum(self.margins[rows], low)
        self.problem = self.problem.put(rows, problem)
        self._decide(rows, (self.margins[rows] > 0).all(1), Verdict.ROBUST, bounder.name)
        still = ~(self.margins[rows] > 0).all(1)
        if answer.u is not None and bool(still.any()):
            self._look(rows[still], bounder.name, 0, answer.u[still])

    def _look(self, rows: Tensor, method: str, steps: int, start: Tensor) -> None:
        """Search for counterexamples from some inputs."""
        found = search(self.form, self.region.take(rows), self.goals[rows], start, steps, self.dtype)
        better = found.value < self.found.value[rows]
        self.found.value[rows[better]], self.found.u[rows[better]] = found.value[better], found.u[better]
        self._decide(rows, found.missed, Verdict.FALSIFIED, method)

    def _open(self) -> Tensor:
        return torch.tensor([i for i, verdict in enumerate(self.verdicts) if verdict is Verdict.UNKNOWN]).long()

    def _decide(self, rows: Tensor, which: Tensor, verdict: Verdict, method: str) -> None:
        """Some of these samples, all of which took part of the time since the last decision, have that verdict."""
        now = time.perf_counter()
        self.seconds[rows] += (now - self._last) / len(rows)
        self._last = now
        for i in rows[which].tolist():
            self.verdicts[i], self.methods[i] = verdict, method

    def certificates(self, labels: Sequence[int | None], shape: torch.Size) -> list[Certificate]:
        """One for each sample."""
        own = slice(None) if self.problem.kept is None else self.problem.kept
        low, high = (end[:, own] for end in self.problem.x)
        form = self.problem.form
        outputs = self.problem.values(form.C, form.D, form.c)
        return [
            Certificate(
                verdict=verdict,
                method=method,
                margin=float(self.margins[i].amin()),
                worst=float(self.found.value[i]),
                adversarial=self.found.u[i].to(self.dtype).view(shape) if verdict is Verdict.FALSIFIED else None,
                label=label,
                states=Bounds(low[i], high[i]),
                outputs=Bounds(outputs.low[i], outputs.high[i]),
                seconds=float(self.seconds[i]),
            )
            for i, (verdict, method, label) in enumerate(zip(self.verdicts, self.methods, labels, strict=True))
        ]
