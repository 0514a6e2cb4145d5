"""Anderson acceleration with limited memory, a relative ridge, and a restart safeguard."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from . import native
from .base import Iterative, require
from .loop import Iterate
from .packed import PackedMap
from .window import combine, inner

__all__ = ["Anderson"]


@dataclass
class _History:
    """The last differences of residuals and of values, both in units of the former's norm, and their products."""

    dr: Tensor  # (memory, rows, size), each row of norm 1, less where it is mere noise
    df: Tensor  # (memory, rows, size), with the sign turned
    gram: Tensor  # (memory, memory, rows): <dr, dr> + ridge; that of the identity where a slot is empty
    keep: Tensor  # (rows, 1): 1 - damping, halved where a plain step went astray
    wait: Tensor  # (rows,): plain steps to take before the next mixed one
    failures: Tensor  # (rows,): mixed steps that went astray
    plain: Tensor  # (rows,): whose last step was plain
    active: Tensor  # (rows,): who keeps differences; 1 or 0
    damped: bool
    last: Iterate | None = None
    count: int = 0
    asleep: bool = True  # nobody is active yet


@dataclass(frozen=True, kw_only=True)
class Anderson(Iterative[_History]):
    """Anderson acceleration, type II, in the form of differences.

    With rₖ = f(zₖ) − zₖ, and ΔR, ΔF the last ``memory`` differences of residuals and of values,
    γ = argmin ‖rₖ − ΔR γ‖² + ridge, and zₖ₊₁ = (f(zₖ) − ΔF γ) − damping · (rₖ − ΔR γ). On an affine map this
    is GMRES in disguise (Walker and Ni 2011).

    The ridge is in units of machine precision times the scale of each difference, so that the iteration does
    not depend on the units of the problem. A sample whose residual exceeds 1.5 times its best returns there and
    forgets its history. If a plain step did that, its steps are halved, which solves cells of norm far above 1; if
    it was a mixed one, 2, 4, 8, ... plain steps come before it mixes again.

    Attributes:
        memory: Differences kept, at least 1. The state is stored 2 · memory times.
        damping: Share of the residual that is not added, in [0, 1).
        ridge: Ridge of the normalized Gram matrix, in units of machine precision.
        lazy: As long as each step reduces a sample's residual to this share or less, its steps stay plain, which is
            cheaper; in [0, 1). 0 mixes from the second step on.

    Raises:
        ValueError: If memory, damping, ridge or lazy is out of range.
    """

    memory: int = 5
    damping: float = 0.0
    ridge: float = 10.0
    lazy: float = 0.5

    growth: ClassVar[float | None] = 1.5
    remedies: ClassVar[str] = "more steps (max_steps=), more memory (memory=10), damping=0.5, Broyden() or Newton()"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.memory >= 1, self, "memory", self.memory, "at least 1")
        require(0 <= self.damping < 1, self, "damping", self.damping, "in [0, 1)")
        require(self.ridge >= 0, self, "ridge", self.ridge, "at least 0")
        require(0 <= self.lazy < 1, self, "lazy", self.lazy, "in [0, 1)")

    def init(self, z: Tensor) -> _History:  # noqa: D102
        slots = max(min(self.memory, self.max_steps), 1)
        dr, df = z.new_empty((2, slots, *z.shape))
        gram = self._empty_gram(z, slots).repeat(1, 1, z.shape[0])
        keep, none = z.new_full((z.shape[0], 1), 1 - self.damping), z.new_zeros(z.shape[0])
        return _History(dr, df, gram, keep, none, none, none == 0, none, self.damping > 0)

    def _empty_gram(self, z: Tensor, slots: int) -> Tensor:
        return torch.eye(slots, dtype=z.dtype, device=z.device)[:, :, None] * self._diagonal(z)

    def _diagonal(self, z: Tensor) -> float:
        return 1 + self.ridge * torch.finfo(z.dtype).eps

    def step(self, f: PackedMap, now: Iterate, state: _History) -> Tensor:  # noqa: D102
        last, state.last = state.last, now
        if last is None or self._all_asleep(now, last, state):
            return self._plain_step(now, state)
        slots = state.dr.shape[0]
        slot, used = state.count % slots, min(state.count + 1, slots)
        state.count += 1
        state.plain = (state.wait > 0) | (state.active == 0)
        if slots <= native.MAX_MEMORY and native.fits(now.r):
            at, before = (now.r, now.fz, now.norms), (last.r, last.fz)
            history = (state.keep, state.wait, state.active, state.dr, state.df, state.gram)
            z = native.anderson(slot, used, self._diagonal(now.r), at, before, history)
        else:
            self._remember(slot, used, now, last, state)
            z = self._mix(used, now, state)
        state.wait = (state.wait - 1).clamp_min_(0)
        return z

    @staticmethod
    def _plain_step(now: Iterate, state: _History) -> Tensor:
        return torch.addcmul(now.z, now.r, state.keep) if state.damped else now.fz

    def _all_asleep(self, now: Iterate, last: Iterate, state: _History) -> bool:
        """Wake the samples whose last step was not good enough; whether none is awake."""
        slow = ~(now.norms[:, 0] <= self.lazy * last.norms[:, 0])
        state.active = torch.maximum(state.active, slow.to(state.active.dtype))
        if state.asleep:  # a transfer from the device, but only as long as it saves work
            state.asleep = not bool(slow.any())
        return state.asleep

    def _remember(self, slot: int, used: int, now: Iterate, last: Iterate, state: _History) -> None:
        """Take in the newest differences and their row of the Gram matrix."""
        dr = torch.sub(now.r, last.r, out=state.dr[slot])
        df = torch.sub(last.fz, now.fz, out=state.df[slot])
        noise = now.norms[:, 1:] * torch.finfo(dr.dtype).eps  # of dr, by rounding in f(z)
        size = torch.linalg.vector_norm(dr, dim=1, keepdim=True).hypot_(noise).clamp_min_(torch.finfo(dr.dtype).tiny)
        size = torch.where(state.active[:, None] > 0, size, torch.inf)  # who is asleep keeps nothing
        dr.div_(size)
        df.div_(size)
        row = inner(state.dr[:used], dr)
        row[slot] = self._diagonal(dr)
        state.gram[slot, :used] = row
        state.gram[:used, slot] = row

    def _mix(self, used: int, now: Iterate, state: _History) -> Tensor:
        """f(z) − ΔF γ − damping · (r − ΔR γ)."""
        dr, df, gram = state.dr[:used], state.df[:used], state.gram[:used, :used]
        gamma = torch.linalg.solve_ex(gram.permute(2, 0, 1), inner(dr, now.r).T[:, :, None])[0][:, :, 0].T
        if not state.damped:  # then no sample is waiting either
            return combine(now.fz, df, gamma)
        gamma = torch.where(state.plain, 0.0, gamma)
        damped = torch.addcmul(now.z, now.r, state.keep)
        return combine(combine(damped, dr, gamma * (1 - state.keep.T)), df, gamma)

    def forget(self, state: _History, rows: Tensor, now: Iterate) -> None:  # noqa: D102
        for ring in (state.dr, state.df):
            ring[: state.count].masked_fill_(rows[None, :, None], 0)
        state.gram = torch.where(rows, self._empty_gram(now.z, state.gram.shape[0]), state.gram)
        mixed = rows & ~state.plain
        state.failures = state.failures + mixed
        state.wait = torch.where(mixed, 2**state.failures, torch.where(rows, state.wait.clamp_min(1), state.wait))
        state.keep = torch.where((rows & state.plain)[:, None], state.keep / 2, state.keep)
        state.damped = True
        if state.last is not None:  # so that the next difference is zero, and has no weight
            state.last = now.where(rows, state.last)

    def select(self, state: _History, rows: Tensor) -> _History:  # noqa: D102
        return replace(
            state,
            dr=state.dr[:, rows],
            df=state.df[:, rows],
            gram=state.gram[:, :, rows],
            keep=state.keep[rows],
            wait=state.wait[rows],
            failures=state.failures[rows],
            plain=state.plain[rows],
            active=state.active[rows],
            last=None if state.last is None else state.last.take(rows),
        )
