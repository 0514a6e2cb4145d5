"""Exact tests of the P-property: are all principal minors positive?"""

from __future__ import annotations

import time

import numpy as np
from scipy.linalg import matrix_balance
from scipy.optimize import Bounds, LinearConstraint, milp

from .criteria import EPS, Array

__all__ = ["EXHAUSTIVE", "by_programs", "by_recursion", "negative_vertex"]

EXHAUSTIVE = 20
"""Up to this size all principal minors are looked at: a million, in seconds."""

GAP = 1e-5
"""Margin that the integer programs must prove, for rows of absolute sum 1: ten times their own tolerance."""


def by_recursion(matrix: Array, radius: Array) -> tuple[float, Array]:
    """The smallest ratio det M[S]/det M[S without k] over all S and their last element k, from below; and this S.

    All are positive exactly when M is a P-matrix (Tsatsomeros and Li 2000): M is one if and only if m₁₁ > 0, and both
    M without its first row and column and the Schur complement of m₁₁ in M are. All 2ᵏ matrices of a level are
    treated at once. Each entry carries a radius that bounds its rounding error, so that a positive result proves.
    The recursion ends at the first ratio that is not positive; the minors of the proper leading parts of that S are.

    Returns:
        The bound, and S as a vector of zeros and ones.
    """
    n = len(matrix)
    mid, rad = matrix[None], radius[None]
    members = np.zeros((1, n), dtype=bool)
    worst, where = np.inf, np.zeros(n)
    for k in range(n):
        low = mid[:, 0, 0] - rad[:, 0, 0]
        i = int(low.argmin())
        if low[i] <= 0:  # of all that may not be positive, the one that is so least in doubt
            i = int(np.where(low <= 0, low + 2 * rad[:, 0, 0], np.inf).argmin())
        if not low[i] >= worst:  # NaN included
            worst, where = float(low[i]), members[i].astype(np.float64)
            where[k] = 1
        if not worst > 0:
            break
        inside, inside_rad = _schur(mid, rad)
        mid, rad = np.concatenate([mid[:, 1:, 1:], inside]), np.concatenate([rad[:, 1:, 1:], inside_rad])
        members = np.concatenate([members, members])
        members[len(members) // 2 :, k] = True
    return worst, where


def _schur(mid: Array, rad: Array) -> tuple[Array, Array]:
    """D − c b / a of the blocks [[a, b], [c, D]], and a bound of its error, rounding included."""
    a, ra = mid[:, :1, :1], rad[:, :1, :1]
    b, rb = mid[:, :1, 1:], rad[:, :1, 1:]
    c, rc = mid[:, 1:, :1] / a, rad[:, 1:, :1]
    rc = (rc + np.abs(c) * ra) / (a - ra) + EPS * np.abs(c)
    product = c * b
    result = mid[:, 1:, 1:] - product
    error = rad[:, 1:, 1:] + np.abs(c) * rb + rc * (np.abs(b) + rb)
    error += EPS * (np.abs(product) + np.abs(result) + 8 * error)
    return result, error


def by_programs(matrix: Array, radius: Array, time_limit: float = 60.0) -> tuple[float, Array | None]:
    """The same question as n mixed-integer programs: M is no P-matrix iff xᵢ(Mx)ᵢ ≤ 0 for all i and some x ≠ 0.

    In program k the maximum norm of x is xₖ = 1, and a binary variable tells the sign of each xᵢ. The inequalities are
    relaxed by a gap, so that what is infeasible stays so under rounding and the solver's tolerance.

    Returns:
        The gap and None, if none is feasible; 0 and the D in [0, 1]ⁿ with (I − D (I − M)) x ≈ 0, if one is;
        NaN and None, if the time ran out or the entries are not known well enough.
    """
    n = len(matrix)
    end = time.monotonic() + time_limit
    # Positive scalings of rows and columns keep the signs of minors, and small margins from drowning in the gap.
    balanced, (scale, _) = matrix_balance(matrix, permute=False, separate=True)
    size = np.maximum(np.abs(balanced).sum(1, keepdims=True), np.finfo(np.float64).tiny)
    balanced /= size
    if not (radius / scale[:, None] * scale / size).sum(1).max() < GAP / 10:
        return np.nan, None
    # With sᵢ = 1 for xᵢ ≥ 0: s − 1 ≤ x ≤ s, and −gap − s ≤ Mx ≤ gap + 1 − s.
    rows = np.block([[np.eye(n), -np.eye(n)], [balanced, np.eye(n)]])
    low = np.concatenate([np.full(n, -1.0), np.full(n, -GAP)])
    high = np.concatenate([np.zeros(n), np.full(n, GAP + 1)])
    for k in range(n):
        lower, upper = np.concatenate([np.full(n, -1.0), np.zeros(n)]), np.ones(2 * n)
        lower[[k, n + k]] = 1
        left = end - time.monotonic()
        if left <= 0:
            return np.nan, None
        found = milp(
            np.zeros(2 * n),
            constraints=LinearConstraint(rows, low, high),
            integrality=np.repeat([0, 1], n),
            bounds=Bounds(lower, upper),
            options={"time_limit": left},
        )
        if found.x is not None:
            x = scale * found.x[:n]
            image = x - matrix @ x  # Wx, of the signs of x; so x = DWx with these D, but for the tolerance
            return 0.0, np.clip(np.divide(x, image, out=np.zeros(n), where=image != 0), 0, 1)
        if found.status != 2:
            return np.nan, None
    return GAP, None


def negative_vertex(w: Array, start: Array) -> Array | None:
    """Walk over the D with entries 0 and 1 along falling det(I − DW), from ``start``, until it is not positive.

    The determinant is affine in each entry of D, so rounding D to zeros and ones need not raise it, and one inverse
    tells what a change of each entry does to it. A walk that ends elsewhere proves nothing.

    Returns:
        Such a D, as a vector, or None.
    """
    d: Array = start.copy()
    for _ in range(4 * len(w)):
        element = np.eye(len(w)) - d[:, None] * w
        if np.linalg.slogdet(element)[0] <= 0:
            if np.isin(d, (0, 1)).all():
                return d
            sign = -1.0
        else:
            sign = 1.0
        try:
            slope = -np.einsum("ij,ji->i", w, np.linalg.inv(element)) * sign
        except np.linalg.LinAlgError:
            return d
        step = np.where(slope < 0, 1.0, 0.0) - d  # to the end where the determinant is lower
        change = np.where(np.isin(d, (0, 1)), step * slope, -np.inf)  # first to the corners
        i = int(change.argmin())
        if change[i] >= 0:
            return None
        d[i] += step[i]
    return None
