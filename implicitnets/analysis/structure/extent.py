"""How large a linear functional of input and states can be, with what holds between the states put in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...models import AffineForm
from ..certificates.base import Bounder
from ..certificates.crown import Crown
from ..certificates.problem import Bounds, Problem, product
from ..certificates.simple import Interval
from ..gains import constants
from .duplicates import duplicates
from .editing import linear, rows_of

__all__ = ["Extent", "bounder"]

EPS = torch.finfo(torch.float64).eps
LOOSE = 1e-3
"""Rows that are this near to each other are tried as multiples; how near the states are is bounded."""


def bounder(form: AffineForm) -> Bounder:
    """How functionals of a form are bounded."""
    return Crown() if form.activation.componentwise else Interval()


@dataclass(frozen=True)
class Functional:
    """c·x + d·u + e, and more than its error, for k functionals.

    Attributes:
        x: C, (k, states).
        u: D, (k, inputs).
        constant: E, (k,).
        slack: The error, (batch, k).
    """

    x: Tensor
    u: Tensor
    constant: Tensor
    slack: Tensor


@dataclass(frozen=True)
class Ties:
    """States that are multiples of others: |x_i − factor_i x_k| ≤ error_i, k = of_i; i = of_i where one is not.

    Attributes:
        of: (states,).
        factor: (states,).
        error: (batch, states).
    """

    of: Tensor
    factor: Tensor
    error: Tensor


class Extent:
    """Bounds of functionals over all equilibria of a problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        known = linear(problem)
        self.known = known
        self.states = ((known.slope != 0) & torch.isfinite(known.slope)).nonzero().flatten()
        region = problem.region
        self.inputs = torch.maximum(region.low.abs(), region.high.abs())
        self.ties = self._ties()

    def __call__(self, x_part: Tensor, u_part: Tensor, constant: Tensor) -> Bounds:
        """Bounds of c·x + d·u + e, (batch, k); coefficients may be a few roundings off."""
        none = x_part.new_zeros(len(self.problem.x0), len(x_part))
        asked = Functional(x_part, u_part, constant, none + 4 * EPS * constant.abs())
        found = self._bounds(asked)
        for put_in in (self._tied, self._folded, self._tied):  # the equations of linear states have multiples in them
            then = put_in(asked)
            found, asked = found if then is asked else found.meet(self._bounds(then)), then
        return found

    def _bounds(self, of: Functional) -> Bounds:
        by, slack = bounder(self.problem.form), of.slack * (1 + 1e-9) + 4 * EPS * of.constant.abs()
        high = of.constant + by.maximum(self.problem, of.x, of.u)
        low = of.constant - by.maximum(self.problem, -of.x, -of.u)
        return Bounds(low - slack - 2 * EPS * low.abs(), high + slack + 2 * EPS * high.abs())

    def _tied(self, of: Functional) -> Functional:
        """With the coefficients of multiples moved to what they are multiples of."""
        ties = self.ties
        if ties is None:
            return of
        x = torch.zeros_like(of.x).index_add(1, ties.of, of.x * ties.factor)
        size = torch.zeros_like(of.x).index_add(1, ties.of, (of.x * ties.factor).abs())
        rounding = 4 * EPS * (len(ties.of) + 8)
        slack = of.slack + product(of.x.abs(), ties.error) + rounding * product(size, self.problem.x.size)
        return Functional(x, of.u, of.constant, slack)

    def _folded(self, of: Functional) -> Functional:
        """After multiples of 0 = s (A x + B u + b) − x were added for linear states x, whose coefficients vanish."""
        if not len(self.states):
            return of
        form, rows, slope = self.problem.form, rows_of(self.problem.form)[self.states], self.known.slope[self.states]
        own = slope[:, None] * form.A[rows]
        loop = torch.eye(len(rows)).to(own) - own[:, self.states]
        multiple: Tensor = torch.linalg.solve_ex(loop.T, of.x[:, self.states].T)[0].T
        multiple = torch.where(torch.isfinite(multiple), multiple, torch.zeros_like(multiple))  # any will do
        own[torch.arange(len(rows)), self.states] -= 1
        drive, shift = slope[:, None] * form.B[rows], slope * form.b[rows]
        size, rounding = multiple.abs(), 4 * EPS * (len(rows) + 8)
        slack = product(of.x.abs() + size @ own.abs(), self.problem.x.size)
        slack = slack + product(of.u.abs() + size @ drive.abs(), self.inputs) + of.constant.abs() + size @ shift.abs()
        return Functional(
            of.x + multiple @ own, of.u + multiple @ drive, of.constant + multiple @ shift, of.slack + rounding * slack
        )

    def _ties(self) -> Ties | None:
        """The states whose rows are multiples of those of others, also after these were put in."""
        form, same = self.problem.form, torch.arange(self.problem.form.states)
        ties = Ties(same, form.b.new_ones(form.states), torch.zeros_like(self.problem.x.high))
        while True:
            merged = torch.zeros_like(form.A).index_add(1, ties.of, form.A * ties.factor)
            found = duplicates(replace(form, A=merged), LOOSE)
            new = (ties.of[found.entry] == found.entry) & (ties.of[found.of] == found.of)
            if not bool(new.any()):
                return None if torch.equal(ties.of, same) else ties
            entry, of, factor = (part[new] for part in found)
            error = self._gap(ties, merged, entry, of, factor)
            step = Ties(
                same.index_copy(0, entry, of),
                torch.ones_like(ties.factor).index_copy(0, entry, factor),
                torch.zeros_like(ties.error).index_copy(1, entry, error),
            )
            ties = Ties(
                step.of[ties.of],
                ties.factor * step.factor[ties.of],
                ties.error + ties.factor.abs() * step.error[:, ties.of],
            )

    def _gap(self, ties: Ties, merged: Tensor, entry: Tensor, of: Tensor, factor: Tensor) -> Tensor:
        """γ|z_i − factor z_k| ≥ |x_i − factor x_k|, for a φ that keeps such multiples, (batch, entries)."""
        form, rows = self.problem.form, rows_of(self.problem.form)
        i, k, f = rows[entry], rows[of], factor[:, None]
        whole = torch.zeros_like(form.A).index_add(1, ties.of, (form.A * ties.factor).abs())
        rounding = 4 * EPS * (form.states + 8)
        b = form.b[:, None]
        x, u, e = ((w[i] - f * w[k]).abs() for w in (merged, form.B, b))
        x_size, u_size, e_size, weights = (w[i].abs() + (f * w[k]).abs() for w in (whole, form.B, b, form.A))
        gap = product(x + rounding * x_size, self.problem.x.size) + product(u + 4 * EPS * u_size, self.inputs)
        gap = gap + (e + 4 * EPS * e_size)[:, 0] + product(weights, ties.error)
        return constants(form, float("inf"))[i] * gap * (1 + 1e-9)
