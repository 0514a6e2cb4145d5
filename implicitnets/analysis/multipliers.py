"""Multipliers: weights of the units with which inequalities between quadratic forms hold, by an interior-point method.

For slopes in [a, b], (Δx − aΔz)(bΔz − Δx) ≥ 0 for every unit. A positive combination of these proves things of all
pairs of equilibria at once: Λ, the diagonal of its weights, is what is looked for. What is found is only as good as
rounding: those who use it check it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import matrix_balance

__all__ = ["Pencil", "minimize", "stabilizer"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pencil:
    """F(λ, t) = Σ λₖ (pₖqₖᵀ + qₖpₖᵀ) + t diag(g) − K.

    Attributes:
        p: The vectors pₖ, (k, size).
        q: The vectors qₖ, (k, size).
        g: (size,), nonnegative.
        constant: K, (size, size), symmetric.
    """

    p: Array
    q: Array
    g: Array
    constant: Array

    def __call__(self, weights: Array, t: float) -> Array:
        """F(λ, t)."""
        half: Array = self.p.T @ (weights[:, None] * self.q)
        whole: Array = half + half.T + t * np.diag(self.g) - self.constant
        return whole

    def size(self, weights: Array, t: float) -> Array:
        """The sum of the absolute values of all that is added up in each entry of F."""
        half: Array = np.abs(self.p).T @ (weights[:, None] * np.abs(self.q))
        whole: Array = half + half.T + t * np.diag(self.g) + np.abs(self.constant)
        return whole


@dataclass
class _Barrier:
    """κt − log det F(λ, t) − Σ log λₖ − log(total − Σ λₖ), which is self-concordant."""

    pencil: Pencil
    total: float

    def value(self, at: Array, kappa: float) -> float:
        weights, t = at[:-1], float(at[-1])
        if not (weights.min(initial=1.0) > 0 and weights.sum() < self.total):
            return np.inf
        try:
            factor = np.linalg.cholesky(self.pencil(weights, t))
        except np.linalg.LinAlgError:
            return np.inf
        rest = np.log(self.total - weights.sum()) if np.isfinite(self.total) else 0.0
        return float(kappa * t - 2 * np.log(factor.diagonal()).sum() - np.log(weights).sum() - rest)

    def step(self, at: Array, kappa: float) -> tuple[Array, float]:
        """Newton's step, and the square of its length in the norm of the Hessian."""
        weights, pencil = at[:-1], self.pencil
        inverse = np.linalg.inv(pencil(weights, float(at[-1])))
        p, q = pencil.p @ inverse, pencil.q @ inverse
        mixed, room = p @ pencil.q.T, self.total - weights.sum()
        gradient = np.append(-2 * mixed.diagonal() - 1 / weights + 1 / room, kappa - pencil.g @ inverse.diagonal())
        hessian = np.empty((len(at), len(at)))
        hessian[:-1, :-1] = 2 * ((p @ pencil.p.T) * (q @ pencil.q.T) + mixed * mixed.T) + 1 / room**2
        hessian[:-1, :-1] += np.diag(1 / weights**2)
        hessian[-1, :-1] = hessian[:-1, -1] = 2 * (p * q) @ pencil.g
        hessian[-1, -1] = pencil.g @ inverse**2 @ pencil.g
        scale = 1 / np.sqrt(hessian.diagonal())
        step = -scale * np.linalg.solve(hessian * scale[:, None] * scale, scale * gradient)
        return step, float(-gradient @ step)


def minimize(
    pencil: Pencil, weights: Array, t: float, *, gap: float = 1e-5, total: float = np.inf, sign: bool = False
) -> tuple[Array, float]:
    """The weights λ > 0, Σ λ < total, with the smallest t of which F(λ, t) is positive definite: path following.

    Args:
        pencil: F.
        weights: Where to start: F(λ, t) must be positive definite there.
        t: Likewise.
        gap: How far from the smallest t to stop, as a share of |t|.
        total: A bound of the sum of the weights.
        sign: Whether only the sign of the smallest t is wanted: then it stops once that is known.

    Returns:
        Weights and t inside the feasible set.
    """
    barrier, at = _Barrier(pencil, total), np.append(weights, t)
    order = len(pencil.g) + len(weights) + np.isfinite(total)
    kappa = order / abs(t)
    for _ in range(40):
        for _ in range(40):
            try:
                step, square = barrier.step(at, kappa)
            except np.linalg.LinAlgError:
                return at[:-1], float(at[-1])
            if not square > 0.05:
                break
            at, moved = _search(barrier, at, step, square, kappa)
            if not moved:
                return at[:-1], float(at[-1])
        left = order / kappa
        if left <= gap * abs(at[-1]) or (sign and (at[-1] > left or (at[-1] < 0 and left < -at[-1]))):
            break
        kappa *= 10
    return at[:-1], float(at[-1])


def _search(barrier: _Barrier, at: Array, step: Array, square: float, kappa: float) -> tuple[Array, bool]:
    """A step that lowers the barrier function enough, and whether there is one."""
    here, share = barrier.value(at, kappa), 1.0
    for _ in range(30):
        if barrier.value(at + share * step, kappa) <= here - 0.1 * share * square:
            return at + share * step, True
        share /= 2
    return at, False


def stabilizer(w: Any) -> Array:
    """Weights Λ with Λ(I − W) + (I − W)ᵀΛ positive definite, if there are any: they are not checked."""
    n = len(w)
    balanced, (scale, _) = matrix_balance(w, permute=False, separate=True)  # which spares the search bad units
    pencil = Pencil(p=np.eye(n), q=np.eye(n) - balanced, g=np.ones(n), constant=np.zeros((n, n)))
    ones = np.ones(n)
    least = float(np.linalg.eigvalsh(pencil(ones, 0.0))[0])
    weights, _ = minimize(pencil, ones, 1.0 + 2 * max(0.0, -least), total=2.0 * n, sign=True)
    found: Array = weights / scale**2
    return found
