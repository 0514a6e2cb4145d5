"""Linear programmes over polygons around the activation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Bounder
from .hull import Hull, bound, hull
from .problem import Problem
from .program import Program

__all__ = ["LinearProgram"]


@dataclass(frozen=True, kw_only=True)
class LinearProgram(Bounder):
    """The optimum of the linear relaxation: (zᵢ, xᵢ) in the least polygon around φ over the bounds of zᵢ.

    For relu these are the triangles of Ehlers (2017), which contain the programme of El Ghaoui et al. (2021, section 4).
    HiGHS finds multipliers of z = Ax + Bu + b, and the bound is computed from these (``hull.bound``), so that it holds
    whatever HiGHS returns. It is the optimum, up to the solver's tolerance, over boxes, balls of the norm 1 and limited
    cardinality; over balls of the norm 2 nearly. One programme for each sample and functional.
    """

    def maximum(self, problem: Problem, x_part: Tensor, u_part: Tensor) -> Tensor:  # noqa: D102
        least = problem.maximum(x_part, u_part)
        shape = (len(least), x_part.shape[-2], -1)
        c, d = x_part.expand(shape), u_part.expand(shape)
        for i in torch.isfinite(problem.z.size).all(1).nonzero().flatten():
            one = problem.take(i[None])
            polygons = hull(one)
            y = multipliers(Program(one, polygons), c[i], d[i])[None]
            least[i] = torch.minimum(least[i], bound(one, polygons, c[i], d[i], y)[0])
        return least


def multipliers(program: Program, c: Tensor, d: Tensor) -> Tensor:
    """The best multipliers for each functional, (k, rows); zero where the solver finds none."""
    found = [program.solve(*pair) for pair in zip(c.numpy(), d.numpy(), strict=True)]
    none = c.new_zeros(len(program.scale))
    return torch.stack([none if one is None else torch.from_numpy(one.y) for one in found])
