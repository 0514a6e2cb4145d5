"""What proves that a form is well-posed, and how one is made so."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...models import AffineForm
from ..criteria import Array, infinity_norm
from ..ladder import decide
from .order import order
from .reduction import Reduced

__all__ = ["Proof", "prove", "settle"]


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
    """The first of these that holds: no feedback; γ‖A‖∞ < 1; for component-wise φ the criteria of ``invertibility``.

    Args:
        form: The form, float64, detached.
        time_limit: Seconds for a search.
    """
    if order(form).feed_forward:
        return Proof(criterion="feed-forward", margin=math.inf)
    gamma, slopes = form.activation.lipschitz(math.inf), form.activation.slopes()
    if not gamma < math.inf:
        return None
    A: Array = form.A.cpu().numpy()
    margin = float(1 - gamma * (1 - infinity_norm(A, 0 * A)) * (1 + 1e-15)) if len(A) == len(A.T) else -1.0
    if margin > 0:
        return Proof(criterion="infinity norm", margin=margin)
    if slopes is None or not form.activation.componentwise:
        return None
    least, largest = (torch.full((form.states,), slope, dtype=torch.float64).numpy() for slope in slopes)
    found = decide(A, least, largest, time_limit)
    return Proof(criterion=found.criterion, margin=found.margin) if found.verdict == "proved" else None


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
