"""Bounds of the equilibria that can be reached from one of them, without first bounds of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .problem import Bounds, Problem, states

__all__ = ["continued"]

ROOM = 0.1
"""How much wider than what was found the next box is, as a share."""
HOPELESS = 1.1
"""Where bounds leave the box by this factor, and by more than in the try before, they will not come to rest."""


def continued(problem: Problem, origin: Bounds, bound: Callable[[Problem, Tensor], Bounds], tries: int) -> Problem:
    """The problem with a box of z around the equilibrium of the centre that no equilibrium leaves, where one is found.

    Let Z be a box around z(u₀), and let each equilibrium with z in Z have it in the interior. If each input has one
    equilibrium, which depends on it continuously, then all are in Z: on the way from u₀ to u, z would have to be on the
    border of Z before it leaves. So bounds that hold only as long as z is in Z prove themselves. Faces that known
    bounds exclude can't be crossed either. The first Z is what the linearization at the centre says, with some room.

    Args:
        problem: Of a model that has one equilibrium for each input, which depends on it continuously.
        origin: Bounds of z(u₀).
        bound: New bounds of the rows that are asked for, (batch, rows), from those that hold.
        tries: How many boxes to try.
    """
    every = torch.ones_like(origin.low, dtype=torch.bool)
    box = _roomy(origin, bound(_within(problem, origin), every))
    rows, last = torch.arange(len(every), device=every.device), torch.full_like(origin.low[:, 0], torch.inf)
    for _ in range(tries):
        part = problem.take(rows)
        found = bound(_within(part, box), every[rows])
        low, high = (found.low > box.low) | (part.z.low >= box.low), (found.high < box.high) | (part.z.high <= box.high)
        held = (low & high).all(1)
        problem = problem.put(rows[held], part.take(held).tighten(z=Bounds(*(end[held] for end in found))))
        growth = ((found.high - found.low) / (box.high - box.low)).amax(1)
        go = ~held & ((growth < HOPELESS) | (growth < last))
        wider, rows, last = _roomy(Bounds(*(end[rows] for end in origin)), found), rows[go], growth[go]
        box = Bounds(torch.where(low, box.low, wider.low)[go], torch.where(high, box.high, wider.high)[go])
        if not len(rows):
            break
    return problem


def _within(problem: Problem, box: Bounds) -> Problem:
    z = problem.z.meet(box)
    return replace(problem, z=z, x=problem.x.meet(states(problem.form, z)))


def _roomy(origin: Bounds, found: Bounds) -> Bounds:
    """A box that holds both, and some room."""
    low, high = torch.minimum(origin.low, found.low), torch.maximum(origin.high, found.high)
    room = ROOM * (high - low) + 1e-9 * (1 + origin.size)
    return Bounds(low - room, high + room)
