"""Conditions under which I − DW is invertible for all diagonal D with entries in [0, 1], each with its margin.

A criterion takes W and the radius of each entry (the true matrix is within it), and returns a lower bound of its
margin in which rounding is accounted for: what is positive is proved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from .multipliers import stabilizer

__all__ = [
    "Array",
    "Criterion",
    "best_choice",
    "infinity_norm",
    "lyapunov",
    "lyapunov_scaling",
    "monotone",
    "nemon",
    "perron_frobenius",
    "perron_scaling",
    "scaled_rows",
    "two_norm",
    "weighted",
]

Array = npt.NDArray[np.float64]
Criterion = Callable[[Array, Array], float]

EPS = float(np.finfo(np.float64).eps)


def infinity_norm(w: Array, radius: Array) -> float:
    """1 − ‖W‖∞ > 0: the Picard iteration contracts in the maximum norm (El Ghaoui et al. 2021)."""
    return scaled_rows(np.abs(w) + radius, np.ones(len(w)))


def perron_frobenius(w: Array, radius: Array) -> float:
    """1 − ρ(|W|) > 0: W has ‖E⁻¹WE‖∞ < 1 for some positive diagonal E (El Ghaoui et al. 2021)."""
    return perron_scaling(np.abs(w) + radius)[0]


def nemon(w: Array, radius: Array) -> float:
    """1 − μ∞(E⁻¹WE) > 0 for the best positive diagonal E: I − W is an H-matrix of positive diagonal.

    The matrix measure is max over i of wᵢᵢ + Σⱼ |wᵢⱼ| eⱼ/eᵢ (Jafarpour, Davydov, Proskurnikov and Bullo 2021).
    """
    metzler = np.abs(w)
    np.fill_diagonal(metzler, w.diagonal())
    return perron_scaling(metzler + radius)[0]


def two_norm(w: Array, radius: Array) -> float:
    """1 − ‖W‖₂ > 0."""
    return 1 - float(np.linalg.norm(w, 2)) - _spectral_error(w, radius)


def monotone(w: Array, radius: Array) -> float:
    """1 − λmax((W + Wᵀ)/2) > 0: the equation is strongly monotone (Winston and Kolter 2020)."""
    return 1 - float(np.linalg.eigvalsh((w + w.T) / 2)[-1]) - _spectral_error(w, radius)


def lyapunov(w: Array, radius: Array) -> float:
    """Lyapunov diagonal stability of W − I: Q(I − W) + (I − W)ᵀQ is positive definite for some positive diagonal Q.

    That is monotonicity of EWE⁻¹ with E = Q^(1/2) (Revay, Wang and Manchester 2020), and its margin is the result, for
    the best Q that was found. A search that fails proves nothing, one that succeeds is checked by ``monotone``.
    """
    return lyapunov_scaling(w, radius)[0]


def lyapunov_scaling(w: Array, radius: Array) -> tuple[float, Array]:
    """The margin of ``lyapunov``, and the diagonal of Q."""
    ones = np.ones(len(w))
    plain = weighted(w, radius, ones)
    if plain > 0:
        return plain, ones
    found = stabilizer(w, np.zeros(len(w)), ones)
    margin = weighted(w, radius, found)
    return (margin, found) if margin > plain else (plain, ones)


def weighted(w: Array, radius: Array, q: Array) -> float:
    """The margin of ``monotone`` of EWE⁻¹, E = diag(q)^(1/2)."""
    ratio = np.sqrt(q)[:, None] / np.sqrt(q)
    return monotone(w * ratio, (radius + 2 * EPS * np.abs(w)) * ratio)


def perron_scaling(metzler: Array) -> tuple[float, Array]:
    """1 − s with s a little above the spectral abscissa of a matrix that is nonnegative off its diagonal; and a vector.

    For any η > 0, s = max (Mη)ᵢ/ηᵢ is an upper bound (Collatz and Wielandt), and (cI − M)⁻¹1 with c just above the
    abscissa is such an η; the bound is then below c. The η of the smallest bound is returned.
    """
    eye, ones = np.eye(len(metzler)), np.ones(len(metzler))
    abscissa = _abscissa(metzler)
    best: tuple[float, Array] = scaled_rows(metzler, ones), ones
    for gap in (1e-6, 1e-3, 1e-1):
        try:
            eta = np.linalg.solve((abscissa + gap * abs(1 - abscissa)) * eye - metzler, ones).astype(np.float64)
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(eta).all() and eta.min() > 0:
            best = max(best, (scaled_rows(metzler, eta), eta), key=lambda pair: pair[0])
    return best


def _abscissa(matrix: Array) -> float:
    """The largest real part of an eigenvalue: one of an irreducible block."""
    count, label = connected_components(csr_array(matrix), connection="strong")
    largest = float(matrix.diagonal().max())
    for number in np.flatnonzero(np.bincount(label, minlength=count) > 1):
        block = np.ix_(label == number, label == number)
        largest = max(largest, float(np.linalg.eigvals(matrix[block]).real.max()))
    return largest


def best_choice(rows: Array, owner: npt.NDArray[np.intp]) -> tuple[float, Array]:
    """``perron_scaling`` where every unit has several rows, of which the largest counts: owner[i] is the unit of row i.

    The choice of one row for each unit is improved until its vector no longer prefers another.
    """
    if len(rows) == rows.shape[1]:
        return perron_scaling(rows)
    eta: Array = np.ones(rows.shape[1])
    chosen = owner[:0]
    best: tuple[float, Array] = scaled_rows(rows, eta, owner), eta
    for _ in range(30):
        order = np.lexsort((-(rows @ eta), owner))
        before, chosen = chosen, order[np.searchsorted(owner[order], np.arange(len(eta)))]
        if np.array_equal(before, chosen):
            break
        eta = perron_scaling(rows[chosen])[1]
        best = max(best, (scaled_rows(rows, eta, owner), eta), key=lambda pair: pair[0])
    return best


def scaled_rows(nonnegative: Array, eta: Array, owner: Any = slice(None)) -> float:
    """1 − max over i of (Mη)ᵢ/η of the owner of row i, less the rounding."""
    units = eta[owner]
    size = (np.abs(nonnegative) @ eta) / units
    return float((1 - (nonnegative @ eta) / units - EPS * (len(eta) + 3) * (1 + size)).min())


def _spectral_error(w: Array, radius: Array) -> float:
    norm = float(np.linalg.norm(w))
    return float(np.linalg.norm(radius)) * (1 + 1e-6) + EPS * 4 * len(w) * (1 + norm)
