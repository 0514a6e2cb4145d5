"""The linear programme of one sample: corners of polygons are mixed so that z = Ax + Bu + b."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import block_array, block_diag, csc_array, csr_array, diags_array, eye_array, kron

from ..regions import Ball, Box, Cardinality
from .hull import Hull
from .problem import Problem

__all__ = ["Found", "Program"]

Array = npt.NDArray[np.float64]

CUTS = 10
"""So often a ball of the norm 2 is cut where the input found is outside of it."""

PENALTY = 1e4
"""What it costs to miss an equation, in units of the largest gain and of the bounds of z. It bounds the multipliers."""


class Found(NamedTuple):
    """What a solver says, not to be trusted.

    Attributes:
        y: Multipliers of z = Ax + Bu + b, (rows,).
        u: The input, (inputs,).
        z: Where the polygons' points are, (rows,).
        x: Likewise.
    """

    y: Array
    u: Array
    z: Array
    x: Array


class Program:
    """max c·x + d·u over z = Ax + Bu + b, (zᵢ, xᵢ) in polygon i, u in the region.

    Variables: the shares of the corners of each row, 1 in sum; how far inputs go from a base, from 0 to 1; and by how
    much equations are missed, which costs so much that it only happens where they contradict each other: the bound from
    the multipliers is then far below what is asked. Balls of the norm 1 and limited cardinality have a step up and one
    down for each input, and a row for their sum, which is exact. Balls of the norm 2 have tangents, which is not.
    """

    def __init__(self, problem: Problem, polygons: Hull) -> None:
        """Of one sample, with finite bounds of z."""
        form, region = problem.form, problem.region
        A, B, b = (tensor.numpy() for tensor in (form.A, form.B, form.b))
        self.z, self.x = polygons.z[0].numpy(), polygons.x[0].numpy()
        z = self.z
        rows, corners = z.shape
        self.centre, low, high = (part[0].numpy() for part in (region.centre, region.low, region.high))
        if isinstance(region, Box):
            self.base, ways = low, [high - low]
        else:
            self.base, ways = self.centre, [high - self.centre, low - self.centre]
        steps = np.concatenate(ways)
        number = np.tile(np.arange(form.inputs), len(ways))[steps != 0]
        steps = steps[steps != 0]
        self.steps = csr_array((steps, (number, np.arange(len(steps)))), shape=(form.inputs, len(steps)))
        self.scale = 1 / np.where(z.max(1) > z.min(1), np.ptp(z, 1), 1.0)
        own, out = (block_diag(list((part - part[:, :1])[:, None])) for part in (z, self.x))
        units, eye = diags_array(self.scale), eye_array(rows)
        moved = [units @ (own - csr_array(A) @ out), units @ csr_array(-B @ self.steps), eye, -eye]
        sums: list[Any] = [kron(eye, np.ones((1, corners))), None, None, None]
        self.equal = csc_array(block_array([moved, sums]))
        rest = b + A @ self.x[:, 0] + B @ self.base - z[:, 0]
        self.right = np.concatenate([rest * self.scale, np.ones(rows)])
        self.cuts: list[Array] = []
        self.radius = float(region.radius[0]) if isinstance(region, Ball) and region.p == 2 else np.inf
        if isinstance(region, Cardinality) and region.count:
            self._cut(np.full(len(steps), 1 / region.count))
        elif isinstance(region, Ball) and region.p == 1 and len(steps):
            self._cut(np.abs(steps) / float(region.radius[0]))

    def _cut(self, steps: Array) -> None:
        """One more row: steps · v ≤ 1."""
        self.cuts.append(np.concatenate([np.zeros(self.x.size), steps, np.zeros(2 * len(self.x))]))

    def solve(
        self, c: Array, d: Array, time_limit: float, allowed: npt.NDArray[np.bool_] | None = None
    ) -> Found | None:
        """Multipliers for c·x + d·u, and where it is largest; None if the solver fails.

        Args:
            c: (states,).
            d: (inputs,).
            time_limit: Seconds for each programme.
            allowed: Which corners may be mixed, (rows, corners), or None for all.
        """
        gain = np.concatenate([(c[:, None] * (self.x - self.x[:, :1])).ravel(), self.steps.T @ d])
        size = np.abs(gain).max(initial=0) or 1.0
        upper = np.concatenate([np.ones(len(gain)), np.full(2 * len(self.x), np.inf)])
        if allowed is not None:
            upper[: allowed.size] = allowed.ravel()
        found = None
        for _ in range(CUTS if np.isfinite(self.radius) else 1):
            result = linprog(
                np.concatenate([-gain / size, np.full(2 * len(self.x), PENALTY)]),
                A_ub=np.stack(self.cuts) if self.cuts else None,
                b_ub=np.ones(len(self.cuts)) if self.cuts else None,
                A_eq=self.equal,
                b_eq=self.right,
                bounds=np.stack([np.zeros(len(upper)), upper], 1),
                method="highs-ds",
                options={
                    "presolve": False,
                    "time_limit": max(time_limit, 0.0),
                },  # presolving takes longer than it saves
            )
            if result.x is None or result.eqlin.marginals is None:
                return found
            rows, size_of = len(self.x), self.x.size
            step = self.steps @ result.x[size_of : -2 * rows]
            shares = result.x[:size_of].reshape(self.x.shape)
            y = -result.eqlin.marginals[:rows] * self.scale * size
            found = Found(y, self.base + step, (shares * self.z).sum(1), (shares * self.x).sum(1))
            length = float(np.linalg.norm(step))
            if not length > self.radius * (1 + 1e-4):
                break
            self._cut(self.steps.T @ step / (length * self.radius))
        return found
