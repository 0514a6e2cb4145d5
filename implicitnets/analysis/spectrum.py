"""The largest eigenvalue of the Jacobian of a map at a state, by Arnoldi's method."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from ..solution import ConvergenceWarning
from .jacobian import Linearization, unit

__all__ = ["DominantEigenvalue", "dominant_eigenvalue", "spectral_radius"]


@dataclass(frozen=True, kw_only=True)
class DominantEigenvalue:
    """The eigenvalue of largest modulus of each sample's Jacobian J.

    Attributes:
        value: The eigenvalue λ, complex128 of shape ``(batch,)``; of a conjugate pair either one.
        residual: ‖Jy − λy‖₂ for the unit vector y that was found: λ is an eigenvalue of a matrix this far from J.
        error: Estimate of the error of λ, to first order: the residual (and rounding) times the condition number
            1/|yₗ·y| of λ. Large for a Jordan block, whose eigenvalues no method finds better than that.
        converged: Which samples met the tolerance.
    """

    value: Tensor
    residual: Tensor
    error: Tensor
    converged: Tensor


def spectral_radius(f: Callable[..., Any], z: Any, *inputs: Any, **options: Any) -> Tensor:
    """ρ(J) for each sample, with J = ∂f/∂z: the largest |λ|. Below 1, Picard's iteration converges close to z.

    Right for complex and non-normal spectra, where power iteration is not. ``dominant_eigenvalue`` takes the same
    arguments, and tells how accurate the result is.

    Examples:
        >>> turn = torch.tensor([[0.0, -0.5], [0.5, 0.0]], dtype=torch.float64)  # eigenvalues ± i/2
        >>> spectral_radius(lambda z: z @ turn, torch.ones(1, 2, dtype=torch.float64))
        tensor([0.5000], dtype=torch.float64)

    Args:
        f: The map ``f(z, *inputs) -> z``, which treats its samples apart.
        z: The state to differentiate at; a tensor or a pytree of tensors, batch first.
        inputs: What else f takes.
        options: ``dimension``, ``restarts``, ``rtol`` and ``generator``, as in ``dominant_eigenvalue``.

    Returns:
        The radii, float64 of shape ``(batch,)``, without a gradient.

    Warns:
        ConvergenceWarning: If a sample did not meet the tolerance.
    """
    return _dominant(f, z, inputs, **options).value.abs()


def dominant_eigenvalue(
    f: Callable[..., Any],
    z: Any,
    *inputs: Any,
    dimension: int = 32,
    restarts: int = 20,
    rtol: float = 1e-3,
    generator: torch.Generator | None = None,
) -> DominantEigenvalue:
    """The eigenvalue of J = ∂f/∂z of largest modulus, for each sample, by Krylov-Schur (Stewart 2001).

    Arnoldi's method on products Jv alone, restarted with the Schur vectors of the larger half of the spectrum.
    A sample is done when ‖Jy − λy‖ ≤ rtol · |λ|. If ``dimension`` is at least the size of the state, the Krylov space
    is all that a random vector can reach, and the result is exact up to rounding.

    Args:
        f: The map ``f(z, *inputs) -> z``, which treats its samples apart; autograd must know its second derivative.
        z: The state to differentiate at; a tensor or a pytree of tensors, batch first.
        inputs: What else f takes.
        dimension: Vectors kept for each sample, at least 4: this plus one times the memory of a state.
        restarts: How often to go on from the best half of them, at about ``dimension / 2`` products each.
        rtol: Tolerance of the residual, relative to |λ|.
        generator: Where the starting vector comes from; torch's default generator if None.

    Raises:
        ValueError: If an option is out of range.

    Warns:
        ConvergenceWarning: If a sample did not meet the tolerance.
    """
    return _dominant(f, z, inputs, dimension=dimension, restarts=restarts, rtol=rtol, generator=generator)


def _dominant(
    f: Callable[..., Any],
    z: Any,
    inputs: tuple[Any, ...],
    *,
    dimension: int = 32,
    restarts: int = 20,
    rtol: float = 1e-3,
    generator: torch.Generator | None = None,
) -> DominantEigenvalue:
    if dimension < 4 or restarts < 0 or not rtol > 0:
        raise ValueError(
            f"dimension={dimension}, restarts={restarts}, rtol={rtol}: dimension must be at least 4, restarts at "
            "least 0 and rtol positive"
        )
    jacobian = Linearization(f, z, inputs)
    krylov = _Krylov(jacobian, unit(jacobian.random(generator)), min(dimension, jacobian.value.shape[1]))
    krylov.expand()
    best = krylov.ritz(rtol)
    for _ in range(restarts):
        if bool(best.converged.all()) or krylov.complete:
            break
        krylov.restart()
        krylov.expand()
        best = _update(best, krylov.ritz(rtol))
    if not bool(best.converged.all()):
        failed = ~best.converged
        warnings.warn(
            f"spectral radius: {int(failed.sum())} of {failed.numel()} samples did not converge (largest residual "
            f"{float(best.residual[failed].max()):.2e}). Try a larger dimension, more restarts or a larger rtol.",
            ConvergenceWarning,
            stacklevel=3,
        )
    return best


def _update(old: DominantEigenvalue, new: DominantEigenvalue) -> DominantEigenvalue:
    """The new record, but for samples that were done: these do not depend on the others in their batch."""
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in vars(old)}
    return DominantEigenvalue(**{name: torch.where(old.converged, a, b) for name, (a, b) in pairs.items()})


class _Krylov:
    """Krylov decompositions JVᵀ = VᵀH of all samples at once, the basis vectors in the rows of V.

    Where a Krylov space is invariant, the basis goes on with zeros. They add zeros to the eigenvalues of H and
    nothing else.
    """

    def __init__(self, jacobian: Linearization, start: Tensor, size: int) -> None:
        batch, n = start.shape
        self.jacobian, self.size, self.kept = jacobian, size, 0
        self.complete = size == n
        self.basis = start.new_zeros(batch, size + 1, n)
        self.h = start.new_zeros(batch, size + 1, size)
        self.basis[:, :1] = start[:, None]

    def expand(self) -> None:
        """Fill the basis."""
        for j in range(self.kept, self.size):
            w = self.jacobian.right(self.basis[:, j])
            floor = w.shape[1] * torch.finfo(w.dtype).eps * torch.linalg.vector_norm(w, dim=1)
            for _ in range(2):  # once loses orthogonality, twice is enough
                h = torch.einsum("bjn,bn->bj", self.basis[:, : j + 1], w)
                w = w - torch.einsum("bjn,bj->bn", self.basis[:, : j + 1], h)
                self.h[:, : j + 1, j] += h
            beta = torch.linalg.vector_norm(w, dim=1)
            beta = torch.where(beta > floor, beta, torch.zeros_like(beta))
            self.h[:, j + 1, j] = beta
            self.basis[:, j + 1] = torch.where(beta[:, None] > 0, w / beta[:, None], torch.zeros_like(w))

    def ritz(self, rtol: float) -> DominantEigenvalue:
        """The dominant eigenvalue of H, and how well it does for J."""
        eps = torch.finfo(self.h.dtype).eps
        rows = [_ritz(h, rtol, eps) for h in self.h.double().cpu().numpy()]
        found = np.array(rows, dtype=np.complex128).reshape(-1, 4).T
        value, residual, error, converged = (torch.tensor(column) for column in found)
        return DominantEigenvalue(
            value=value, residual=residual.real, error=error.real, converged=converged.real.bool()
        )

    def restart(self) -> None:
        """Shrink the spaces to the Schur vectors of the larger half of the eigenvalues."""
        keep, m = self.size // 2, self.size
        turn, shrunk = np.zeros((len(self.h), keep + 1, m)), np.zeros((len(self.h), m + 1, m))
        for i, h in enumerate(self.h.double().cpu().numpy()):
            if not np.isfinite(h).all():
                continue
            limit = np.sort(np.abs(np.linalg.eigvals(h[:m])))[m - keep] * (1 - 1e-12)
            t, q, _ = scipy.linalg.schur(h[:m], sort=lambda a, b=0.0, limit=limit: abs(complex(a, b)) >= limit)
            k = keep + int(t[keep, keep - 1] != 0)  # a conjugate pair is kept whole
            turn[i, :k] = q[:, :k].T
            shrunk[i, :k, :k] = t[:k, :k]
            shrunk[i, keep + 1, :k] = h[m, m - 1] * q[m - 1, :k]
        basis = torch.zeros_like(self.basis)
        basis[:, : keep + 1] = torch.as_tensor(turn).to(basis) @ self.basis[:, :m]
        basis[:, keep + 1] = self.basis[:, m]
        self.basis, self.h, self.kept = basis, torch.as_tensor(shrunk).to(basis), keep + 1


def _ritz(h: Any, rtol: float, eps: float) -> tuple[complex, float, float, bool]:
    """Eigenvalue of largest modulus of the square part of h, its residual, its error, and whether it will do."""
    m = h.shape[1]
    if m == 0:
        return 0j, 0.0, 0.0, True
    if not np.isfinite(h).all():
        return complex("nan"), float("nan"), float("nan"), False
    values, left, right = scipy.linalg.eig(h[:m], left=True)
    i = int(np.abs(values).argmax())
    residual = float(abs(h[m] @ right[:, i]))
    rounding = eps * float(np.linalg.norm(h))
    overlap = float(abs(np.vdot(left[:, i], right[:, i])))
    error = (residual + rounding) / overlap if overlap > 0 else (float("inf") if residual + rounding > 0 else 0.0)
    return complex(values[i]), residual, error, residual <= max(rtol * abs(values[i]), m * rounding)
