"""What the ways to bound an equilibrium share."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .problem import Problem

__all__ = ["Answer", "Bounder", "OneByOne"]


class Answer(NamedTuple):
    """What a bounder says of functionals that are asked about up to some value.

    Attributes:
        bound: Upper bounds, (batch, k).
        u: Inputs where a functional that may be above is large, (batch, inputs), or None.
    """

    bound: Tensor
    u: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Bounder(ABC):
    """A way to bound all equilibria over a region. A value: frozen, comparable, printable."""

    @property
    def name(self) -> str:
        """What it is called in certificates."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def together(self) -> int:
        """So many samples gain from being bounded at once."""
        return 2**31

    def tighten(self, problem: Problem) -> Problem:
        """The problem with better bounds of z and x, if this way has any to give at an acceptable price."""
        return problem

    @abstractmethod
    def maximum(self, problem: Problem, x_part: Tensor, u_part: Tensor) -> Tensor:
        """An upper bound of c·x + d·u over all inputs of the region and their equilibria, rounding included.

        Args:
            problem: What is asked, with the bounds known so far.
            x_part: c, (k, states), or (batch, k, states) where it differs between the samples.
            u_part: d, (k, inputs) or (batch, k, inputs).

        Returns:
            (batch, k), float64; infinite where nothing is known.
        """

    def answer(self, problem: Problem, x_part: Tensor, u_part: Tensor, enough: Tensor) -> Answer:
        """Upper bounds as of ``maximum``, where it is enough to know whether they are below ``enough``, (batch, k)."""
        del enough
        return Answer(self.maximum(problem, x_part, u_part))


class OneByOne(Bounder):
    """A way that takes a programme for each sample and functional: ``answer`` is what it does."""

    @property
    def together(self) -> int:  # noqa: D102
        return 1

    def maximum(self, problem: Problem, x_part: Tensor, u_part: Tensor) -> Tensor:  # noqa: D102
        shape = (len(problem.x0), x_part.shape[-2])
        return self.answer(problem, x_part, u_part, problem.x0.new_full(shape, -torch.inf)).bound

    @abstractmethod
    def answer(self, problem: Problem, x_part: Tensor, u_part: Tensor, enough: Tensor) -> Answer: ...  # noqa: D102
