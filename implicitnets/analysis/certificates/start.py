"""First bounds of all equilibria over a region, from what makes the model well-posed; and interval iterations."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gains import gains, spread, to_states
from .problem import Bounds, Problem
from .relaxation import steepest

__all__ = ["ball", "box", "interval", "local_box", "radius"]

EPS = torch.finfo(torch.float64).eps


def box(problem: Problem) -> Problem:
    """|x − x₀| ≤ (I − G)⁻¹ (s + r) where G = |A| has spectral radius below 1 (El Ghaoui et al. 2021, section 4).

    s bounds |B(u − u₀)| and r is the residual of x₀. Where φ maps groups of rows to groups of states, a row of G and s
    is the largest of its group. Where ``gains`` takes out the diagonal, row i of G and s is divided by 1 − γaᵢᵢ, and rᵢ
    by min(1, 1 − γaᵢᵢ), since x = φ(aᵢᵢx + s) + r. Nothing is learned where the spectral radius is not below 1.
    """
    form, x0, found = problem.form, problem.x0, gains(problem.form)
    if found is None:
        return problem
    moved = found.rows * torch.maximum(problem.region.support(form.B), problem.region.support(-form.B))
    right = to_states(form, moved) + _residual(problem) / found.own.clamp_max(1)
    reach = spread(found.states, right * (1 + 1e-12))
    return problem.tighten(x=Bounds(x0 - reach, x0 + reach), unique=bool(torch.isfinite(reach).any()))


def local_box(problem: Problem) -> Problem:
    """|x − x₀| ≤ (I − S|A|)⁻¹ (S s + r) with S the largest slopes between the bounds of z: inactive neurons have none.

    For a component-wise φ, and samples with bounds of all states.
    """
    form, region, x0 = problem.form, problem.region, problem.x0
    if not form.activation.componentwise:
        return problem
    known = problem.values(form.A, form.B, form.b).meet(problem.z)
    z0, slack = form.preactivation(x0, region.centre), _slack(problem)
    z = Bounds(torch.minimum(known.low, z0 - slack), torch.maximum(known.high, z0 + slack))
    slope = steepest(form.activation, z)
    moved = torch.maximum(region.support(form.B), region.support(-form.B))
    right = (slope * moved + _residual(problem)) * (1 + 1e-12)
    reach = torch.where(problem.known[:, None], spread(slope[:, :, None] * form.A.abs(), right), torch.inf)
    return problem.tighten(x=Bounds(x0 - reach, x0 + reach))


def ball(problem: Problem) -> Problem:
    """‖x − y‖ ≤ (max ‖B(u − u₀)‖ + ‖Ar‖) / m in the norm ‖v‖² = vᵀΛv in which I − A is strongly monotone.

    y = φ(Ax₀ + Bu₀ + b) = x₀ − r is the equilibrium of an injection that differs by Ar. For slopes in [0, 1],
    m ‖x − y‖² ≤ (x − y)ᵀΛ(I − A)(x − y) ≤ (x − y)ᵀΛ(B(u − u₀) − Ar) (Pabbaraju, Winston and Kolter 2021, theorem 1).
    Row i of z is then within ‖Aᵢ‖ of the dual norm times that of its value at y. Nothing is learned where I − A is not
    monotone in the norm of the form's weights.
    """
    form, region = problem.form, problem.region
    found = radius(problem)
    if found is None:
        return problem
    y, reach, root = found
    x = Bounds(y - reach[:, None] / root, y + reach[:, None] / root)
    centre, dual = form.preactivation(y, region.centre), torch.linalg.vector_norm(form.A / root, dim=1)
    slack = _slack(problem) + reach[:, None] * dual * (1 + 1e-12)
    low = centre - slack - region.support(-form.B) * (1 + 1e-12)
    z = Bounds(low, centre + slack + region.support(form.B) * (1 + 1e-12))
    return problem.tighten(z=z, x=x, unique=True)


def radius(problem: Problem) -> tuple[Tensor, Tensor, Tensor] | None:
    """The y, the bound of ‖x − y‖ and the square root of Λ of ``ball``: (batch, states), (batch,) and (states,)."""
    form, region = problem.form, problem.region
    slopes = form.activation.slopes()
    if not form.activation.componentwise or slopes is None or slopes[0] < 0 or slopes[1] > 1:
        return None
    root = form.A.new_ones(form.states) if form.weights is None else form.weights.sqrt()
    scaled = root[:, None] * form.A / root
    size = float(torch.linalg.matrix_norm(scaled))
    margin = 1 - float(torch.linalg.eigvalsh((scaled + scaled.T) / 2)[-1]) - 8 * form.states * EPS * (1 + size)
    if not margin > 0:
        return None
    r = _residual(problem)
    error = (root * r).norm(dim=1) + (root * (r @ form.A.abs().T)).norm(dim=1) / margin
    injected = root[:, None] * form.B
    moved = torch.maximum(region.support(injected), region.support(-injected)).norm(dim=1)
    widest = (torch.maximum(region.high - region.centre, region.centre - region.low)).norm(dim=1)
    reach = getattr(region, "radius", widest) if getattr(region, "p", 0) == 2 else widest
    moved = torch.minimum(moved, reach * torch.linalg.matrix_norm(injected, 2))
    return problem.x0, (moved / margin + error) * (1 + 1e-12 * form.states), root


def interval(problem: Problem, steps: int = 100, rtol: float = 1e-6) -> Problem:
    """Interval iterations z ← Ax + Bu + b, x ← φ(z), each met with what was known, until a step gains next to nothing.

    They keep every equilibrium inside. From a box that holds all they go to the embedded equilibrium of mixed monotone
    systems (Jafarpour et al. 2021, arXiv 2112.05310).
    """
    form = problem.form
    for _ in range(steps):
        before = problem.x.high - problem.x.low
        problem = problem.tighten(z=problem.values(form.A, form.B, form.b))
        if not bool((problem.x.high - problem.x.low < (1 - rtol) * before).any()):
            break
    return problem


def _slack(problem: Problem) -> Tensor:
    """More than the rounding error of Ax₀ + Bu₀ + b, (batch, rows)."""
    form = problem.form
    size = problem.x0.abs() @ form.A.abs().T + problem.region.centre.abs() @ form.B.abs().T + form.b.abs()
    return 4 * (form.states + form.inputs + 8) * EPS * size


def _residual(problem: Problem) -> Tensor:
    """A bound of |φ(Ax₀ + Bu₀ + b) − x₀|, (batch, states)."""
    form, x0 = problem.form, problem.x0
    value = form.activation(form.preactivation(x0, problem.region.centre))
    slack = form.activation.lipschitz(float("inf")) * to_states(form, _slack(problem))
    return (value - x0).abs() + slack + 8 * EPS * (value.abs() + x0.abs())
