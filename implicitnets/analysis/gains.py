"""How far changes spread in a model: bounds of absolute values that hold for every slope of φ."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..activations import Blocks
from ..linalg import solve_dense
from ..models import AffineForm

__all__ = ["Gains", "constants", "gains", "slopes", "spread", "to_states"]

EPS = torch.finfo(torch.float64).eps


class Gains(NamedTuple):
    """|Δx| ≤ G|Δx| + the largest of each group of κ|BΔu|, for any two inputs and their equilibria.

    Attributes:
        states: G, (states, states), nonnegative.
        rows: κ, (rows,), positive.
        own: 1 − γaᵢᵢ where the diagonal was taken out of G, else 1, (states,).
    """

    states: Tensor
    rows: Tensor
    own: Tensor


def constants(form: AffineForm, p: float) -> Tensor:
    """The Lipschitz constant in the p-norm of the block that a row belongs to, (rows,)."""
    parts = Blocks((form.activation, form.rows)).parts
    return torch.cat([form.A.new_full((rows,), phi.lipschitz(p)) for phi, rows in parts])


def slopes(form: AffineForm, rows: Any = slice(None)) -> tuple[Tensor, Tensor] | None:
    """The least and the largest slope of rows, or None if φ is not component-wise there or they are not bounded."""
    found = []
    for phi, count in Blocks((form.activation, form.rows)).parts:
        steepest = phi.lipschitz(float("inf"))
        known = phi.slopes() or (-steepest, steepest)
        low, high = known if phi.componentwise else (-float("inf"), float("inf"))
        found.append(torch.tensor([[low], [high]], dtype=form.A.dtype).expand(2, count))
    least, largest = torch.cat(found, 1)[:, rows]
    return (least, largest) if bool(torch.isfinite(largest - least).all()) else None


def gains(form: AffineForm, *, eliminate: bool = True) -> Gains | None:
    """G = γ|A| and κ = γ, the Lipschitz constants of the rows in the maximum norm (El Ghaoui et al. 2021, section 4).

    Where φ maps groups of rows to groups of states, a row of G is the largest of its group. Where φ is component-wise
    with slopes in [0, γ] and all γaᵢᵢ < 1, row i without its diagonal is divided by 1 − γaᵢᵢ instead, and so is κ,
    since d / (1 − daᵢᵢ) rises with the slope d (Jacobi's splitting). (I − G)⁻¹ is never larger for that, and smaller
    where an aᵢᵢ is negative; and its condition ρ(G) < 1 is that of Jafarpour et al. (2021).

    Args:
        form: The model, float64.
        eliminate: Whether to take out the diagonal, where it is allowed.

    Returns:
        The gains, a few roundings off, or None if φ has no such constants.
    """
    steepest, bounds = constants(form, float("inf")), slopes(form)
    if not bool(torch.isfinite(steepest).all()):
        return None
    gain = steepest[:, None] * form.A.abs()
    if eliminate and bounds is not None and bool((bounds[0] >= 0).all()):
        own = 1 - steepest * form.A.diagonal()
        own = own - 4 * EPS * (1 + (1 - own).abs())
        if bool((own > 0).all()):
            return Gains((gain - torch.diag(gain.diagonal())) / own[:, None], steepest / own, own)
    return Gains(to_states(form, gain.T).T, steepest, form.A.new_ones(form.states))


def to_states(form: AffineForm, v: Tensor) -> Tensor:
    """From nonnegative values of rows, (k, rows), the largest of each group for the states it makes, (k, states)."""
    parts, at = [], 0
    for count, before, after in form.activation.groups(form.rows):
        piece = v[:, at : at + count * before].unflatten(1, (count, before)).amax(-1)
        parts.append(piece.repeat_interleave(after, 1))
        at += count * before
    return torch.cat(parts, 1)


def spread(gain: Tensor, right: Tensor) -> Tensor:
    """A v ≥ (I − G)⁻¹ q for nonnegative G, one or one for each row q, infinite where there is none.

    Both may be a few roundings off.

    The solution is not trusted: a v > 0 with v > Gv + q is at least the right side, and proves that the spectral radius
    of G is below 1.
    """
    inner, rounding = torch.eye(gain.shape[-1]).to(gain) - gain, 4 * (gain.shape[-1] + 8) * EPS

    def solved(q: Tensor) -> Tensor:
        return solve_dense(inner, q) if gain.dim() == 3 else torch.linalg.solve_ex(inner, q.T)[0].T

    def grown(v: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", gain, v) if gain.dim() == 3 else v @ gain.T

    nothing = right.amax(1, keepdim=True) == 0
    right = torch.where(nothing, 1.0, right)
    right = right + EPS * right.amax(1, keepdim=True)
    v = solved(right)
    size = (v.abs() + grown(v.abs())).amax(1, keepdim=True)
    v = v + solved(1e-9 * right + 4 * rounding * size)  # room for the rounding of the solution and of the test below
    proved = (v > 0) & (v * (1 - rounding) >= grown(v) * (1 + rounding) + right)
    return torch.where(proved.all(1, keepdim=True), torch.where(nothing, 0.0, v), torch.inf)
