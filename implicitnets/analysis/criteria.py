"""Conditions under which I − DW is invertible for all diagonal D with entries in [0, 1], each with its margin.

A criterion takes W and the radius of each entry (the true matrix is within it), and returns a lower bound of its
margin in which rounding is accounted for: what is positive is proved.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

__all__ = ["Array", "Criterion", "infinity_norm", "lyapunov", "monotone", "nemon", "perron_frobenius", "two_norm"]

Array = npt.NDArray[np.float64]
Criterion = Callable[[Array, Array], float]

EPS = float(np.finfo(np.float64).eps)


def infinity_norm(w: Array, radius: Array) -> float:
    """1 − ‖W‖∞ > 0: the Picard iteration contracts in the maximum norm (El Ghaoui et al. 2021)."""
    return _scaled_rows(np.abs(w) + radius, np.ones(len(w)))


def perron_frobenius(w: Array, radius: Array) -> float:
    """1 − ρ(|W|) > 0: W has ‖E⁻¹WE‖∞ < 1 for some positive diagonal E (El Ghaoui et al. 2021)."""
    return _perron(np.abs(w) + radius)


def nemon(w: Array, radius: Array) -> float:
    """1 − μ∞(E⁻¹WE) > 0 for the best positive diagonal E: I − W is an H-matrix of positive diagonal.

    The matrix measure is max over i of wᵢᵢ + Σⱼ |wᵢⱼ| eⱼ/eᵢ (Jafarpour, Davydov, Proskurnikov and Bullo 2021).
    """
    metzler = np.abs(w)
    np.fill_diagonal(metzler, w.diagonal())
    return _perron(metzler + radius)


def two_norm(w: Array, radius: Array) -> float:
    """1 − ‖W‖₂ > 0."""
    return 1 - float(np.linalg.norm(w, 2)) - _spectral_error(w, radius)


def monotone(w: Array, radius: Array) -> float:
    """1 − λmax((W + Wᵀ)/2) > 0: the equation is strongly monotone (Winston and Kolter 2020)."""
    return 1 - float(np.linalg.eigvalsh((w + w.T) / 2)[-1]) - _spectral_error(w, radius)


def lyapunov(w: Array, radius: Array, time_limit: float = 60.0) -> float:
    """Lyapunov diagonal stability of W − I: Q(I − W) + (I − W)ᵀQ is positive definite for some positive diagonal Q.

    That is monotonicity of EWE⁻¹ with E = Q^(1/2) (Revay, Wang and Manchester 2020), and its margin is the result.
    With E = diag(exp d), λmax of the symmetric part is a convex function of d; it is smoothed and minimized until
    the margin is positive. A search that fails proves nothing, one that succeeds is checked by ``monotone``.
    """
    end = time.monotonic() + time_limit
    best, logs = -np.inf, np.zeros(len(w))

    def look(d: Array) -> None:
        nonlocal best, logs
        ratio = np.exp(d[:, None] - d)
        margin = monotone(w * ratio, radius * ratio)
        if margin > best:
            best, logs = margin, d.copy()
        if best > 0 or time.monotonic() > end:
            raise StopIteration

    for smoothing in (1.0, 0.1, 0.01, 0.001):
        try:
            look(logs)
        except StopIteration:
            break
        minimize(
            _smooth_abscissa, logs, args=(w, smoothing), jac=True, method="L-BFGS-B", callback=look,
            bounds=[(-25, 25)] * len(w), options={"maxiter": 200, "maxcor": 20},
        )  # fmt: skip
    return best


def _smooth_abscissa(d: Array, w: Array, smoothing: float) -> tuple[float, Array]:
    """τ log tr exp(S/τ), which is at least λmax(S), and its gradient; S the symmetric part of diag(eᵈ) W diag(e⁻ᵈ)."""
    scaled = w * np.exp(d[:, None] - d)
    values, vectors = np.linalg.eigh((scaled + scaled.T) / 2)
    weights = np.exp((values - values[-1]) / smoothing)
    total = weights.sum()
    pull = (vectors * (weights / total)) @ vectors.T * scaled
    return float(values[-1] + smoothing * np.log(total)), pull.sum(1) - pull.sum(0)


def _perron(metzler: Array) -> float:
    """1 − s with s a little above the spectral abscissa of a matrix that is nonnegative off its diagonal.

    For any η > 0, s = max (Mη)ᵢ/ηᵢ is an upper bound (Collatz and Wielandt), and (cI − M)⁻¹1 with c just above the
    abscissa is such an η; the bound is then below c.
    """
    eye = np.eye(len(metzler))
    abscissa = float(np.linalg.eigvals(metzler).real.max())
    best = _scaled_rows(metzler, np.ones(len(metzler)))
    for gap in (1e-6, 1e-3, 1e-1):
        try:
            eta = np.linalg.solve((abscissa + gap * abs(1 - abscissa)) * eye - metzler, np.ones(len(metzler)))
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(eta).all() and eta.min() > 0:
            best = max(best, _scaled_rows(metzler, eta.astype(np.float64)))
    return best


def _scaled_rows(nonnegative: Array, eta: Array) -> float:
    """1 − max over i of (Mη)ᵢ/ηᵢ, less the rounding."""
    size = (np.abs(nonnegative) @ eta) / eta
    return float((1 - (nonnegative @ eta) / eta - EPS * (len(eta) + 3) * (1 + size)).min())


def _spectral_error(w: Array, radius: Array) -> float:
    norm = float(np.linalg.norm(w))
    return float(np.linalg.norm(radius)) * (1 + 1e-6) + EPS * 4 * len(w) * (1 + norm)
