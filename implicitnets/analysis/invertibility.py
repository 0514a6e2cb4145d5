"""Is I − J invertible for every element J of the Clarke Jacobian?"""

from __future__ import annotations

from typing import overload

import numpy as np
import torch
from torch import Tensor

from ..activations import as_activation
from ..models import ImplicitModel
from .criteria import Array
from .ladder import Invertibility, decide, undecided
from .slopes import activation_slopes, preactivation_bounds

__all__ = ["invertibility"]

Slopes = tuple["float | Tensor", "float | Tensor"]


@overload
def invertibility(
    model: ImplicitModel | Tensor,
    x: None = None,
    *,
    radius: float = 0.0,
    slopes: Slopes | None = None,
    tol: float = 1e-6,
    time_limit: float = 60.0,
) -> Invertibility: ...


@overload
def invertibility(
    model: ImplicitModel,
    x: Tensor,
    *,
    radius: float = 0.0,
    slopes: None = None,
    tol: float = 1e-6,
    time_limit: float = 60.0,
) -> list[Invertibility]: ...


def invertibility(
    model: ImplicitModel | Tensor,
    x: Tensor | None = None,
    *,
    radius: float = 0.0,
    slopes: Slopes | None = None,
    tol: float = 1e-6,
    time_limit: float = 60.0,
) -> Invertibility | list[Invertibility]:
    """Is I − DW invertible for every diagonal D of slopes of the activation: of z = φ(Wz + v), every Clarke element?

    Then the equilibrium may be differentiated by the implicit function theorem, kinks included (Bolte, Le, Pauwels and
    Silveti-Falls 2021). Without ``x`` the question is about all right-hand sides v; the answer is yes exactly when
    I − W̃ is a P-matrix with W̃ = (b − a) W (I − aW)⁻¹ for slopes in [a, b], which is W itself for [0, 1]. For relu that
    is also the condition for exactly one equilibrium for every v. With ``x`` the question is about the equilibria of
    these inputs, or all those within ``radius``; only slopes that are not determined there are free.

    Criteria are tried from the cheapest on, all applied to W̃: the infinity norm, Perron-Frobenius, NEMON, the 2-norm,
    monotonicity, Lyapunov diagonal stability, and the P-property, which is exact: by recursion up to 20 free slopes, by
    mixed-integer programs above that.

    Examples:
        >>> answer = invertibility(torch.diag(torch.tensor([2.0, 0.5])))
        >>> answer.verdict, answer.witness.slopes.tolist()
        ('refuted', [0.5, 0.0])

    Args:
        model: The model, or the square matrix W.
        x: Inputs of a model, ``(batch, inputs)``.
        radius: Size of the box around each input, in the maximum norm. Bounds of the pre-activations on it are those of
            interval arithmetic, which contain more than the box does: a failure there is "unknown".
        slopes: The least and the largest slope: numbers, or one for each unit. By default those of the model's
            activation, and [0, 1] for a matrix.
        tol: How far from a kink a pre-activation counts as at it.
        time_limit: Seconds for a search, after which the answer may be "unknown".

    Returns:
        One record, or with ``x`` one for each sample.

    Raises:
        TypeError: If model is neither a model nor a square matrix.
        ValueError: If an argument does not fit the others.

    Warns:
        ConvergenceWarning: If an equilibrium was not found; the answer is "unknown" there.
    """
    w = _weights(model)
    if not (radius >= 0 and tol >= 0):
        raise ValueError(f"radius={radius}, tol={tol}: both must be at least 0")
    if x is None:
        if radius > 0:
            raise ValueError(f"radius={radius} is the size of a box around x: pass x=..., of shape (batch, inputs)")
        return decide(w, *_bounds(_global_slopes(model) if slopes is None else slopes, len(w)), time_limit)
    if not isinstance(model, ImplicitModel) or slopes is not None:
        raise ValueError("x=... needs an ImplicitModel, whose activation gives the slopes: leave out x, or slopes")
    if x.dim() != 2 or x.shape[1] != model.inputs:
        raise ValueError(f"x has shape {tuple(x.shape)}, not (batch, {model.inputs}): flatten it with x.flatten(1)")
    return _at_inputs(model, w, x, radius, tol, time_limit)


def _at_inputs(
    model: ImplicitModel, w: Array, x: Tensor, radius: float, tol: float, time_limit: float
) -> list[Invertibility]:
    """One record for each input."""
    low, high, found = preactivation_bounds(model, x, radius)
    least, largest = (s.cpu().numpy() for s in activation_slopes(_name(model), low - tol, high + tol))
    answers = []
    for a, b, known in zip(least, largest, found.tolist(), strict=True):
        answer = decide(w, a, b, time_limit) if known else undecided("no equilibrium was found")
        if radius > 0 and answer.verdict == "refuted":  # by slopes that may not occur together
            answer = undecided(answer.criterion, answer.tried, answer.free)
        answers.append(answer)
    return answers


def _weights(model: ImplicitModel | Tensor) -> Array:
    weights = model.A if isinstance(model, ImplicitModel) else model
    if not isinstance(weights, Tensor) or weights.dim() != 2 or weights.shape[0] != weights.shape[1]:
        kind = f"one of shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(model).__name__
        raise TypeError(f"model must be an ImplicitModel with a square matrix A, or a square matrix, not {kind}")
    array: Array = weights.detach().to_dense().double().cpu().numpy()
    if not np.isfinite(array).all():
        raise ValueError("the weights are not finite")
    return array


def _name(model: ImplicitModel) -> str:
    if not isinstance(model.activation, str):
        raise ValueError(f"the slopes of activation={model.activation!r} are not known: pass slopes=(least, largest)")
    return model.activation


def _global_slopes(model: ImplicitModel | Tensor) -> Slopes:
    if not isinstance(model, ImplicitModel):
        return 0.0, 1.0
    if not isinstance(model.activation, str) and (slopes := as_activation(model.activation).slopes()) is not None:
        return slopes
    everywhere = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)
    return activation_slopes(_name(model), everywhere[0], everywhere[1])


def _bounds(slopes: Slopes, n: int) -> tuple[Array, Array]:
    """The least and the largest slope of each unit.

    Raises:
        ValueError: If they are not two numbers or two vectors, finite and in order.
    """
    try:
        least, largest = (torch.as_tensor(s, dtype=torch.float64).detach().cpu().expand(n).numpy() for s in slopes)
    except RuntimeError as error:
        raise ValueError(f"slopes must be two numbers or two tensors of shape ({n},)") from error
    if not (np.isfinite(least) & np.isfinite(largest) & (least <= largest)).all():
        raise ValueError("slopes must be finite, the least no larger than the largest")
    return least, largest
