"""What proves that a form is well-posed, and how one is made so."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...models import AffineForm
from ..gains import constants, gains, slopes, spread
from ..ladder import decide
from .order import order
from .reduction import Reduced

__all__ = ["Proof", "prove", "settle"]

EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, kw_only=True)
class Proof:
    """That x = φ(Ax + v) has exactly one solution for every v.

    Attributes:
        criterion: Which condition holds.
        margin: By how much, rounding taken off.
    """

    criterion: str
    margin: float


def prove(form: AffineForm, time_limit: float = 10.0) -> Proof | None:
    """The first of these that holds: no feedback; γ‖A‖∞ < 1; λ(G) < 1 (``gains``); the criteria of ``invertibility``.

    The last ones are for component-wise φ.

    Args:
        form: The form, float64, detached.
        time_limit: Seconds for a search.
    """
    if order(form).feed_forward:
        return Proof(criterion="feed-forward", margin=math.inf)
    found, bounds = gains(form), slopes(form)
    if found is None:
        return None
    sums = (constants(form, math.inf)[:, None] * form.A.abs()).sum(1)
    margin = 1 - float(sums.max()) * (1 + (form.states + 4) * EPS)
    if margin > 0:
        return Proof(criterion="infinity norm", margin=margin)
    growth = float(spread(found.states, torch.ones_like(form.C[:1])).max())  # v with Gv ≤ v − 1
    if growth < math.inf:
        return Proof(criterion="Perron-Frobenius", margin=1 / growth)
    if bounds is None:
        return None
    A, least, largest = (part.cpu().numpy() for part in (form.A, *bounds))
    answer = decide(A, least, largest, time_limit)
    return Proof(criterion=answer.criterion, margin=answer.margin) if answer.verdict == "proved" else None


def settle(model: Reduced, dtype: torch.dtype, kappa: float | None) -> tuple[Reduced, Proof, float]:
    """The model with weights that are numbers of a dtype, A multiplied by a factor if that makes it well-posed.

    Args:
        model: The model.
        dtype: Of the weights.
        kappa: What ‖A‖∞ is brought down to where nothing is proved; None is 0.95 / γ.

    Raises:
        ValueError: If nothing is proved then either.
    """
    model = _rounded(model, dtype)
    found = prove(model.form)
    if found is not None:
        return model, found, 1.0
    gamma = model.form.activation.lipschitz(math.inf)
    target = 0.95 / gamma if kappa is None else kappa
    factor = target / float(model.form.A.abs().sum(1).max())
    if 0 < factor < 1:
        model = _rounded(_times(model, factor), dtype)
        found = prove(model.form)
        if found is not None:
            return model, found, factor
    raise ValueError(
        f"the smaller model is not proved to be well-posed, and would not be with a smaller A, since nothing is known "
        f"of activation={model.form.activation!r}: use one with a Lipschitz constant, such as relu"
    )


def _times(model: Reduced, factor: float) -> Reduced:
    factors = model.factors and (model.factors[0] * factor, model.factors[1] * factor, model.factors[2])
    return replace(model, form=replace(model.form, A=model.form.A * factor), factors=factors)


def _rounded(model: Reduced, dtype: torch.dtype) -> Reduced:
    def nearest(weight: Tensor) -> Tensor:
        return weight.to(dtype).double()

    form = model.form.map(nearest)
    if model.factors is None:
        return replace(model, form=form)
    diagonal, left, right = (nearest(part) for part in model.factors)
    A = torch.diag(diagonal) + left @ right.T
    return replace(model, form=replace(form, A=A), factors=(diagonal, left, right))
