"""A running average of Σ over the batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .metric import Metric

__all__ = ["Average"]


class Average:
    """Σ ← ema · Σ + (1 − ema) · Σ of the batch from Σ = 0, divided by 1 − ema^steps, for each group of a layer.

    Args:
        ema: What is kept of the past in a step, in [0, 1).
    """

    def __init__(self, ema: float) -> None:
        self.ema, self.steps = ema, 0
        self.sums: list[Tensor] = []

    def update(self, metrics: Sequence[Metric]) -> list[Metric]:
        """Take a batch in; the metrics of the average."""
        new = [(1 - self.ema) * metric.sigma for metric in metrics]
        self.sums = [self.ema * old + now for old, now in zip(self.sums, new, strict=True)] if self.sums else new
        self.steps += 1
        share = 1 - self.ema**self.steps
        return [Metric(metric.tau, sigma=total / share) for metric, total in zip(metrics, self.sums, strict=True)]

    def state_dict(self) -> dict[str, Tensor]:
        """What it remembers."""
        return {"steps": torch.tensor(self.steps), **{str(i): total for i, total in enumerate(self.sums)}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state_dict`` gave."""
        self.steps = int(state["steps"])
        self.sums = [state[str(i)] for i in range(len(state) - 1)]
