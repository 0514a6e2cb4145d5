"""By how much can the outputs of two models differ, over a region of inputs?"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...activations import Blocks, plain
from ...models import AffineForm
from ..certificates.problem import Bounds, Problem, product
from ..gains import gains, spread, to_states
from ..regions import Region
from ..slopes import EVEN, RISING, activation_slopes
from .editing import bounds
from .extent import Extent, bounder

__all__ = ["output_change"]

EPS = torch.finfo(torch.float64).eps
STEPS = 50
"""Of interval iterations, at most."""


def output_change(before: AffineForm, after: AffineForm, states: Tensor, rows: Tensor, region: Region) -> Bounds:
    """Bounds of y − y′ over all inputs u of a region: outputs of a model and of one with some of its states.

    Both at the same u, Δ = x_K − x′ with K the states that the second one kept satisfies Δ = s (A′Δ + r), where s are
    mean slopes of φ and the residual r = (A_K − A′) x + (B_K − B′) u + b_K − b′ is linear in (x, u) of the first model
    alone, columns of A′ standing at K. So r is bounded over all its equilibria; |Δ| ≤ (I − |A′|)⁻¹ |r| if φ is
    component-wise with slopes in [0, 1], or ‖Δ‖₂ ≤ ‖r‖₂ / m where the symmetric part of I − A′ is at least m; interval
    iterations with the slopes that can occur follow, and y − y′ = (C − C′) x + (D − D′) u + c − c′ + C′Δ. States that
    are multiples of others, or linear all over the region, are replaced by these or by their equations first. The other
    bound is that of y − y′ as an output of both models side by side; the result is the better one for each output.
    Rounding is accounted for.

    Args:
        before: The first form, float64.
        after: The second one.
        states: The states of the first that those of the second stand for.
        rows: Likewise the rows.
        region: The inputs.

    Returns:
        Both (batch, outputs), infinite where nothing is known.
    """
    old, new = bounds(before, region), bounds(after, region)
    unknown = before.C.new_full((len(region.centre), before.outputs), torch.inf)
    if old is None or new is None:
        return Bounds(-unknown, unknown)
    extent = Extent(old)
    A, C = before.A[rows], before.C.clone()
    A[:, states] -= after.A
    C[:, states] -= after.C
    residual = extent(A, before.B[rows] - after.B, before.b[rows] - after.b)
    moved = _moved(old, new, states, rows, residual)
    rest = extent(C, before.D - after.D, before.c - after.c)
    through = _image(after.C, moved)
    change = Bounds(rest.low + through.low, rest.high + through.high)
    slack = 4 * EPS * (rest.size + through.size)
    return _together(old, new).meet(Bounds(change.low - slack, change.high + slack))


def _together(old: Problem, new: Problem) -> Bounds:
    """Bounds of y − y′ as an output of both models side by side."""
    first, second = old.form, new.form
    form = replace(
        first,
        A=torch.block_diag(first.A, second.A),
        B=torch.cat([first.B, second.B]),
        C=torch.cat([first.C, -second.C], 1),
        D=first.D - second.D,
        b=torch.cat([first.b, second.b]),
        c=first.c - second.c,
        activation=Blocks((plain(first.activation), first.rows), (plain(second.activation), second.rows)),
        weights=None,
    )
    z, x = (
        Bounds(*(torch.cat(pair, 1) for pair in zip(a, b, strict=True))) for a, b in ((old.z, new.z), (old.x, new.x))
    )
    both = Problem(form=form, region=old.region, x0=torch.cat([old.x0, new.x0], 1), z=z, x=x)
    slack = 4 * EPS * form.c.abs()
    high, low = (bounder(form).maximum(both, sign * form.C, sign * form.D) for sign in (1, -1))
    return Bounds(form.c - low - slack - 2 * EPS * low.abs(), form.c + high + slack + 2 * EPS * high.abs())


def _image(weight: Tensor, of: Bounds) -> Bounds:
    """Bounds of weight · Δ, rounded outwards."""
    up, down = weight.clamp_min(0), weight.clamp_max(0)
    slack = 4 * EPS * (weight.shape[1] + 4) * product(weight.abs(), of.size)
    return Bounds(
        product(up, of.low) + product(down, of.high) - slack, product(up, of.high) + product(down, of.low) + slack
    )


def _moved(old: Problem, new: Problem, states: Tensor, rows: Tensor, residual: Bounds) -> Bounds:
    """Bounds of x_K − x′."""
    apart = Bounds(old.x.low[:, states] - new.x.high, old.x.high[:, states] - new.x.low)
    widened = 4 * EPS * (old.x.size[:, states] + new.x.size)
    moved = Bounds(apart.low - widened, apart.high + widened)
    reach = torch.minimum(_by_sums(new, residual.size), _by_monotony(new, residual.size))
    moved = moved.meet(Bounds(-reach, reach))
    if not new.form.activation.componentwise:
        return moved
    least, largest = _mean_slopes(new.form, old, new, rows)
    for _ in range(STEPS):
        image = _image(new.form.A, moved)
        low, high = image.low + residual.low, image.high + residual.high
        corners = torch.stack([_times(slope, z) for slope in (least, largest) for z in (low, high)])
        slack = 8 * EPS * (image.size + residual.size) * torch.maximum(least.abs(), largest.abs())
        slack = torch.where(torch.isnan(slack), torch.zeros_like(slack), slack)  # 0 · ∞
        nearer = moved.meet(Bounds(corners.amin(0) - slack, corners.amax(0) + slack))
        gained = bool((moved.high - moved.low > 1.001 * (nearer.high - nearer.low)).any())
        moved = nearer
        if not gained:
            break
    return moved


def _times(slope: Tensor, z: Tensor) -> Tensor:
    """The product, where 0 · ∞ is 0."""
    return torch.where(slope == 0, torch.zeros_like(z), slope * z)


def _by_sums(new: Problem, size: Tensor) -> Tensor:
    """|Δ| from |Δ| ≤ G|Δ| + κ|r|."""
    found = gains(new.form)
    if found is None:
        return torch.full_like(new.x.high, torch.inf)
    return spread(found.states, to_states(new.form, found.rows * size) * (1 + 1e-12))


def _by_monotony(new: Problem, size: Tensor) -> Tensor:
    """‖Δ‖₂ ≤ ‖r‖₂ / m for slopes in [0, 1], where I − A′ − m I has a positive semidefinite symmetric part."""
    form, unknown = new.form, torch.full_like(new.x.high, torch.inf)
    slopes = form.activation.slopes()
    if not form.activation.componentwise or slopes is None or slopes[0] < 0 or slopes[1] > 1:
        return unknown
    norm = float(torch.linalg.matrix_norm(form.A))
    margin = 1 - float(torch.linalg.eigvalsh((form.A + form.A.T) / 2)[-1]) - 8 * form.states * EPS * (1 + norm)
    if not margin > 0:
        return unknown
    reach: Tensor = size.norm(dim=1, keepdim=True) / margin * (1 + 1e-12 * form.states)
    return reach.expand_as(unknown)


def _mean_slopes(form: AffineForm, old: Problem, new: Problem, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest (φ(z) − φ(z′)) / (z − z′) for z and z′ within their bounds, (batch, states)."""
    low = torch.minimum(old.z.low[:, rows], new.z.low)
    high = torch.maximum(old.z.high[:, rows], new.z.high)
    least, largest = [], []
    at = 0
    for part, count in Blocks((form.activation, form.rows)).parts:
        mine = slice(at, at + count)
        name = getattr(part, "name", "")
        if name in RISING or name in EVEN:
            a, b = activation_slopes(name, low[:, mine], high[:, mine])
        else:
            steepest = part.lipschitz(float("inf"))
            bounds_of_all = part.slopes() or (-steepest, steepest)
            a, b = (torch.full_like(low[:, mine], slope) for slope in bounds_of_all)
        least.append(a - 1e-12 * a.abs())
        largest.append(b + 1e-12 * b.abs())
        at += count
    return torch.cat(least, 1), torch.cat(largest, 1)
