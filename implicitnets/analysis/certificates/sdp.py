"""The semidefinite relaxation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...activations import Blocks
from ..multipliers import Pencil, minimize
from ..regions import Box
from .base import Answer, OneByOne
from .hull import hull
from .problem import EPS, Problem
from .program import Program
from .relaxation import lines

__all__ = ["Semidefinite"]

Array = npt.NDArray[np.float64]

MOST = 30.0
"""Of a multiplier, in units of the bounds and of the range of the functional, unless it begins with more.

Where the sign of z is known, two constraints say that x = z, and only the difference of their multipliers matters.
"""

BENT = {"relu": 0.0, "leaky_relu": 0.01}
"""Activations with (x − az)(x − z) = 0, and their a."""


@dataclass(frozen=True, kw_only=True)
class Semidefinite(OneByOne):
    """Shor's relaxation of products of constraints (Raghunathan, Steinhardt and Liang 2018; Chen et al. 2021).

    For relu x ≥ 0, x ≥ z and x(x − z) = 0, with bounds of x, z and u as products (v − l)(v − h) ≤ 0; for others the
    product of the lines below and above. All pairs satisfy these, so if t − c·x − d·u + Σ λₖgₖ is a positive
    semidefinite form in (1, x, u) for multipliers λ ≥ 0 of the gₖ ≤ 0, then t is a bound. The smallest t is found by an
    interior-point method, and the bound is computed from the multipliers: what the least eigenvalue lacks to 0, with
    rounding, times the largest ‖(1, x, u)‖². Regions that are no box have one linear constraint besides, the best one
    for the linear relaxation. For relu this is not above the bound of ``LinearProgram`` but for the gap; for curved φ
    it can be, since that has more lines.

    Matrices have the size 1 + states + inputs, and there is one problem for each sample and functional: for some
    hundreds at most. No other package is needed.

    Attributes:
        rtol: The gap at which to stop, relative to the range of the functional in interval arithmetic.
    """

    rtol: float = 1e-6

    def answer(self, problem: Problem, x_part: Tensor, u_part: Tensor, enough: Tensor) -> Answer:  # noqa: D102
        least, lowest = problem.maximum(x_part, u_part), -problem.maximum(-x_part, -u_part)
        c, d = (part.expand(*least.shape, -1) for part in (x_part, u_part))
        for i in problem.bounded:
            one = problem.take(i[None])
            shor = _Shor(one)
            for j in (least[i] >= enough[i]).nonzero().flatten():
                ends = float(lowest[i, j]), float(least[i, j])
                found = shor.bound(c[i, j], d[i, j], ends, self.rtol)
                least[i, j] = min(ends[1], found + float(one.rounding(c[i, j, None], d[i, j, None])))
        return Answer(least)


class _Products(NamedTuple):
    """Constraints (p·v)(q·v) ≤ 0, of which p·v and q·v are right up to an error."""

    p: Array
    q: Array
    error: Array


class _Shor:
    """One sample, in v = (1, x′, u′) with x′ and u′ between −1 and 1."""

    def __init__(self, problem: Problem) -> None:
        self.problem, form, region = problem, problem.form, problem.region
        low, high = (torch.cat(end, 1)[0].numpy() for end in zip(problem.x, (region.low, region.high), strict=True))
        self.size, middle = 1 + len(low), (low + high) / 2
        half = (high - low) / 2 * (1 + 8 * EPS) + 8 * EPS * np.abs(middle)
        self.unit, self.all = np.eye(1, self.size), np.eye(self.size)[1:]
        self.entries = half[:, None] * self.all + middle[:, None] * self.unit
        self.rounding = 8 * (self.size + 8) * EPS
        box = _Products(self.all - self.unit, self.all + self.unit, np.zeros(len(low)))
        self.products = [box, *self._rows(torch.hstack([form.A, form.B]).numpy(), form.b.numpy()[:, None])]

    def _rows(self, weights: Array, b: Array) -> list[_Products]:
        """What is known of each pair of z and x."""
        form, (low, high) = self.problem.form, (end[0].numpy()[:, None] for end in self.problem.z)
        line = [part[0].numpy()[:, None] for part in lines(form.activation, self.problem.z)]
        least, under, largest, over = line
        x, one = self.entries[: form.states], np.repeat(self.unit, form.rows, 0)
        z = weights @ self.entries + b * one
        below, above = least * z + under * one - x, x - largest * z - over * one
        tilt, gap = largest - least, over - under
        apart = (gap + np.maximum(tilt * low, tilt * high))[:, 0] > 1e-9 * (high - low)[:, 0]
        names = [getattr(phi, "name", "") for phi, n in Blocks((form.activation, form.rows)).parts for _ in range(n)]
        bent = apart & np.array([name in BENT for name in names])
        flat = x - np.array([BENT.get(name, 1.0) for name in names])[:, None] * z
        large = np.abs(weights) @ np.abs(self.entries).sum(1)[:, None] + np.abs(b) + np.abs(x).sum(1)[:, None]
        large = (1 + largest) * (large + np.abs(low) + np.abs(high)) + np.abs(under) + np.abs(over)
        error = self.rounding * large[:, 0]
        everywhere = np.ones(len(z), bool)
        pairs = [(z - high * one, z - low * one, everywhere), (below, one, everywhere), (above, one, everywhere)]
        pairs += [(below, -above, apart), (z - x, one, bent), (-flat, one, bent), (flat, x - z, bent)]
        return [_Products(p[which], q[which], error[which]) for p, q, which in pairs]

    def _cut(self, c: Tensor, d: Tensor) -> _Products:
        """The support of the region in the direction that is best for the linear relaxation."""
        form, region = self.problem.form, self.problem.region
        found = Program(self.problem, hull(self.problem)).solve(c.numpy(), d.numpy(), np.inf)
        w = d if found is None else d + torch.from_numpy(found.y) @ form.B
        reach = float(region.support(w[None])) + float(w @ region.centre[0])
        row = w.numpy() @ self.entries[form.states :] - reach * self.unit[0]
        large = np.abs(w.numpy()) @ np.abs(self.entries[form.states :]).sum(1) + abs(reach)
        return _Products(row[None], self.unit, self.rounding * np.array([large]))

    def bound(self, c: Tensor, d: Tensor, ends: tuple[float, float], rtol: float) -> float:
        """An upper bound of c·x + d·u, less its own rounding, given a range that it is in."""
        products = self.products if isinstance(self.problem.region, Box) else [*self.products, self._cut(c, d)]
        p, q, error = (np.concatenate(part) for part in zip(*products, strict=True))
        sizes = np.abs(p).max(1), np.abs(q).max(1)
        used = (sizes[0] > 0) & (sizes[1] > 0)
        p, q = (v[used] / size[used, None] for v, size in zip((p, q), sizes, strict=True))
        errors = [error[used] / size[used] for size in sizes]
        low, width = ends[0], max(ends[1] - ends[0], np.finfo(float).tiny)
        goal = (torch.cat([c, d]).numpy() @ self.entries - low * self.unit[0]) / width + self.unit[0]
        pencil = Pencil(p=p, q=q, g=self.unit[0], constant=(np.outer(goal, self.unit) + np.outer(self.unit, goal)) / 2)
        start, t = self._start(pencil)
        weights, t = minimize(pencil, start, t, np.maximum(MOST, 2 * start), gap=rtol)
        form, half = pencil(weights, t), np.abs(p).T @ (weights[:, None] * np.abs(q))
        parts = np.linalg.norm(2 * half) + np.linalg.norm(pencil.constant) + abs(t)
        lacks = parts * 4 * (len(weights) + 16 * self.size) * EPS - np.linalg.eigvalsh(form)[0]
        reach = np.abs(p).sum(1), np.abs(q).sum(1)
        missed = 2 * weights @ (errors[0] * reach[1] + errors[1] * reach[0] + errors[0] * errors[1])
        return float(low + width * (t - 1 + max(lacks, 0.0) * self.size + missed))

    def _start(self, pencil: Pencil) -> tuple[Array, float]:
        """Multipliers that are feasible: those of the boxes of entries outweigh all others."""
        weights = np.full(len(pencil.p), 1e-3)
        boxes = self.size - 1
        weights[:boxes] = 0
        rest = pencil(weights, 0.0)
        weights[:boxes] = 1 + np.abs(rest).sum(1)[1:]
        form = pencil(weights, 0.0)
        return weights, float(form[0, 1:] @ np.linalg.solve(form[1:, 1:], form[1:, 0]) - form[0, 0]) + 1.0
