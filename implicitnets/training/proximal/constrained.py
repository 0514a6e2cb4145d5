"""The proximal step of a layer one of whose weights has a bounded ∞-norm."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ...constraints import InfNorm
from ...solution import ConvergenceWarning
from .metric import Metric

__all__ = ["Projection", "project"]


RELAXATION = 1.6
"""Over-relaxation (Boyd et al. 2011, section 3.4.3)."""
PERIOD, ADAPTED = 10, 400
"""Every so many of the first so many steps, the penalty of a row is balanced to its residuals (section 3.4.1)."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """The nearest matrix whose rows are feasible, found for each row.

    Attributes:
        value: The matrix, of shape (m, q), feasible whether it converged or not.
        converged: Per row, whether the tolerance was met, (m,).
        steps: Per row, (m,); 0 for a row that was feasible.
        residual: Per row, relative, (m,).
        dual: The multipliers, from which the next projection can start, (m, a).
    """

    value: Tensor
    converged: Tensor
    steps: Tensor
    residual: Tensor
    dual: Tensor


def project(
    theta: Tensor,
    metric: Metric | None,
    columns: slice,
    kappa: float,
    *,
    start: Tensor | None = None,
    rtol: float = 1e-6,
    max_steps: int = 1000,
) -> Projection:
    """argmin ½ ‖Θ⁺ − Θ‖²_M over the Θ⁺ whose ``columns`` have rows in the ℓ1 ball of radius kappa.

    The other columns F are free, so they are eliminated: with A the columns in question and M in blocks, A⁺ is the
    projection in the metric M_AA − M_AF M_FF⁻¹ M_FA, and F⁺ = F − (A⁺ − A) M_AF M_FF⁻¹. The projection is found by the
    alternating direction method of multipliers (Boyd et al. 2011, "Distributed optimization and statistical learning",
    section 5), with a penalty for each row. One eigendecomposition serves all rows, steps and penalties.

    Args:
        theta: Θ, of shape (m, q).
        metric: M; None for the identity.
        columns: Where A is.
        kappa: The radius.
        start: ``dual`` of a projection before.
        rtol: Tolerance of primal and dual residual, relative.
        max_steps: How many steps at most.

    Raises:
        ValueError: If kappa, rtol or max_steps is out of range.

    Warns:
        ConvergenceWarning: If a row did not converge.
    """
    if not rtol > 0 or max_steps < 1:
        raise ValueError(f"project(rtol={rtol!r}, max_steps={max_steps!r}): both must be positive")
    ball = InfNorm(kappa=kappa)
    value, here = theta.clone(), theta[:, columns].double()
    dual = torch.zeros_like(here)
    steps, residual = theta.new_zeros(len(theta), dtype=torch.int64), theta.new_zeros(len(theta))
    outside = (theta[:, columns].abs().sum(1) > kappa).nonzero()[:, 0]
    if metric is None or len(outside) == 0:
        value[:, columns] = ball(theta[:, columns])
    else:
        reduced, coupling = _eliminate(metric, columns, theta.shape[1])
        before = None if start is None else start[outside].to(here)
        a, u, taken, left = _alternate(here[outside], reduced, ball, before, rtol, max_steps)
        dual[outside], steps[outside], residual[outside] = u, taken, left.to(residual)
        free = torch.ones(theta.shape[1], dtype=torch.bool, device=theta.device)
        free[columns] = False
        moved = torch.zeros_like(here)
        moved[outside] = a - here[outside]
        value[outside, columns] = ball(a.to(theta.dtype))
        value[:, free] = (theta[:, free].double() - moved @ coupling).to(theta.dtype)
    converged = residual <= rtol
    if not bool(converged.all()):
        warnings.warn(
            f"the projection of {int((~converged).sum())} of {len(converged)} rows did not converge in {max_steps} "
            f"steps (residual {float(residual.max()):.1e}): it is feasible, but not the nearest point. Allow more "
            "max_steps=, or a larger rtol=",
            ConvergenceWarning,
            stacklevel=3,
        )
    return Projection(value=value, converged=converged, steps=steps, residual=residual, dual=dual)


def _eliminate(metric: Metric, columns: slice, width: int) -> tuple[Tensor, Tensor]:
    """M_AA − M_AF M_FF⁻¹ M_FA of shape (a, a), and M_AF M_FF⁻¹ of shape (a, f), in float64."""
    free = torch.ones(width, dtype=torch.bool)
    free[columns] = False
    a = width - int(free.sum())
    if metric.rows is not None and len(metric.rows) < width - a:  # by Woodbury's identity, with a factor of size n
        rows = metric.rows.double() * math.sqrt(metric.tau / len(metric.rows))
        s, t = rows[:, columns], rows[:, free]
        factor = torch.linalg.cholesky(torch.eye(len(rows), dtype=rows.dtype, device=rows.device) + t @ t.T)
        white = torch.linalg.solve_triangular(factor, s, upper=False)
        coupling = white.T @ torch.linalg.solve_triangular(factor, t, upper=False)
        return torch.eye(a, dtype=rows.dtype, device=rows.device) + white.T @ white, coupling
    full = metric.tau * metric.sigma.double()
    full.diagonal().add_(1)
    joint = full[columns][:, free]
    if joint.shape[1] == 0:
        return full, joint
    coupling = torch.cholesky_solve(joint.T, torch.linalg.cholesky(full[free][:, free])).T
    return full[columns, columns] - coupling @ joint.T, coupling


def _alternate(
    v: Tensor, m: Tensor, ball: InfNorm, start: Tensor | None, rtol: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The projection of each row of v in the metric m: its value, multipliers, steps and residual."""
    eigenvalues, basis = torch.linalg.eigh(m)
    eigenvalues = eigenvalues.clamp_min(1)  # which they are, up to rounding
    pull = (v @ basis) * eigenvalues
    r = torch.full_like(v[:, :1], float(eigenvalues.log().mean().exp()))
    y = torch.zeros_like(v) if start is None else start / r
    z = ball(v - r * (((y @ basis) / eigenvalues) @ basis.T))  # a = v − u m⁻¹ at the solution, u = r y
    steps, residual = torch.zeros(len(v), dtype=torch.int64, device=v.device), torch.full_like(v[:, 0], math.inf)
    for step in range(1, max_steps + 1):
        rows = (residual > rtol).nonzero()[:, 0]
        if len(rows) == 0:
            break
        old, weight = z[rows], r[rows]
        t = ((pull[rows] + weight * ((old - y[rows]) @ basis)) / (eigenvalues + weight)) @ basis.T
        ahead = y[rows] + RELAXATION * t + (1 - RELAXATION) * old
        new = ball(ahead)
        z[rows], y[rows], steps[rows] = new, ahead - new, step
        primal = _norm(t - new) / torch.maximum(_norm(t), _norm(new))
        dual = _norm(new - old) / _norm(y[rows])
        residual[rows] = torch.maximum(primal, dual)
        if step % PERIOD == 0 and step <= ADAPTED:
            factor = (primal / dual.clamp_min(torch.finfo(v.dtype).tiny)).sqrt().clamp(0.2, 5)[:, None]
            r[rows], y[rows] = weight * factor, y[rows] / factor
    return z, r * y, steps, residual


def _norm(rows: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return size.clamp_min(torch.finfo(rows.dtype).tiny)
