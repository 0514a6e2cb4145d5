"""The cheapest bounds: closed forms, balls, intervals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Bounder
from .problem import EPS, Problem, product
from .start import box, interval, local_box, radius

__all__ = ["ClosedForm", "Interval", "MonotoneBall"]


@dataclass(frozen=True, kw_only=True)
class ClosedForm(Bounder):
    """|x − x₀| ≤ (I − |A|)⁻¹ (|B| σ + r), from the weights alone (El Ghaoui et al. 2021, section 4).

    What is known of the problem otherwise is not used. Infinite where the spectral radius of |A| is not below 1.

    Attributes:
        rounds: How often the bound is refined: neurons whose slope is smaller over the region count less,
            |x − x₀| ≤ (I − S|A|)⁻¹ (S |B| σ + r), S the largest slopes on the intervals that the bound so far gives.
    """

    rounds: int = 0

    def maximum(self, problem: Problem, x_part: Tensor, u_part: Tensor) -> Tensor:  # noqa: D102
        form, region, x0 = problem.form, problem.region, problem.x0
        bounds = box(Problem.of(form, region, x0))
        for _ in range(self.rounds):
            bounds = local_box(bounds)
        return bounds.maximum(x_part, u_part)


@dataclass(frozen=True, kw_only=True)
class MonotoneBall(Bounder):
    """c·x ≤ c·y + ‖c‖ ρ, ‖x − y‖ ≤ ρ from monotonicity (Pabbaraju, Winston and Kolter 2021, theorem 1).

    The norms are those of ‖v‖² = vᵀΛv and its dual. Infinite where I − A is not monotone in the norm of the form.
    """

    def maximum(self, problem: Problem, x_part: Tensor, u_part: Tensor) -> Tensor:  # noqa: D102
        found, region = radius(problem), problem.region
        if found is None:
            return problem.x0.new_full((len(problem.x0), x_part.shape[-2]), torch.inf)
        y, reach, root = found
        inputs = torch.maximum(region.low.abs(), region.high.abs())
        moved = reach[:, None] * torch.linalg.vector_norm(x_part / root, dim=-1) + region.support(u_part)
        size = product(x_part.abs(), y.abs()) + product(u_part.abs(), inputs) + moved.abs()
        terms = problem.form.states + problem.form.inputs + 8
        value: Tensor = product(x_part, y) + product(u_part, region.centre) + moved + 4 * terms * EPS * size
        return value


@dataclass(frozen=True, kw_only=True)
class Interval(Bounder):
    """Interval arithmetic: z ← Ax + Bu + b, x ← φ(z) for bounds, from a first bound on (Jafarpour et al. 2021).

    Attributes:
        steps: At most.
    """

    steps: int = 100

    def tighten(self, problem: Problem) -> Problem:  # noqa: D102
        return interval(problem, self.steps)

    def maximum(self, problem: Problem, x_part: Tensor, u_part: Tensor) -> Tensor:  # noqa: D102
        return problem.maximum(x_part, u_part)
