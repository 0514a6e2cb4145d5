"""Linear bounds through the adjoint equilibrium."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...linalg import inverse_or_any
from .base import Bounder
from .continuation import continued
from .problem import EPS, Bounds, Problem, product, shifted
from .relaxation import Lines, lines
from .start import interval

__all__ = ["Crown"]

ENTRIES = 2**20
"""Of the largest tensor that is made at once, about: few enough to stay in the cache."""


@dataclass(frozen=True, kw_only=True)
class Crown(Bounder):
    """Implicit CROWN: linear bounds of the equilibrium in the input, from an adjoint equilibrium.

    Let low·z + under ≤ φ(z) ≤ high·z + over. For any y, with D(y) = high where y > 0 and low elsewhere, r(y) = over or
    under likewise, g = D(y)y and e = c + Aᵀg − y, every equilibrium has

        c·x = y·x − g·Ax + e·x ≤ g·(Bu + b) + r(y)·y + e·x,

    of which the last term is bounded by the bounds of x, and vanishes where y solves the adjoint equation
    y = c + AᵀD(y)y. The rest is linear in u, and bounded exactly over the region. It extends CROWN (Zhang et al. 2018)
    from layers to equilibria, and is a feasible point of the dual of the linear relaxation; compare CerDEQ (Li et al.
    2022).

    ``tighten`` bounds the rows of z so: first from inside, if every input has one equilibrium, by a box of z that no
    equilibrium can leave on the way from the centre; then from outside the rows whose lines are apart, in rounds, since
    tighter bounds of z have tighter lines.

    Attributes:
        rounds: Rounds, at most, of those samples that gained in the round before.
        tries: Boxes, at most, from the least to wider ones.
        steps: Of the iteration for y, at most.
        rtol: The e that is good enough, relative to y. It changes how tight the bound is, never that it holds.
    """

    rounds: int = 3
    tries: int = 12
    steps: int = 30
    rtol: float = 1e-2

    def tighten(self, problem: Problem) -> Problem:  # noqa: D102
        if self.tries and problem.origin is not None:
            problem = interval(continued(problem, problem.origin, self._rows, self.tries), steps=5)
        rows = torch.arange(len(problem.x0), device=problem.x0.device)
        for _ in range(self.rounds):
            part = problem.take(rows)
            new = interval(part.tighten(z=self._rows(part, _apart(part))), steps=5)
            problem, before, after = problem.put(rows, new), *(known.z.high - known.z.low for known in (part, new))
            rows = rows[~(after.sum(1) > 0.98 * before.sum(1))]  # of infinite bounds nothing is known
            if not len(rows):
                break
        return problem

    def maximum(self, problem: Problem, x_part: Tensor, u_part: Tensor) -> Tensor:  # noqa: D102
        shape = (len(problem.x0), x_part.shape[-2], -1)
        c, d = x_part.expand(shape), u_part.expand(shape)
        found = [self._linear(problem.take(some), c[some], None, d[some]) for some in _parts(problem, c.shape[1])]
        return torch.minimum(torch.cat(found), problem.maximum(x_part, u_part))

    def _rows(self, problem: Problem, chosen: Tensor) -> Bounds:
        """Bounds of z, new ones where chosen, (batch, rows)."""
        order = chosen.sum(1).argsort()  # so that those of about as many rows are together
        low, high = problem.z.low.clone(), problem.z.high.clone()
        for some in _parts(problem, 2 * int(chosen.sum(1).max())):
            some = order[some]  # noqa: PLW2901
            count = int(chosen[some].sum(1).max())
            if not count:
                continue
            rows = chosen[some].to(torch.int8).argsort(dim=1, descending=True)[:, :count]
            c, q = problem.form.A[rows], functional.one_hot(rows, problem.form.rows).to(low)
            value = self._linear(problem.take(some), torch.cat([c, -c], 1), torch.cat([q, -q], 1), None)
            up, down = value.split(count, 1)
            found = shifted(Bounds(-down, up), problem.form.b[rows])
            low[some], high[some] = low[some].scatter(1, rows, found.low), high[some].scatter(1, rows, found.high)
        return Bounds(low, high)

    def _linear(self, problem: Problem, c: Tensor, q: Tensor | None, d: Tensor | None) -> Tensor:
        """An upper bound of c·x + q·Bu + d·u, (batch, k); infinite where bounds of z or x are."""
        form, region = problem.form, problem.region
        known = torch.isfinite(problem.z.size + problem.x.size).all(1, keepdim=True)
        z, x = (Bounds(*(torch.where(known, end, 0.0) for end in bounds)) for bounds in (problem.z, problem.x))
        line = Lines(*(part[:, None] for part in lines(form.activation, z)))
        y = self._adjoint(form.A, c, line)
        g = torch.where(y > 0, line.high, line.low) * y
        e = c - y + g @ form.A
        rows = g if q is None else g + q
        w = rows @ form.B if d is None else torch.addmm(d.flatten(0, 1), rows.flatten(0, 1), form.B).view_as(d)
        value = region.support(w) + product(rows, region.centre @ form.B.T) + g @ form.b
        value = value + (torch.where(y > 0, line.over, line.under) * y).sum(-1)
        value = value + product(e.clamp_min(0), x.high) + product(e.clamp_max(0), x.low)
        inputs = torch.maximum(region.low.abs(), region.high.abs())
        sums = x.size @ form.A.abs().T + inputs @ form.B.abs().T + form.b.abs()
        size = product(rows.abs() + g.abs(), sums) + product(c.abs(), x.size)
        size = size + product(y.abs(), x.size + torch.maximum(line.over.abs(), line.under.abs())[:, 0])
        if d is not None:
            value, size = value + product(d, region.centre), size + product(d.abs(), inputs)
        terms = form.rows + form.states + form.inputs + 8
        value = value + 4 * terms * EPS * size
        return torch.where(known & torch.isfinite(value), value, torch.inf)

    def _adjoint(self, A: Tensor, c: Tensor, line: Lines) -> Tensor:
        """About the y with y = c + AᵀD(y)y, (batch, k, states).

        With the middle slopes H = (low + high) / 2 this is y(I − HA) = c + (½(high − low)|y|) A for rows y, which is
        iterated on. That contracts, as Peaceman-Rachford splitting does, if Λ(I − A) is monotone for a Λ > 0 and the
        slopes are in [0, 1], and in the maximum norm if ‖A‖∞ < 1; the faster, the fewer the lines that are apart.
        """
        middle, half = (line.low + line.high) / 2, (line.high - line.low) / 2
        inner = torch.eye(len(A)).to(A) - middle.transpose(1, 2) * A
        inv = inverse_or_any(inner)
        base, link = c @ inv, half.transpose(1, 2) * (A @ inv)
        y = base
        for _ in range(self.steps):
            last, y = y, base + y.abs() @ link
            if bool(((y - last).abs().amax(-1) <= self.rtol * y.abs().amax(-1)).all()):
                break
        return y


def _apart(problem: Problem) -> Tensor:
    """Which rows have lines that are apart by a millionth of the largest distance in their sample, (batch, rows)."""
    known = torch.isfinite(problem.z.size).all(1, keepdim=True)
    z = Bounds(*(torch.where(known, end, 0.0) for end in problem.z))
    line = lines(problem.form.activation, z)
    tilt, gap = line.high - line.low, line.over - line.under
    widest = gap + torch.maximum(tilt * z.low, tilt * z.high)
    return known & (widest > 1e-6 * widest.amax(1, keepdim=True)) & (widest > 1e-9)


def _parts(problem: Problem, k: int) -> list[Tensor]:
    """The numbers of the samples in parts that fit into memory with k functionals each."""
    form, samples = problem.form, torch.arange(len(problem.x0), device=problem.x0.device)
    size = max(form.inputs, form.states) * max(k, form.states)
    return list(samples.split(max(1, ENTRIES // size)))
