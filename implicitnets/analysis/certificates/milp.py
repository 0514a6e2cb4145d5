"""The exact maximum where the activation is piecewise linear: branch and bound."""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .base import Answer, OneByOne
from .hull import bound, hull, kinks
from .problem import Problem
from .program import Found, Program

__all__ = ["Maximum", "MixedInteger"]

Index = npt.NDArray[np.int64]

STEPS = 20
"""Of Newton's method for the equilibrium of an input: those that need more are not used."""


class Maximum(NamedTuple):
    """What is known of the largest c·x + d·u.

    Attributes:
        bound: No pair is above.
        value: Of a pair that was found, up to rounding; −∞ if none was.
        u: Its input, (inputs,).
    """

    bound: float
    value: float
    u: Tensor


@dataclass(frozen=True, kw_only=True)
class MixedInteger(OneByOne):
    """The exact maximum where φ is piecewise linear: the mixed-integer programme of which piece each row of z is on.

    Branch and bound. A node is a linear programme over the polygons of the pieces that are left (the formulation is
    that of Tjeng, Xiao and Tedrake 2019). Its bound is computed from its multipliers (``hull.bound``), so no tolerance
    of a solver is in the result: a mixed-integer solver would drop branches that are infeasible or worse up to one.
    The tighter the bounds of z, the fewer rows to branch on. There is no branching where φ is curved, and none on
    inputs: limited cardinality is replaced with its convex hull.

    Attributes:
        time_limit: Seconds for each sample and functional. Then the bound is that of the nodes left.
        rtol: The gap at which to stop, relative to the range of the functional in interval arithmetic.
    """

    time_limit: float = 60.0
    rtol: float = 1e-6

    def maximum(self, problem: Problem, x_part: Tensor, u_part: Tensor) -> Tensor:  # noqa: D102
        least = problem.maximum(x_part, u_part)
        c, d = _each(x_part, least), _each(u_part, least)
        for i in problem.bounded:
            found = [self.search(problem.take(i[None]), *pair).bound for pair in zip(c[i], d[i], strict=True)]
            least[i] = torch.minimum(least[i], least.new_tensor(found))
        return least

    def answer(self, problem: Problem, x_part: Tensor, u_part: Tensor, enough: Tensor) -> Answer:
        """Sample by sample from the worst functional on, up to the first that is above what is enough."""
        least, u = problem.maximum(x_part, u_part), problem.region.centre.clone()
        c, d = _each(x_part, least), _each(u_part, least)
        for i in problem.bounded:
            for j in (least[i] - enough[i]).argsort(descending=True):
                if least[i, j] < enough[i, j]:
                    break
                found = self.search(problem.take(i[None]), c[i, j], d[i, j], float(enough[i, j]))
                least[i, j] = min(float(least[i, j]), found.bound)
                if found.value > enough[i, j]:
                    u[i] = found.u
                    break
        return Answer(least, u)

    def search(self, problem: Problem, c: Tensor, d: Tensor, enough: float | None = None) -> Maximum:
        """The largest c·x + d·u.

        Args:
            problem: Of one sample, with finite bounds of z.
            c: (states,).
            d: (inputs,).
            enough: Stop when it is known on which side of this the maximum is.
        """
        return _Search(problem, c, d, self).run(enough)


def _each(rows: Tensor, like: Tensor) -> Tensor:
    return rows.expand(*like.shape, -1)


@dataclass(order=True)
class _Node:
    """Row i of z is between the corners firstᵢ and lastᵢ; ordered by bound, then age."""

    key: tuple[float, int]
    first: Index = field(compare=False)
    last: Index = field(compare=False)
    y: Tensor = field(compare=False)
    at: Found | None = field(compare=False)

    @property
    def bound(self) -> float:
        return -self.key[0]


class _Search:
    def __init__(self, problem: Problem, c: Tensor, d: Tensor, settings: MixedInteger) -> None:
        self.end = time.monotonic() + settings.time_limit
        self.problem, self.c, self.d, self.polygons = problem, c, d, hull(problem)
        self.linear = np.array([place is not None for place in kinks(problem.form.activation, problem.form.rows)])
        self.program = Program(problem, self.polygons)
        self.corners, self.age = np.arange(self.program.z.shape[1]), count()
        highest, lowest = problem.maximum(c[None], d[None]), -problem.maximum(-c[None], -d[None])
        self.highest, self.gap = float(highest), settings.rtol * float(highest - lowest)
        self.best, self.u = -np.inf, problem.region.centre[0]

    def run(self, enough: float | None) -> Maximum:
        rows = len(self.program.z)
        first = np.zeros(rows, np.int64)
        nodes = [self._node(first, first + self.corners[-1], self.problem.z.low.new_zeros(rows), self.highest)]
        closed = -np.inf
        while nodes:
            highest = max(nodes[0].bound, closed)
            decided = enough is not None and (highest < enough or self.best > enough + self.gap)
            if decided or nodes[0].bound <= max(self.best + self.gap, closed) or time.monotonic() > self.end:
                break
            node = heapq.heappop(nodes)
            children = self._children(node)
            closed = closed if children else max(closed, node.bound)
            for child in children:
                heapq.heappush(nodes, child)
        return Maximum(max([closed, *(node.bound for node in nodes[:1])]), self.best, self.u)

    def _children(self, node: _Node) -> list[_Node]:
        """Divided at the row where φ(z) and x are apart and matter most; none if it is only a matter of rounding."""
        inner = (self.corners > node.first[:, None]) & (self.corners < node.last[:, None])
        z, every = self.program.z, np.arange(len(self.program.z))
        inner &= self.linear[:, None] & (z > z[every, node.first][:, None]) & (z < z[every, node.last][:, None])
        if node.at is None:
            worth = (z.max(1) - z.min(1)) * inner.any(1)
        else:
            apart = np.abs(node.at.x - self.problem.form.activation(torch.from_numpy(node.at.z)).numpy())
            worth = apart * (self.c + node.y @ self.problem.form.A).abs().numpy()
            if worth.sum() <= self.gap:
                return []
            worth = worth * inner.any(1)
        row = int(worth.argmax())
        if not worth[row] > 0:
            return []
        middle = z[row] if node.at is None else np.abs(z[row] - node.at.z[row])
        at = int(np.where(inner[row], middle, np.inf).argmin())
        first, last = node.first.copy(), node.last.copy()
        first[row] = last[row] = at
        below, above = (node.first, last), (first, node.last)
        return [self._node(start, stop, node.y, node.bound) for start, stop in (below, above)]

    def _node(self, first: Index, last: Index, y: Tensor, above: float) -> _Node:
        """The node of such rows, given the multipliers and the bound of one that contains it."""
        allowed = (self.corners >= first[:, None]) & (self.corners <= last[:, None])
        found = self.program.solve(self.c.numpy(), self.d.numpy(), self.end - time.monotonic(), allowed)
        tried = torch.stack([y] if found is None else [y, torch.from_numpy(found.y)])
        c, d = self.c.expand(len(tried), -1), self.d.expand(len(tried), -1)
        bounds = bound(self.problem, self.polygons, c, d, tried[None], torch.from_numpy(allowed)[None, None])[0]
        if found is not None:
            self._try(torch.from_numpy(found.u))
        best = int(bounds.argmin())
        return _Node((-min(above, float(bounds[best])), next(self.age)), first, last, tried[best], found)

    def _try(self, u: Tensor) -> None:
        """The value of an input, kept if it is the best; by Newton's method on the pieces."""
        form, u = self.problem.form, self.problem.region.project(u[None])[0]
        injected, x = form.B @ u + form.b, self.problem.x0[0]
        for _ in range(STEPS):
            with torch.enable_grad():
                z = (form.A @ x + injected).requires_grad_()
                phi = form.activation(z)
                (slope,) = torch.autograd.grad(phi.sum(), z)
            phi, z = phi.detach(), z.detach()
            if bool(((phi - x).abs() <= 1e-10 * (1 + x.abs().amax())).all()):
                value = float(self.c @ x + self.d @ u)
                if value > self.best:
                    self.best, self.u = value, u
                return
            matrix = torch.eye(len(x)).to(x) - slope[:, None] * form.A
            x = torch.linalg.solve_ex(matrix, phi - slope * z + slope * injected)[0]
