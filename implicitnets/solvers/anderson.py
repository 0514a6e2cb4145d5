"""Anderson acceleration with limited memory, a relative ridge, and a restart safeguard."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from . import native
from .base import Iterative, require
from .iterate import Iterate, Mask, Vector
from .packed import PackedMap
from .window import combine, inner

__all__ = ["Anderson"]

ALIGNED = 0.3
"""A residual with this cosine to the one two steps before: f acts on few directions, and mixing pays. For symmetric
maps with eigenvalues all over an interval it is 0.4 to 0.75, for maps of independent entries 0 (measured)."""

DEAR = 512
"""States of so many entries are compared so: below it, f is cheap, and mixing early does not pay (measured)."""

COMPARED = 256
"""So many entries of a state show how much two residuals are alike."""

SOON = 3
"""Who is this many plain steps from its tolerance, at the rate of the last one, need not begin to mix."""


@dataclass
class _Rings:
    """The last differences of residuals and of values, both in units of the former's norm, and their products."""

    dr: Tensor  # (rows, memory, size), each of norm 1, less where it is mere noise
    df: Tensor  # (rows, memory, size), with the sign turned
    gram: Tensor  # (rows, memory, memory): <dr, dr> + ridge; that of the identity where a slot is empty
    count: int = 0

    def clear(self, rows: Tensor) -> None:
        """Forget what may stand there of rows that have not mixed yet."""
        for ring in (self.dr, self.df):
            ring[:, : self.count].index_fill_(0, rows, 0)

    def select(self, rows: Tensor) -> _Rings:
        return _Rings(self.dr[rows], self.df[rows], self.gram[rows], self.count)


@dataclass
class _Controls:
    """How each row steps."""

    keep: Tensor  # (rows, 1): 1 - damping, halved where a plain step went astray
    wait: Tensor  # (rows,): plain steps before the next mixed one, the step just taken included
    failures: Tensor  # (rows,): mixed steps that went astray
    active: Tensor  # (rows,): 1 where ``awake``, on the device

    def select(self, rows: Tensor) -> _Controls:
        return _Controls(self.keep[rows], self.wait[rows], self.failures[rows], self.active[rows])


@dataclass
class _History:
    """What a row remembers; the controls are made once a step is not f(z), the rings once somebody mixes."""

    awake: Mask  # (rows,): who mixes, or waits to mix again
    damped: bool
    controls: _Controls | None = None
    all_awake: bool = False
    waiting: bool = False  # whether anybody may be
    first: Iterate | None = None  # where it started, until the second step was compared with it
    last: Iterate | None = None
    older: Vector | None = None  # residuals of the point before that
    rings: _Rings | None = None


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
        lazy: Steps stay plain, which is cheaper, as long as two of them together reduce a sample's residual to the
            square of this share, and the second one leaves none that is like the first (looked at for states of 512
            entries or more), or three more like the last one would reach the tolerance; in [0, 1). 0 mixes from the
            second step on.

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
        return _History(np.zeros(z.shape[0], dtype=bool), self.damping > 0)

    def _controls(self, z: Tensor, state: _History) -> _Controls:
        if state.controls is None:
            keep, none = z.new_full((z.shape[0], 1), 1 - self.damping), z.new_zeros(z.shape[0])
            state.controls = _Controls(keep, none, none, none)
        return state.controls

    def step(self, f: PackedMap, now: Iterate, state: _History) -> Tensor:  # noqa: D102
        last, state.last = state.last, now
        if last is not None:
            self._wake(now, last, state)
        elif self.lazy > 0 and now.z.shape[1] >= DEAR:
            state.first = now
        if not state.damped and (last is None or state.rings is None):
            return now.fz
        controls, rings = self._controls(now.z, state), state.rings
        if last is None or rings is None:
            return torch.addcmul(now.z, now.r, controls.keep)
        if state.waiting:
            controls.wait = (controls.wait - 1).clamp_min_(0)
        slots = rings.dr.shape[1]
        slot, used = rings.count % slots, min(rings.count + 1, slots)
        rings.count += 1
        if slots <= native.MAX_MEMORY and native.fits(now.z):
            at, before = (now.z, now.fz, now.host_norms()[1]), (last.z, last.fz)
            history = (controls.keep, controls.wait, controls.active, rings.dr, rings.df, rings.gram)
            return native.anderson(slot, used, self._diagonal(now.z), at, before, history)
        self._remember(slot, used, now, last, controls.active, rings)
        return self._mix(used, now, rings, controls if state.damped else None)

    def _wake(self, now: Iterate, last: Iterate, state: _History) -> None:
        """Let the samples mix from now on whose last step was not good enough, if mixing can still save a step."""
        if state.all_awake:
            return
        older, state.older = state.older, last.host_norms()[0]
        if older is None and self.lazy > 0:
            return
        residual, scale = now.host_norms()
        fell: Mask = np.zeros(len(residual), dtype=bool) if older is None else residual <= self.lazy**2 * older
        if state.first is not None:
            fell &= ~_aligned(now, state.first)
            state.first = None
        if np.count_nonzero(fell) == fell.size:
            return
        slow = ~(fell | state.awake)
        if self.lazy > 0 and np.count_nonzero(slow):
            with np.errstate(all="ignore"):
                slow &= ~(residual * (residual / state.older) ** SOON <= self.atol + self.rtol * scale)
        if np.count_nonzero(slow):
            state.awake = state.awake | slow
            state.all_awake = bool(state.awake.all())
            self._controls(now.z, state).active = torch.from_numpy(state.awake).to(now.z)
            if state.rings is None:
                slots = max(min(self.memory, self.max_steps), 1)
                rows, size = now.z.shape
                dr, df = now.z.new_empty((2, rows, slots, size))
                state.rings = _Rings(dr, df, self._empty_gram(now.z, slots).repeat(rows, 1, 1))
            else:
                state.rings.clear(torch.from_numpy(np.flatnonzero(slow)).to(now.z.device))

    def _empty_gram(self, z: Tensor, slots: int) -> Tensor:
        return torch.eye(slots, dtype=z.dtype, device=z.device) * self._diagonal(z)

    def _diagonal(self, z: Tensor) -> float:
        return 1 + self.ridge * torch.finfo(z.dtype).eps

    def _remember(self, slot: int, used: int, now: Iterate, last: Iterate, active: Tensor, rings: _Rings) -> None:
        """Take in the newest differences and their row of the Gram matrix."""
        dr = torch.sub(now.r, last.r, out=rings.dr[:, slot])
        df = torch.sub(last.fz, now.fz, out=rings.df[:, slot])
        noise = now.norms[1].to(dr.dtype) * torch.finfo(dr.dtype).eps  # of dr, by rounding in f(z)
        size = torch.linalg.vector_norm(dr, dim=1).hypot_(noise).clamp_min_(torch.finfo(dr.dtype).tiny)
        size = torch.where(active > 0, size, torch.inf)[:, None]  # who is asleep keeps nothing
        dr.div_(size)
        df.div_(size)
        row = inner(rings.dr[:, :used].transpose(0, 1), dr).T
        row[:, slot] = self._diagonal(dr)
        rings.gram[:, slot, :used] = row
        rings.gram[:, :used, slot] = row

    def _mix(self, used: int, now: Iterate, rings: _Rings, controls: _Controls | None) -> Tensor:
        """f(z) − ΔF γ − damping · (r − ΔR γ); without controls the damping is 0."""
        dr, df = rings.dr[:, :used].transpose(0, 1), rings.df[:, :used].transpose(0, 1)
        gamma = torch.linalg.solve_ex(rings.gram[:, :used, :used], inner(dr, now.r).T[:, :, None])[0][:, :, 0].T
        if controls is None:  # then no sample is waiting either
            return combine(now.fz, df, gamma)
        gamma = torch.where((controls.wait > 0) | (controls.active == 0), 0.0, gamma)
        damped = torch.addcmul(now.z, now.r, controls.keep)
        return combine(combine(damped, dr, gamma * (1 - controls.keep.T)), df, gamma)

    def forget(self, state: _History, rows: Tensor, now: Iterate) -> None:  # noqa: D102
        controls = self._controls(now.z, state)
        plain = (controls.wait > 0) | (controls.active == 0)  # whose last step was
        if state.rings is not None:
            for ring in (state.rings.dr, state.rings.df):
                ring[:, : state.rings.count].masked_fill_(rows[:, None, None], 0)
            empty = self._empty_gram(now.z, state.rings.gram.shape[1])
            state.rings.gram = torch.where(rows[:, None, None], empty, state.rings.gram)
        mixed = rows & ~plain
        controls.failures = controls.failures + mixed
        wait = torch.where(mixed, 2**controls.failures + 1, controls.wait.clamp_min(2))
        controls.wait = torch.where(rows, wait, controls.wait)
        controls.keep = torch.where((rows & plain)[:, None], controls.keep / 2, controls.keep)
        state.damped = state.waiting = True
        if state.last is not None:  # so that the next difference is zero, and has no weight
            state.last = now.where(rows, state.last)

    def select(self, state: _History, rows: Tensor) -> _History:  # noqa: D102
        controls, rings = state.controls, state.rings
        return replace(
            state,
            controls=None if controls is None else controls.select(rows),
            awake=state.awake[rows.cpu().numpy()],
            first=None if state.first is None else state.first.take(rows),
            last=None if state.last is None else state.last.take(rows),
            older=None if state.older is None else state.older[rows.cpu().numpy()],
            rings=None if rings is None else rings.select(rows),
        )


def _aligned(now: Iterate, first: Iterate) -> Mask:
    """Whose residual is much like the first one."""
    if native.fits(now.z):
        return native.cosines((now.z, now.fz), (first.z, first.fz), COMPARED) >= ALIGNED
    a, b = ((at.fz[:, :COMPARED] - at.z[:, :COMPARED]) for at in (now, first))
    aligned: Mask = (torch.cosine_similarity(a, b) >= ALIGNED).cpu().numpy()
    return aligned
