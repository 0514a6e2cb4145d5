"""Convex problems that differ in their right side only, one for each row of a matrix, solved all at once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from .balls import project_l1_ball
from .prox import L1, L2, LInf, Prox, ReverseHuber
from .solution import ConvergenceWarning, Status

__all__ = ["RowFit", "match_rows"]

EVERY, BALANCE = 10, 3.0
"""Every so many steps ρ of a row is doubled or halved, where one of its residuals is so many times the other."""


@dataclass(frozen=True, kw_only=True)
class RowFit:
    """The weights of one block, and how each row was found.

    Attributes:
        weights: Of shape (rows, columns).
        misfit: Root mean square of Φw − z over the samples, for each row.
        residual: The larger of the primal and the dual residual, each in units of what it is a difference of.
        steps: Steps that each row took.
        status: A ``Status`` for each row, CONVERGED where the residual is at most ``rtol``.
    """

    weights: Tensor
    misfit: Tensor
    residual: Tensor
    steps: Tensor
    status: Tensor

    @property
    def converged(self) -> Tensor:
        """Which rows met the tolerance."""
        return self.status == Status.CONVERGED


def match_rows(
    columns: Tensor,
    targets: Tensor,
    *,
    penalty: Prox = L1(1e-3),
    ball: tuple[int, float] = (0, 1.0),
    unpenalized: int = 0,
    exact: bool = False,
    rtol: float = 1e-6,
    max_steps: int = 5000,
    name: str = "the weights",
    stacklevel: int = 2,
) -> RowFit:
    """For each column z of the targets, the w with the least R(w) + ‖Φw − z‖² / (2n), or the least R(w) with Φw = z.

    All rows at once by the alternating direction method of multipliers (Boyd et al. 2011, sections 3.3 and 3.4.1) on
    w = v, w₁ = c, with R of v and the ℓ1 ball of c. One eigendecomposition of ΦᵀΦ serves all rows, each with a ρ of
    its own, and rows that have converged are left alone.

    Args:
        columns: Φ, of shape (n, columns), preferably float64.
        targets: Of shape (n, rows).
        penalty: R.
        ball: So many of the first entries have absolute values that sum to at most the second number, if any.
        unpenalized: So many of the last entries are not in R.
        exact: Whether Φw = z has to hold, in the sense of least squares where it can't.
        rtol: Tolerance of the residuals.
        max_steps: Steps.
        name: What the rows are called in a warning.
        stacklevel: Whom the warning points to, as for ``warnings.warn``.

    Returns:
        The weights, which keep the bound, with the zeros of the proximal map; and the record.

    Raises:
        TypeError: If R is not ``L1``, ``L2``, ``LInf`` or ``ReverseHuber``.
        ValueError: If shapes do not fit each other, or there is nothing to fit.

    Warns:
        ConvergenceWarning: If a row did not converge.
    """
    if not isinstance(penalty, L1 | L2 | LInf | ReverseHuber):
        raise TypeError(
            f"penalty={penalty!r}: rows are fitted by a convex one, ReverseHuber(weight, level), L1(weight), "
            "L2(weight) or LInf(weight)"
        )
    if ball[0] and not ball[1] > 0:
        raise ValueError(f"ball={ball!r}: the second number is a bound of absolute values, and must be positive")
    if columns.dim() != 2 or targets.dim() != 2 or len(columns) != len(targets) or not len(columns):
        raise ValueError(
            f"columns {tuple(columns.shape)} and targets {tuple(targets.shape)} must be (n, columns) and (n, rows)"
        )
    with torch.no_grad():
        problem = _Rows(columns, targets, penalty, ball, columns.shape[1] - unpenalized, exact)
        weights, residual, steps = problem.solve(rtol, max_steps)
    misfit = (columns @ weights.T - targets).square().mean(0).sqrt()
    status = torch.where(residual <= rtol, Status.CONVERGED, Status.MAX_STEPS)
    status[~weights.isfinite().all(1)] = Status.NONFINITE
    failed = status != Status.CONVERGED
    if bool(failed.any()):
        warnings.warn(
            f"matching: {int(failed.sum())} of {len(failed)} rows of {name} did not converge in {max_steps} steps "
            f"(largest residual {float(residual.max()):.2e}, rtol={rtol:g}). Their weights are those of the last step. "
            "Try more max_steps, a larger kappa, or exact=False.",
            ConvergenceWarning,
            stacklevel=stacklevel,
        )
    return RowFit(weights=weights, misfit=misfit, residual=residual, steps=steps, status=status)


class _Rows:
    """The problems of all rows. Vectors hold v and, behind it, c."""

    def __init__(
        self, columns: Tensor, targets: Tensor, penalty: Prox, ball: tuple[int, float], penalized: int, exact: bool
    ) -> None:
        self.penalty, self.penalized, self.exact = penalty, penalized, exact
        self.bounded, self.kappa = ball
        n, size = columns.shape
        self.size = size
        copies = columns.new_ones(size)
        copies[: self.bounded] = 2  # v and c are both near to w₁
        self.units = copies.sqrt()
        scaled = columns / self.units
        self.values, self.vectors = torch.linalg.eigh(scaled.T @ scaled / n)
        self.values = self.values.clamp_min(0)
        self.right = targets.T @ scaled @ self.vectors / n
        self.size_z, self.size_phi = targets.square().mean(0).sqrt(), self.values.mean().sqrt()

    def solve(self, rtol: float, max_steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, residual and steps of each row."""
        rows, width = len(self.right), self.size + self.bounded
        copy, dual = (self.right.new_zeros(rows, width) for _ in range(2))
        rho = self.values.mean().clamp_min(torch.finfo(copy.dtype).tiny).expand(rows, 1).clone()
        residual, steps = copy.new_full((rows,), torch.inf), torch.zeros(rows, dtype=torch.int64, device=copy.device)
        left = torch.arange(rows, device=copy.device)
        for step in range(1, max_steps + 1):
            v, u, r = copy[left], dual[left], rho[left]
            w = self._nearest(v - u, r, left)
            new = self._proximal(w + u, r)
            u = u + w - new
            size = self.size_z[left]  # the weights may all be zero, which says nothing of their units
            primal = _ratio(w - new, torch.maximum(_norm(w), size / self.size_phi))
            back = _ratio(r * (new - v), torch.maximum(r[:, 0] * _norm(u), size * self.size_phi))
            if step % EVERY == 0 and step <= max_steps // 2:  # a fixed ρ at the end, with which it converges
                factor = torch.where(primal > BALANCE * back, 2.0, torch.where(back > BALANCE * primal, 0.5, 1.0))
                r, u = r * factor[:, None], u / factor[:, None]
            copy[left], dual[left], rho[left], steps[left] = new, u, r, step
            residual[left] = torch.maximum(primal, back)
            left = left[~(residual[left] <= rtol)]
            if not len(left):
                break
        return self._feasible(copy), residual, steps

    def _nearest(self, target: Tensor, rho: Tensor, left: Tensor) -> Tensor:
        """(w, w₁) with the least misfit + ρ/2 ‖(w, w₁) − target‖², or the nearest one of the least misfit."""
        mean = target[:, : self.size].clone()
        mean[:, : self.bounded] = (mean[:, : self.bounded] + target[:, self.size :]) / 2
        given, right = mean * self.units @ self.vectors, self.right[left]
        if self.exact:
            seen = self.values > self.values.max() * torch.finfo(mean.dtype).eps * self.size
            known = torch.where(seen, right / self.values.where(seen, torch.ones_like(self.values)), given)
        else:
            known = (right + rho * given) / (self.values + rho)
        w = known @ self.vectors.T / self.units
        return torch.cat((w, w[:, : self.bounded]), 1)

    def _proximal(self, target: Tensor, rho: Tensor) -> Tensor:
        """R's proximal map of v, and the projection of c."""
        v, rest, c = target.tensor_split([self.penalized, self.size], 1)
        ball = project_l1_ball(c, self.kappa) if self.bounded else c
        return torch.cat((self.penalty(v, 1 / rho), rest, ball), 1)

    def _feasible(self, copy: Tensor) -> Tensor:
        """V with its first entries in the ball, which leaves zeros where they are."""
        weights = copy[:, : self.size].clone()
        if self.bounded:
            weights[:, : self.bounded] = project_l1_ball(weights[:, : self.bounded], self.kappa)
        return weights


def _norm(v: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(v, dim=1)
    return norm


def _ratio(v: Tensor, size: Tensor) -> Tensor:
    """‖v‖ in units of a size; 0 where v is."""
    norm = _norm(v)
    return torch.where(norm == 0, norm, norm / size)
