"""Broyden's good method with limited memory."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor

from .base import Iterative, require
from .loop import Iterate
from .packed import PackedMap
from .window import combine, inner

__all__ = ["Broyden", "InverseKept"]


@dataclass
class _Inverse:
    """H = I + Σ uⱼ vⱼᵀ, an approximate inverse of I − f'(z), and the last step."""

    u: Tensor  # (memory, rows, size)
    v: Tensor  # (memory, rows, size)
    keep: Tensor  # (rows, 1): length of the steps, halved at each restart
    count: int = 0
    last: Iterate | None = None
    direction: Tensor | None = None

    def times(self, r: Tensor) -> Tensor:
        """H r."""
        return combine(r, self.u[: self.count], inner(self.v[: self.count], r)) if self.count else r

    def transposed_times(self, s: Tensor) -> Tensor:
        """Hᵀ s."""
        return combine(s, self.v[: self.count], inner(self.u[: self.count], s)) if self.count else s


@dataclass(frozen=True, kw_only=True)
class Broyden(Iterative[_Inverse]):
    """Broyden's good method on g(z) = z − f(z), matrix-free (Broyden 1965; Kelley 1995, section 7.3).

    The inverse Jacobian starts as H = I and gets a rank-one term a step by the Sherman-Morrison formula,
    H ← H + (s − Hy) sᵀH / (sᵀHy) with s the step and y the change of g. Once ``memory`` terms are held it
    starts anew. A sample whose residual exceeds four times its best returns there, starts anew and halves
    its step.

    Attributes:
        memory: Rank-one terms held, at least 1. The state is stored 2 · memory times.

    Raises:
        ValueError: If memory is out of range.
    """

    memory: int = 20

    growth: ClassVar[float | None] = 4.0
    remedies: ClassVar[str] = "more steps (max_steps=), more memory (memory=40), Anderson() or Newton()"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.memory >= 1, self, "memory", self.memory, "at least 1")

    def init(self, z: Tensor) -> _Inverse:  # noqa: D102
        ring = z.new_empty((2, max(min(self.memory, self.max_steps), 1), *z.shape))
        return _Inverse(ring[0], ring[1], z.new_ones((z.shape[0], 1)))

    def step(self, f: PackedMap, now: Iterate, state: _Inverse) -> Tensor:  # noqa: D102
        direction = state.times(now.r)
        if state.last is not None and state.direction is not None:
            if state.count == state.u.shape[0]:
                state.count, direction = 0, now.r
            else:
                direction = self._learn(now, direction, state.last, state.direction, state)
        state.last, state.direction = now, direction
        return torch.addcmul(now.z, direction, state.keep)

    def _learn(self, now: Iterate, direction: Tensor, last: Iterate, before: Tensor, state: _Inverse) -> Tensor:
        """Add a rank-one term to H and return H r; ``direction`` is H r of the H without it."""
        s = now.z - last.z
        v = state.transposed_times(s)
        y = last.r - now.r
        bend = torch.linalg.vecdot(v, y)[:, None]
        known = bend.abs() > torch.finfo(s.dtype).eps * v.norm(dim=1, keepdim=True) * y.norm(dim=1, keepdim=True)
        u = torch.where(known, (s - (before - direction)) / bend, 0.0)  # H y = H rₖ − H rₖ₊₁
        state.u[state.count], state.v[state.count] = u, v
        state.count += 1
        return torch.addcmul(direction, u, torch.linalg.vecdot(v, now.r)[:, None])

    def forget(self, state: _Inverse, rows: Tensor, now: Iterate) -> None:  # noqa: D102
        for ring in (state.u, state.v):
            ring[: state.count].masked_fill_(rows[None, :, None], 0)
        state.keep = torch.where(rows[:, None], state.keep / 2, state.keep)
        if state.last is not None and state.direction is not None:  # so that the next term is zero
            state.last = now.where(rows, state.last)
            state.direction = torch.where(rows[:, None], now.r, state.direction)

    def select(self, state: _Inverse, rows: Tensor) -> _Inverse:  # noqa: D102
        last = None if state.last is None else state.last.take(rows)
        direction = None if state.direction is None else state.direction[rows]
        return _Inverse(state.u[:, rows], state.v[:, rows], state.keep[rows], state.count, last, direction)

    def keeping_inverse(self) -> InverseKept:
        """The same solver, which remembers of its next run the H that each sample ended with."""
        return InverseKept(**{option.name: getattr(self, option.name) for option in fields(self)})


class _Ends:
    """The H of each sample of a run at its end: in ``state`` while it is at work, in u and v from then on."""

    def __init__(self, state: _Inverse) -> None:
        self.state = state
        self.u, self.v = torch.zeros_like(state.u), torch.zeros_like(state.v)
        self.sample = torch.arange(state.u.shape[1], device=state.u.device)  # whose row of the state it is
        self.closed = torch.zeros_like(self.sample, dtype=torch.bool)

    def save(self, state: _Inverse) -> None:
        """Copy the H of all rows, save of those that have come to their end before."""
        mine = ~self.closed[self.sample]
        for kept, ring in ((self.u, state.u), (self.v, state.v)):
            kept[:, self.sample[mine]] = 0.0
            kept[: state.count, self.sample[mine]] = ring[: state.count, mine]


@dataclass(frozen=True, kw_only=True)
class InverseKept(Broyden):
    """Broyden's method, with the approximate inverse of I − f'(z) of each sample of the last run."""

    _ends: list[_Ends] = field(default_factory=list, init=False, repr=False, compare=False)

    def init(self, z: Tensor) -> _Inverse:  # noqa: D102
        state = super().init(z)
        self._ends[:] = [_Ends(state)]
        return state

    def step(self, f: PackedMap, now: Iterate, state: _Inverse) -> Tensor:  # noqa: D102
        (ends,), (residual, scale) = self._ends, now.norms.double()
        finished = residual <= self.atol + self.rtol * scale  # and in the batch only because others are not
        if state.count == state.u.shape[0]:  # all start anew
            ends.save(state)
            ends.closed[ends.sample[finished]] = True
        z = super().step(f, now, state)
        if state.count:  # who has finished learns nothing more, as if it had left
            state.u[state.count - 1].masked_fill_(finished[:, None], 0)
        return z

    def select(self, state: _Inverse, rows: Tensor) -> _Inverse:  # noqa: D102
        (ends,) = self._ends
        ends.save(state)
        ends.sample, ends.state = ends.sample[rows], super().select(state, rows)
        return ends.state

    def transposed_inverse_times(self, s: Tensor) -> Tensor:
        """Hᵀ s for a matrix ``(batch, size)``, with the H that each sample of the last run ended with.

        Raises:
            ValueError: If there was no run of such a batch.
        """
        if not self._ends or self._ends[0].u.shape[1:] != s.shape:
            raise ValueError(f"there was no run of a batch of shape {tuple(s.shape)} whose inverses could be used")
        (ends,) = self._ends
        ends.save(ends.state)
        return _Inverse(ends.u, ends.v, s, ends.u.shape[0]).transposed_times(s)
