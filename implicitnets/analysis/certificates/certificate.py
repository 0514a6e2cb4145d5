"""Records of what was proved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import overload

import torch
from torch import Tensor

from .problem import Bounds

__all__ = ["Certificate", "Certificates", "Verdict"]


class Verdict(Enum):
    """What is known of a sample."""

    ROBUST = "robust"
    """Every goal is positive for every input of the region and every equilibrium: proved."""
    FALSIFIED = "falsified"
    """An input of the region was found where a goal is not positive."""
    UNKNOWN = "unknown"
    """Neither; or the sample was not finite."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What is proved of one sample, with these weights in exact arithmetic.

    Attributes:
        verdict: Robust, falsified or unknown.
        method: What decided: the name of a method, "attack", "clean" if the given input itself misses a goal, or None.
        margin: No goal is below for any input of the region: proved. −∞ if nothing is.
        worst: The smallest value of a goal that was found at an input of the region, so that the true minimum is in
            [margin, worst]; ∞ where none was tried.
        adversarial: The input where worst was found, of the shape and dtype of the sample, if the verdict is falsified.
            It is in the region up to the rounding of that dtype.
        label: The class that the margin is of, if the goals are class margins.
        states: Bounds of the states x over the region, (states,).
        outputs: Bounds of the outputs over the region, (outputs,), by interval arithmetic on those of the states.
        seconds: Its share of the time.
    """

    verdict: Verdict
    method: str | None
    margin: float
    worst: float
    adversarial: Tensor | None
    label: int | None
    states: Bounds
    outputs: Bounds
    seconds: float

    def __repr__(self) -> str:
        way = "" if self.method is None else f" by {self.method}"
        least = f"margin in [{self.margin:.4g}, {self.worst:.4g}]"
        return f"Certificate({self.verdict.value}{way}, {least}, {self.seconds:.2g} s)"


@dataclass(frozen=True)
class Certificates(Sequence[Certificate]):
    """Certificates of a batch, in its order.

    Attributes:
        items: One for each sample.
    """

    items: tuple[Certificate, ...]

    @overload
    def __getitem__(self, index: int) -> Certificate: ...

    @overload
    def __getitem__(self, index: slice) -> Certificates: ...

    def __getitem__(self, index: int | slice) -> Certificate | Certificates:
        return Certificates(self.items[index]) if isinstance(index, slice) else self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def which(self, verdict: Verdict) -> Tensor:
        """Which samples have a verdict, bool of shape (batch,)."""
        return torch.tensor([item.verdict is verdict for item in self.items], dtype=torch.bool)

    @property
    def robust(self) -> Tensor:
        """Which samples are proved to be robust, bool of shape (batch,)."""
        return self.which(Verdict.ROBUST)

    @property
    def falsified(self) -> Tensor:
        """Which samples are proved not to be, bool of shape (batch,)."""
        return self.which(Verdict.FALSIFIED)

    @property
    def margins(self) -> Tensor:
        """The proved lower bounds of the goals, float64 of shape (batch,)."""
        return torch.tensor([item.margin for item in self.items], dtype=torch.float64)

    def __repr__(self) -> str:
        return f"Certificates({self})"

    def __str__(self) -> str:
        counts = [f"{int(self.which(verdict).sum())} {verdict.value}" for verdict in Verdict]
        seconds = sum(item.seconds for item in self.items)
        return f"{len(self)} samples: {', '.join(counts)}; {seconds:.2f} s"
