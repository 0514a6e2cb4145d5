"""The criteria from the cheapest to the exact one, and the record of what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch
from torch import Tensor

from .criteria import EPS, Array, Criterion, infinity_norm, lyapunov, monotone, nemon, perron_frobenius, two_norm
from .pmatrix import EXHAUSTIVE, by_programs, by_recursion, negative_vertex

__all__ = ["CHEAP", "Invertibility", "Reduced", "SingularElement", "decide", "reduce", "singular_element", "undecided"]

CHEAP: tuple[tuple[str, Criterion], ...] = (
    ("infinity norm", infinity_norm),
    ("Perron-Frobenius", perron_frobenius),
    ("NEMON", nemon),
    ("2-norm", two_norm),
    ("monotone", monotone),
)

FEW = 12
"""Up to this size the exact test takes milliseconds, less than the search for a Lyapunov matrix."""


@dataclass(frozen=True, kw_only=True)
class SingularElement:
    """An I − DW that is singular up to rounding.

    Attributes:
        slopes: The diagonal of D, float64 of shape ``(n,)``.
        null_vector: The unit vector v with (I − DW) v ≈ 0.
        singular_value: ‖(I − DW) v‖₂, the smallest singular value.
    """

    slopes: Tensor
    null_vector: Tensor
    singular_value: float


@dataclass(frozen=True, kw_only=True)
class Invertibility:
    """Whether all I − DW are invertible, D diagonal with slopes within bounds.

    Attributes:
        verdict: "proved"; "refuted", with a witness; or "unknown".
        criterion: What decided, or what was tried last.
        margin: Of that criterion: positive where it holds, after rounding was taken off.
        tried: All criteria in the order in which they were tried, and their margins.
        free: How many slopes are not determined.
        witness: A singular element, if refuted.
    """

    verdict: Literal["proved", "refuted", "unknown"]
    criterion: str
    margin: float
    tried: dict[str, float]
    free: int
    witness: SingularElement | None = None


def undecided(criterion: str, tried: dict[str, float] | None = None, free: int = 0) -> Invertibility:
    """The record of an open question, ``criterion`` the last that was tried."""
    tried = tried or {criterion: float("nan")}
    return Invertibility(verdict="unknown", criterion=criterion, margin=tried[criterion], tried=tried, free=free)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reduced:
    """W̃ of the units whose slope is not determined, with slopes in [0, 1].

    Attributes:
        margin: The smallest singular value of I − diag(least) W, less the rounding.
        free: The units.
        matrix: W̃, (free, free).
        radius: A bound of the error of its entries, infinite where I − diag(least) W is too close to singular.
    """

    margin: float
    free: npt.NDArray[np.intp]
    matrix: Array
    radius: Array


def reduce(w: Array, least: Array, largest: Array) -> Reduced:
    """The matrix that has the place of W where slopes are in [0, 1] instead of between ``least`` and ``largest``.

    With G = I − diag(least) W and D = diag(least) + D′ diag(largest − least), I − DW = (I − D′W̃) G with
    W̃ = diag(largest − least) W G⁻¹. A row of W̃ that is zero leaves the determinant to the others: what counts is the
    block of the free units, the Schur complement of the rest.
    """
    n, width = len(w), largest - least
    free = np.flatnonzero(width > 0)
    base, margin = np.eye(n) - least[:, None] * w, 1.0
    quotient, error = w, np.zeros_like(w)
    if least.any():
        singular = np.linalg.svd(base, compute_uv=False)
        margin = float(singular[-1] - EPS * 10 * n * singular[0])
        quotient, error = quotient_and_error(w, base) if margin > 0 else (w, np.full_like(w, np.inf))
    block, scale = np.ix_(free, free), width[free, None]
    matrix, radius = scale * quotient[block], scale * (error + EPS * np.abs(quotient))[block]
    return Reduced(margin=margin, free=free, matrix=matrix, radius=radius)


def decide(w: Array, least: Array, largest: Array, time_limit: float) -> Invertibility:
    """Whether I − DW is invertible for all diagonal D from ``least`` to ``largest``."""
    reduced = reduce(w, least, largest)
    free, tried = reduced.free, {"least slopes": reduced.margin}
    if reduced.margin <= 0:
        return _refute(w, least, tried, len(free))
    if not len(free):
        return _proved(tried, 0)
    if not np.isfinite(reduced.radius).all():
        return undecided("least slopes", tried, len(free))
    corner = _climb(reduced.matrix, reduced.radius, tried, time_limit)
    if corner is None:
        return _proved(tried, len(free)) if tried[_last(tried)] > 0 else undecided(_last(tried), tried, len(free))
    step = np.zeros(len(w))
    step[free] = (largest - least)[free] * corner
    return _refute(w, _most_singular(w, least, step), tried, len(free))


def quotient_and_error(w: Array, base: Array) -> tuple[Array, Array]:
    """W G⁻¹ and a bound of the error of each entry, infinite where G is too close to singular.

    With the computed inverse H and the defect R = I − GH, G⁻¹ = H (I − R)⁻¹, so the error is WH (R + R² + …).
    """
    inverse = np.linalg.inv(base)
    quotient, rounding = w @ inverse, EPS * (len(w) + 2)
    defect = np.abs(np.eye(len(w)) - base @ inverse)
    defect += rounding * (np.eye(len(w)) + np.abs(base) @ np.abs(inverse))
    size = float(defect.sum(1).max())
    if not size < 0.1:
        return quotient, np.full_like(w, np.inf)
    defect += 1.2 * size * defect.sum(1, keepdims=True)
    return quotient, np.abs(quotient) @ defect * 1.01 + 2 * rounding * (np.abs(w) @ np.abs(inverse))


def _climb(w: Array, radius: Array, tried: dict[str, float], time_limit: float) -> Array | None:
    """Try the criteria in turn until one holds; a D in [0, 1]ⁿ with det(I − DW) ≤ 0, up to rounding, where none can."""
    n = len(w)
    for name, criterion in CHEAP:
        tried[name] = criterion(w, radius)
        if tried[name] > 0:
            return None
    matrix, rounding = np.eye(n) - w, radius + EPS * (np.eye(n) + np.abs(w))
    if n > FEW:
        for start in (np.zeros(n), np.ones(n)):
            if (corner := negative_vertex(w, start)) is not None:
                tried["P-matrix"] = min(0.0, float(np.linalg.det(matrix[np.ix_(corner > 0, corner > 0)])))
                return corner
        tried["Lyapunov"] = lyapunov(w, radius)
        if tried["Lyapunov"] > 0:
            return None
    if n <= EXHAUSTIVE:
        tried["P-matrix"], corner = by_recursion(matrix, rounding)
        return None if tried["P-matrix"] > 0 else corner
    tried["P-matrix"], slopes = by_programs(matrix, rounding, time_limit)
    return None if slopes is None else negative_vertex(w, slopes)


def _last(tried: dict[str, float]) -> str:
    return list(tried)[-1]


def _proved(tried: dict[str, float], free: int) -> Invertibility:
    name = _last(tried)
    return Invertibility(verdict="proved", criterion=name, margin=tried[name], tried=tried, free=free)


def _refute(w: Array, slopes: Array, tried: dict[str, float], free: int) -> Invertibility:
    """Refuted, if I − diag(slopes) W is singular up to rounding; else nothing is known."""
    name, witness = _last(tried), singular_element(w, slopes)
    if witness is None:
        return undecided(name, tried, free)
    return Invertibility(verdict="refuted", criterion=name, margin=tried[name], tried=tried, free=free, witness=witness)


def singular_element(w: Array, slopes: Array) -> SingularElement | None:
    """The record of I − diag(slopes) W, if it is singular up to rounding."""
    element = np.eye(len(w)) - slopes[:, None] * w
    _, singular, right = np.linalg.svd(element)
    if singular[-1] > EPS * 100 * len(w) * (1 + np.linalg.norm(w, 2)):
        return None
    return SingularElement(
        slopes=torch.from_numpy(slopes.copy()),
        null_vector=torch.from_numpy(right[-1].copy()),
        singular_value=float(singular[-1]),
    )


def _most_singular(w: Array, start: Array, step: Array) -> Array:
    """The D = start + t step, 0 < t ≤ 1, whose I − DW is closest to singular.

    Where the determinant has another sign at t = 1 than at 0 there is a root between, which is a real eigenvalue t of
    the pencil (I − diag(start) W) v = t diag(step) W v.
    """
    base, change = np.eye(len(w)) - start[:, None] * w, step[:, None] * w
    numerators, denominators = scipy.linalg.eigvals(base, change, homogeneous_eigvals=True)
    real = (numerators.imag == 0) & (denominators.real > 0)
    shares = numerators.real[real] / denominators.real[real]
    candidates = [1.0, *shares[(shares > 0) & (shares < 1)]]
    smallest = [np.linalg.svd(base - t * change, compute_uv=False)[-1] for t in candidates]
    best: Array = start + candidates[int(np.argmin(smallest))] * step
    return best
