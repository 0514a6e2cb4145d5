"""Multipliers: weights of the units with which inequalities between quadratic forms hold, by an interior-point method.

For slopes in [a, b], (Δx − aΔz)(bΔz − Δx) ≥ 0 for every unit. A positive combination of these proves things of all
pairs of equilibria at once: Λ, the diagonal of its weights, is what is looked for. What is found is only as good as
rounding: those who use it check it.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        value: Array = half + half.T + t * np.diag(self.g) - self.constant
        return value


@dataclass
class _Barrier:
    """κt − log det F(λ, t) − Σ log λₖ(mostₖ − λₖ), which is self-concordant."""

    pencil: Pencil
    most: Array

    def value(self, at: Array, kappa: float) -> float:
        weights, t = at[:-1], float(at[-1])
        if not (weights.min() > 0 and (self.most - weights).min() > 0):
            return np.inf
        try:
            factor = np.linalg.cholesky(self.pencil(weights, t))
        except np.linalg.LinAlgError:
            return np.inf
        rest = np.log(weights).sum() + np.log(self.most - weights).sum()
        return float(kappa * t - 2 * np.log(factor.diagonal()).sum() - rest)

    def step(self, at: Array, kappa: float) -> tuple[Array, float]:
        """Newton's step, and the square of its length in the norm of the Hessian."""
        weights, pencil = at[:-1], self.pencil
        inverse = np.linalg.inv(pencil(weights, float(at[-1])))
        p, q = pencil.p @ inverse, pencil.q @ inverse
        mixed, room = p @ pencil.q.T, self.most - weights
        gradient = np.append(-2 * mixed.diagonal() - 1 / weights + 1 / room, kappa - pencil.g @ inverse.diagonal())
        hessian = np.empty((len(at), len(at)))
        hessian[:-1, :-1] = 2 * ((p @ pencil.p.T) * (q @ pencil.q.T) + mixed * mixed.T)
        hessian[:-1, :-1] += np.diag(1 / weights**2 + 1 / room**2)
        hessian[-1, :-1] = hessian[:-1, -1] = 2 * (p * q) @ pencil.g
        hessian[-1, -1] = pencil.g @ inverse**2 @ pencil.g
        scale = 1 / np.sqrt(hessian.diagonal())
        step = -scale * np.linalg.solve(hessian * scale[:, None] * scale, scale * gradient)
        return step, float(-gradient @ step)


def minimize(
    pencil: Pencil,
    weights: Array,
    t: float,
    most: Array,
    *,
    gap: float = 1e-5,
    enough: float = -np.inf,
    sign: bool = False,
) -> tuple[Array, float]:
    """The weights 0 < λ < most with the smallest t of which F(λ, t) is positive definite: path following.

    Args:
        pencil: F.
        weights: Where to start: F(λ, t) must be positive definite there.
        t: Likewise.
        most: Bounds of the weights.
        gap: How far from the smallest t to stop, as a share of |t|.
        enough: A t that is small enough to stop.
        sign: Whether only the sign of the smallest t is wanted: then it stops once that is known.

    Returns:
        Weights and t inside the feasible set.
    """
    barrier, at = _Barrier(pencil, most), np.append(weights, t)
    order = len(pencil.g) + 2 * len(weights)
    kappa = order / abs(t)
    for _ in range(40):
        for _ in range(40):
            try:
                step, square = barrier.step(at, kappa)
            except np.linalg.LinAlgError:
                return at[:-1], float(at[-1])
            if not square > 0.05 or at[-1] <= enough:
                break
            at, moved = _search(barrier, at, step, square, kappa)
            if not moved:
                return at[:-1], float(at[-1])
        left = order / kappa
        known = abs(at[-1]) > left  # the sign of the smallest t
        if at[-1] <= enough or left <= gap * abs(at[-1]) or (sign and known):
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


def stabilizer(w: Array, least: Array, largest: Array) -> Array:
    """Weights with which Σ λₖ (x − az)ₖ (x − bz)ₖ > 0 for z = Wx and every x, if there are any: they are not checked.

    For slopes in [0, 1] that is Λ(I − W) + (I − W)ᵀΛ > 0.
    """
    n = len(w)
    balanced, (scale, _) = matrix_balance(w, permute=False, separate=True)  # which spares the search bad units
    p, q = np.eye(n) - least[:, None] * balanced, np.eye(n) - largest[:, None] * balanced
    pencil = Pencil(p=p, q=q, g=np.ones(n), constant=np.zeros((n, n)))
    ones = np.ones(n)
    smallest = float(np.linalg.eigvalsh(pencil(ones, 0.0))[0])
    weights, _ = minimize(pencil, ones, 1.0 + 2 * max(0.0, -smallest), 2 * ones, sign=True)
    found: Array = weights / weights.max() / scale**2
    return found
