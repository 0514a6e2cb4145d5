"""GMRES and BiCGSTAB for affine maps, all samples at once and each on its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Iterative, require
from .loop import Iterate
from .packed import PackedMap
from .window import combine, inner

__all__ = ["GMRES", "BiCGSTAB"]


@dataclass(frozen=True, kw_only=True)
class _Krylov(Iterative[None]):
    """A step is one cycle of a Krylov method on (I − J) d = f(z) − z for an affine map of Jacobian J.

    The loop measures the true residual after each cycle, so that a recursion that lost accuracy is found out
    and started again. A sample that is done within a cycle is held still while others go on.
    """

    remedies: ClassVar[str] = (
        "more cycles (max_steps=), a longer one (restart=), or, where the map is not affine, Newton(linear=GMRES())"
    )

    def step(self, f: PackedMap, now: Iterate, state: None) -> Tensor:
        jacobian = f.differential(now.z, now.fz)
        return self._cycle(lambda v: v - jacobian(v), now.z, now.r)

    @abstractmethod
    def _cycle(self, apply: Callable[[Tensor], Tensor], z: Tensor, r: Tensor) -> Tensor:
        """One cycle for apply(d) = r from ``z``: the point z + d."""

    def _limit(self, z: Tensor, r: Tensor) -> Tensor:
        """The tolerance of each row, shape (rows, 1); z + r is f(z)."""
        scale: Tensor = torch.linalg.vector_norm(z + r, dim=1, keepdim=True)
        return self.atol + self.rtol * scale


@dataclass(frozen=True, kw_only=True)
class GMRES(_Krylov):
    """Restarted GMRES for an affine map f(z) = Jz + b, in its form of generalized conjugate residuals.

    Minimizes ‖f(z) − z‖ over a Krylov space that grows by one product with J at a time (Saad and Schultz 1986;
    Eisenstat, Elman and Schultz 1983). A step is a cycle of up to ``restart`` products. Where the residual can't
    be reduced along itself, the search goes on along the last image, as GMRES would.

    Attributes:
        restart: Products in a cycle, at least 1. The state is stored 2 · restart times.

    Raises:
        ValueError: If restart is out of range.
    """

    restart: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.restart >= 1, self, "restart", self.restart, "at least 1")

    def _cycle(self, apply: Callable[[Tensor], Tensor], z: Tensor, r: Tensor) -> Tensor:
        p = z.new_empty((self.restart, *z.shape))
        q = torch.empty_like(p)
        tiny = torch.finfo(z.dtype).eps
        size = torch.linalg.vector_norm(r, dim=1, keepdim=True)
        direction, active = r, size > 0
        for k in range(self.restart):
            length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
            p[k] = direction / length.clamp_min(torch.finfo(z.dtype).tiny)
            q[k] = apply(p[k])
            scale = self._orthogonalize(p, q, k).mul_(active)
            q[k] *= scale
            p[k] *= scale
            alpha = torch.linalg.vecdot(q[k], r)[:, None]
            z, r = torch.addcmul(z, p[k], alpha), torch.addcmul(r, q[k], alpha, value=-1)
            before, size = size, torch.linalg.vector_norm(r, dim=1, keepdim=True)
            active = (size > self._limit(z, r)) & (scale > 0)
            if not active.any():
                break
            stuck = size > (1 - tiny) * before
            direction = torch.where(stuck, q[k], r) if stuck.any() else r
        return z

    @staticmethod
    def _orthogonalize(p: Tensor, q: Tensor, k: int) -> Tensor:
        """Make q[k] orthogonal to its predecessors, p[k] likewise; 1 / ‖q[k]‖, or 0 where nothing is left of it."""
        before = norm = torch.linalg.vector_norm(q[k], dim=1, keepdim=True)
        for _ in range(2 if k else 0):  # a second time where the first cancelled much: that is enough (Parlett)
            overlap = -inner(q[:k], q[k])
            q[k], p[k] = combine(q[k], q[:k], overlap), combine(p[k], p[:k], overlap)
            last, norm = norm, torch.linalg.vector_norm(q[k], dim=1, keepdim=True)
            if not (norm < last / 10).any():
                break
        return torch.where(norm > torch.finfo(norm.dtype).eps * before, 1 / norm, 0.0)


@dataclass(frozen=True, kw_only=True)
class BiCGSTAB(_Krylov):
    """BiCGSTAB for an affine map f(z) = Jz + b (van der Vorst 1992): short recurrences, eight vectors.

    A step is a cycle of up to ``restart`` iterations of two products each.

    Attributes:
        restart: Iterations in a cycle, at least 1.

    Raises:
        ValueError: If restart is out of range.
    """

    restart: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.restart >= 1, self, "restart", self.restart, "at least 1")

    def _cycle(self, apply: Callable[[Tensor], Tensor], z: Tensor, r: Tensor) -> Tensor:
        shadow, p = r, r
        rho = torch.linalg.vecdot(shadow, r)[:, None]
        active = torch.ones_like(rho, dtype=torch.bool)
        best, least = z, torch.linalg.vector_norm(r, dim=1, keepdim=True)
        for _ in range(self.restart):
            v = apply(p)
            alpha = _ratio(rho, torch.linalg.vecdot(shadow, v)[:, None], active)
            s = torch.addcmul(r, v, alpha, value=-1)
            t = apply(s)
            omega = _ratio(torch.linalg.vecdot(t, s)[:, None], torch.linalg.vecdot(t, t)[:, None], active)
            z = torch.addcmul(torch.addcmul(z, p, alpha), s, omega)
            r = torch.where(active, torch.addcmul(s, t, omega, value=-1), r)
            size = torch.linalg.vector_norm(r, dim=1, keepdim=True)
            better = size < least
            best, least = torch.where(better, z, best), torch.where(better, size, least)
            before, rho = rho, torch.linalg.vecdot(shadow, r)[:, None]
            beta = _ratio(rho, before, active) * _ratio(alpha, omega, active)
            active = active & (size > self._limit(z, r)) & (beta != 0)  # 0: a breakdown, the next cycle goes on
            if not active.any():
                break
            p = torch.addcmul(r, torch.addcmul(p, v, omega, value=-1), beta)
        return best


def _ratio(a: Tensor, b: Tensor, active: Tensor) -> Tensor:
    """A / b in the active rows; 0 elsewhere and where the quotient is not finite."""
    quotient = a / b
    return torch.where(active & quotient.isfinite(), quotient, 0.0)
