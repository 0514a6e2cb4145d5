"""Linear programmes over polygons around the activation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Answer, OneByOne
from .hull import bound, hull
from .problem import Problem
from .program import Program

__all__ = ["LinearProgram"]


@dataclass(frozen=True, kw_only=True)
class LinearProgram(OneByOne):
    """The optimum of the linear relaxation: (zᵢ, xᵢ) in the least polygon around φ over the bounds of zᵢ.

    For relu these are the triangles of Ehlers (2017); the programme of El Ghaoui et al. (2021, section 4) is that
    without their upper sides. HiGHS finds multipliers of z = Ax + Bu + b, and the bound is computed from these
    (``hull.bound``), so that it holds whatever HiGHS returns. It is the optimum, up to the solver's tolerance, over
    boxes, balls of the norm 1 and limited cardinality; over balls of the norm 2 nearly. One programme for each sample
    and functional; its input is the attack of that section.

    Attributes:
        time_limit: Seconds for each programme.
    """

    time_limit: float = 60.0

    def answer(self, problem: Problem, x_part: Tensor, u_part: Tensor, enough: Tensor) -> Answer:  # noqa: D102
        least, u = problem.maximum(x_part, u_part), problem.region.centre.clone()
        shape = (len(least), x_part.shape[-2], -1)
        c, d = x_part.expand(shape), u_part.expand(shape)
        for i in problem.bounded:
            one = problem.take(i[None])
            polygons, highest = hull(one), -torch.inf
            program = Program(one, polygons)
            for j in (least[i] >= enough[i]).nonzero().flatten():
                found = program.solve(c[i, j].numpy(), d[i, j].numpy(), self.time_limit)
                if found is None:
                    continue
                y = torch.from_numpy(found.y)[None, None]
                least[i, j] = torch.minimum(least[i, j], bound(one, polygons, c[i, j, None], d[i, j, None], y)[0, 0])
                if float(least[i, j] - enough[i, j]) > highest:
                    highest, u[i] = float(least[i, j] - enough[i, j]), torch.from_numpy(found.u)
        return Answer(least, u)
