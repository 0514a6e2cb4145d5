"""Affine arithmetic of the equilibrium."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...linalg import inverse_or_any
from .base import Bounder
from .hull import bound, hull
from .problem import EPS, Bounds, Problem
from .start import interval

__all__ = ["Zonotope"]


@dataclass(frozen=True, kw_only=True)
class Zonotope(Bounder):
    """The zonotope of all equilibria: xᵢ = λᵢzᵢ + μᵢ + βᵢeᵢ, |eᵢ| ≤ 1, one slope λᵢ for each row (Singh et al. 2018).

    With the slopes fixed the equilibrium is linear in the input and the noise e, so (I − ΛA)x = Λ(Bu + b) + μ + βe is
    solved at once, where abstract iterations approach it in many steps (Müller et al. 2023). Over it
    c·x = v·(Λ(Bu + b) + μ + βe) with v = (I − ΛA)⁻ᵀc: the bound is that of the multipliers Λv (``hull.bound``), which
    holds however v was found, and which is not larger since the corners of the polygons are inside the noise.
    λ is the slope of the chord over the bounds of z, for relu the one of the least area. One inverse for each sample
    and round; no iteration for each functional, unlike ``Crown``, which chooses slopes for each.

    Attributes:
        rounds: How often bounds of z are tightened so, at most.
    """

    rounds: int = 3

    def tighten(self, problem: Problem) -> Problem:  # noqa: D102
        form = problem.form
        for _ in range(self.rounds):
            before = problem.z.high - problem.z.low
            up, down = (self.maximum(problem, sign * form.A, sign * form.B) for sign in (1, -1))
            slack = 4 * EPS * (form.b.abs() + up.abs()), 4 * EPS * (form.b.abs() + down.abs())
            problem = interval(problem.tighten(z=Bounds(form.b - down - slack[1], form.b + up + slack[0])), steps=5)
            if not bool((problem.z.high - problem.z.low < 0.98 * before).any()):
                break
        return problem

    def maximum(self, problem: Problem, x_part: Tensor, u_part: Tensor) -> Tensor:  # noqa: D102
        least, form = problem.maximum(x_part, u_part), problem.form
        known = problem.bounded
        if not len(known):
            return least
        some = problem.take(known)
        polygons = hull(some)
        first, last = (Bounds(corner.amin(-1), corner.amax(-1)) for corner in polygons)
        slope = (last.high - last.low) / (first.high - first.low).clamp_min(torch.finfo(least.dtype).tiny)
        slope = slope.clamp_max(form.activation.lipschitz(torch.inf))
        c, d = (part if part.dim() == 2 else part[known] for part in (x_part, u_part))
        matrix = torch.eye(form.states).to(form.A) - slope[:, :, None] * form.A
        y = c @ inverse_or_any(matrix) * slope[:, None]
        least[known] = torch.minimum(least[known], bound(some, polygons, c, d, y))
        return least
