"""The metric of a proximal step, M = I + τ SᵀS/n, and systems with it.

All rows of a weight matrix share the one matrix M, so a step with G rows is a few products of matrices and one
factorization, of M itself (q × q, "primal") or of I + τ SSᵀ/n (n × n, "dual").
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ...solution import ConvergenceWarning

__all__ = ["CHOLESKY", "Metric", "cheaper", "conjugate_gradients", "working"]

CHOLESKY = 4.0
"""The time of a multiplication in a Cholesky factorization, in that of one in a product of matrices, on one core:
``python benchmarks/proxprop.py`` measures 3 to 7."""
ATTEMPTS = 3


def cheaper(rows: int, width: int, outputs: int) -> Literal["dual", "primal"]:
    """Which exact form takes less time, for S of shape (rows, width) and a gradient of shape (outputs, width).

    Both are counted in multiplications: the dual forms SSᵀ, factors it, and goes through S and back; the primal forms
    SᵀS, factors it, and solves with it.
    """
    n, q, m = rows, width, outputs
    dual = n * n * q + CHOLESKY * n**3 / 6 + 2 * m * n * q + m * n * n
    primal = n * q * q + CHOLESKY * q**3 / 6 + m * q * q
    return "dual" if dual <= primal else "primal"


def working(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


class Metric:
    """M = I + τ Σ, with Σ = SᵀS/n: given by the rows S, or by Σ where that is all that is kept.

    Systems are solved in float64: the gradient is a sum of nearly parallel rows, whose small parts are what the
    metric brings out.

    Args:
        tau: τ, not negative.
        rows: S, of shape (n, q).
        sigma: Σ, of shape (q, q).
    """

    def __init__(self, tau: float, *, rows: Tensor | None = None, sigma: Tensor | None = None) -> None:
        if (rows is None) == (sigma is None):
            raise TypeError("Metric takes rows= or sigma=, and one of them only")
        self.tau, self.rows, self._sigma = tau, rows, sigma
        self._factors: dict[str, Tensor | None] = {}

    @property
    def sigma(self) -> Tensor:
        """Σ, computed once."""
        if self._sigma is None:
            assert self.rows is not None
            self._sigma = self.rows.T @ self.rows / len(self.rows)
        return self._sigma

    def scaled(self, shift: float) -> Metric:
        """The metric N with M + shift · I = (1 + shift) N."""
        return Metric(self.tau / (1 + shift), rows=self.rows, sigma=None if self.rows is not None else self.sigma)

    def curvature(self, v: Tensor) -> Tensor:
        """τ v Σ for v of shape (m, q), the cheaper way round."""
        if self.rows is not None and self._sigma is None:
            return (self.tau / len(self.rows)) * ((v @ self.rows.T) @ self.rows)
        return self.tau * (v @ self.sigma)

    def multiply(self, v: Tensor) -> Tensor:
        """v M."""
        return v + self.curvature(v)

    def solve(self, g: Tensor, method: str = "auto", steps: int = 3) -> Tensor:
        """G M⁻¹ for G of shape (m, q), in the dtype of G.

        Args:
            g: G.
            method: "dual" or "primal" (exact), "auto" (the cheaper of the two), or "cg".
            steps: Of conjugate gradients from 0, with step sizes of each row's own.

        Warns:
            RuntimeWarning: If the factorization fails; conjugate gradients are then run to the end.
        """
        if method == "cg":
            return self._conjugate(g, steps)
        form = self.form(g.shape[0]) if method == "auto" else method
        factor = self._factor(form)
        if factor is None:
            return self._conjugate(g, 10 * g.shape[1], tolerance=torch.finfo(g.dtype).eps)
        exact = g.double()
        if form == "primal":
            return torch.cholesky_solve(exact.T, factor).T.to(g.dtype)
        assert self.rows is not None
        rows = self.rows.double()  # G (I + τ SᵀS/n)⁻¹ = G − τ/n G Sᵀ (I + τ SSᵀ/n)⁻¹ S, by Woodbury's identity
        inner = torch.cholesky_solve(rows @ exact.T, factor)
        return (exact - (self.tau / len(rows)) * inner.T @ rows).to(g.dtype)

    def form(self, outputs: int) -> Literal["dual", "primal"]:
        """The cheaper exact form for a gradient of so many rows; what is factored already stays."""
        if self.rows is None:
            return "primal"
        n, q = self.rows.shape
        return "dual" if "dual" in self._factors else cheaper(n, q, outputs)

    def log_determinant(self, outputs: int) -> float | None:
        """log det M, which M and its dual have in common (Sylvester's identity); None where it can't be factored."""
        factor = self._factor(self.form(outputs))
        return None if factor is None else 2 * float(factor.diagonal().log().sum())

    def _factor(self, form: str) -> Tensor | None:
        """The Cholesky factor of M, or of its dual, computed once; None where there is none, with a warning."""
        if form not in self._factors:
            self._factors[form] = _cholesky(self._gram(form) * self.tau)
        return self._factors[form]

    def _gram(self, form: str) -> Tensor:
        """SSᵀ/n for the dual, SᵀS/n for the primal form, in float64.

        Raises:
            ValueError: If there are no rows for the dual.
        """
        if self.rows is None:
            if form == "dual":
                raise ValueError("method='dual' needs the rows of one batch, not an average: write method='primal'")
            return self.sigma.double()
        rows = self.rows.double()
        return (rows @ rows.T if form == "dual" else rows.T @ rows) / len(rows)

    def _conjugate(self, g: Tensor, steps: int, tolerance: float = 0.0) -> Tensor:
        rows, q = (0, g.shape[1]) if self.rows is None else self.rows.shape
        if self._sigma is None and rows * q + steps * len(g) * q < 2 * steps * len(g) * rows:
            _ = self.sigma  # so many rows that it pays to sum them up first
        return conjugate_gradients(self.multiply, g, steps, tolerance)


def conjugate_gradients(multiply: Callable[[Tensor], Tensor], g: Tensor, steps: int, tolerance: float = 0.0) -> Tensor:
    """The v that so many steps from 0 find for v M = g, each row of g on its own.

    After any number of steps ⟨v, g⟩ > 0, since v minimizes ½⟨v, vM⟩ − ⟨g, v⟩ over a space that contains g
    (Frerix et al. 2018, proposition 5).

    Args:
        multiply: v -> v M, symmetric and positive definite.
        g: The right-hand sides, shape (m, q).
        steps: At most so many.
        tolerance: Stop earlier where all residuals are below this share of their right-hand sides.

    Warns:
        ConvergenceWarning: If there is a tolerance and it is not met.
    """
    scale = g.abs().amax(1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1)  # so that squares of tiny gradients do not vanish
    r = g / scale
    v, p, square = torch.zeros_like(r), r, r.square().sum(1, keepdim=True)
    start = square
    end = start * max(tolerance, torch.finfo(g.dtype).eps) ** 2  # beyond that, the recurrence makes noise
    for _ in range(steps):
        going = square > end
        if not bool(going.any()):
            return v * scale
        mp = multiply(p)
        alpha = torch.where(going, _ratio(square, (p * mp).sum(1, keepdim=True)), 0)
        v, r = v + alpha * p, r - alpha * mp
        square, old = r.square().sum(1, keepdim=True), square
        p = r + _ratio(square, old) * p
    if tolerance and bool((square > end).any()):
        worst = float(_ratio(square, start).max()) ** 0.5
        warnings.warn(
            f"conjugate gradients stopped at a relative residual of {worst:.1e}", ConvergenceWarning, stacklevel=2
        )
    return v * scale


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is, for rows that are done."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1), 0)


def _cholesky(gram: Tensor) -> Tensor | None:
    """The factor of I + gram, with a growing jitter where rounding has made it indefinite.

    Warns:
        RuntimeWarning: If there is none.
    """
    gram.diagonal().add_(1)
    jitter = torch.finfo(gram.dtype).eps * float(gram.diagonal().max())
    for _ in range(ATTEMPTS):
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not bool(failed) and bool(factor.isfinite().all()):
            return factor
        gram.diagonal().add_(jitter)
        jitter *= 1000
    warnings.warn(
        "I + τ SᵀS/n could not be factored, so conjugate gradients take its place: a smaller tau, or inputs of layers "
        "on a common scale, avoid this",
        RuntimeWarning,
        stacklevel=4,
    )
    return None
