"""The one loop that runs all solvers."""

from __future__ import annotations

import math
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..solution import Solution, Status
from . import native
from .iterate import Best, Iterate, Mask, Vector
from .packed import PackedMap

__all__ = ["Iterate", "Loop"]

DIVERGED = 10.0
"""A sample has diverged, not merely run out of steps, if its residual ends above this multiple of the start's."""
DROP = 0.1
"""Finished samples are dropped from the batch when they are at least this share of it, and if that pays."""
PRICE = 2**16
"""What dropping costs by itself, as the number of state entries that could be evaluated in that time."""
StateT = TypeVar("StateT")


class Steps(Protocol[StateT]):
    """What the loop needs of a solver; ``Iterative`` says what each means."""

    @property
    def rtol(self) -> float: ...
    @property
    def atol(self) -> float: ...
    @property
    def record(self) -> bool: ...
    @property
    def growth(self) -> float | None: ...
    @property
    def rounds(self) -> int: ...

    def init(self, z: Tensor) -> StateT: ...
    def step(self, f: PackedMap, now: Iterate, state: StateT) -> Tensor: ...
    def forget(self, state: StateT, rows: Tensor, now: Iterate) -> None: ...
    def select(self, state: StateT, rows: Tensor) -> StateT: ...
    def spent(self, state: StateT, step: int) -> Any: ...


class Loop(Generic[StateT]):
    """One run: the rows still at work on the device, what is known of every sample on the host.

    The decisions (who has converged, improved, gone astray) are taken in NumPy on two numbers a sample: one
    transfer an iteration from a GPU, and on the CPU the cheapest small-array arithmetic there is.
    """

    def __init__(self, solver: Steps[StateT], f: PackedMap, z: Tensor) -> None:
        batch = z.shape[0]
        self.solver, self.f, self.z, self.state = solver, f, z, solver.init(z)
        self.now: Iterate
        self.step = 0
        self.droppable = True
        # by row of the matrices
        self.sample = np.arange(batch)  # whose row it is
        self.done = np.zeros(batch, dtype=bool)  # finished, but still in the batch, where nobody looks at it
        self.finished = 0  # how many those are
        self.best = Best(batch)
        # Residual of the best iterate; of ‖f(z)‖, further out a tolerance relative to it means nothing.
        bounds = np.empty((2, batch))
        bounds.fill(np.inf)
        self.least, self.horizon = bounds
        self.native = self._measure(z)
        # by sample
        self.value: Tensor | None = None  # of those who have finished
        self.residual = np.empty(batch)
        self.steps, self.status = np.zeros((2, batch), dtype=np.int64)
        self.trace: list[Vector] = []

    def measure(self) -> bool:
        """Evaluate f at z, settle the samples that are finished, and say whether any is not."""
        last = self.now if self.step else None
        self.now, met = self._evaluate()
        if self.step == 0:
            self._begin()
        self.steady = met >= 0
        if not self.steady or self.step == self.solver.rounds or self.solver.record:
            return self._judge(last)
        np.copyto(self.least, self.now.host_norms()[0])
        self.best.renew()
        if met:
            self._keep()
        return self.finished < self.done.size

    def _keep(self) -> None:
        """Settle the rows that have converged, where all that are at work are at their best."""
        norms, spent = self.now.host_norms(), self.solver.spent(self.state, self.step)
        if self.native is None or not isinstance(spent, int):
            self._settle((norms[0] <= self._limit(norms[1])) & ~self.done, norms[0], int(Status.CONVERGED))
            return
        if self.value is None:
            self.value = torch.empty_like(self.now.z)
        at = (self.sample, self.value, self.residual, self.steps)
        self.finished += self.native.settle(self.now.z, norms, spent, *at)

    def _evaluate(self) -> tuple[Iterate, int]:
        """The iterate at z, and how many have converged there; -1 if anybody at work neither has nor improves."""
        z = self.z.contiguous()
        fz = self.f(self.z).contiguous()
        if self.native is not None:
            norms, met = self.native(z, fz)
            return Iterate(z, fz, host=norms), met
        now = Iterate.at(z, fz)
        if self.finished:
            now.settle(self.done)
        residual, scale = now.host_norms()
        converged = (residual <= self._limit(scale)) & ~self.done
        usual = (converged | (residual < self.least)) & (scale <= self.horizon) | self.done
        return now, int(np.count_nonzero(converged)) if np.count_nonzero(usual) == usual.size else -1

    def _measure(self, like: Tensor) -> native.Measure | None:
        if not native.fits(like):
            return None
        return native.Measure(like, (self.solver.atol, self.solver.rtol), self.horizon, self.least, self.done)

    def _limit(self, scale: Vector) -> Vector:
        with np.errstate(invalid="ignore"):
            return self.solver.atol + self.solver.rtol * scale

    def _begin(self) -> None:
        residual, scale = self.now.host_norms()
        self.first, self.start = residual, np.maximum(residual, scale)
        finite = np.isfinite(self.start)
        if np.count_nonzero(finite) < finite.size:
            self.start = np.where(finite, self.start, 0.0)
        np.multiply(self.start, torch.finfo(self.z.dtype).eps ** -0.75, out=self.horizon)

    def _judge(self, last: Iterate | None) -> bool:
        """Settle the samples that are finished; whether any is not."""
        solver, live = self.solver, ~self.done
        residual, scale = self.now.host_norms()
        if solver.record:
            self._record(residual)
        finite = np.isfinite(residual)
        far = (scale > self.horizon) & live
        converged = (residual <= self._limit(scale)) & finite & live & ~far
        improved = ((residual < self.least) & live & ~far) | converged
        if last is not None:
            self.best.update(last, improved | self.done)
        np.copyto(self.least, residual, where=improved)
        finished = converged | far | (self.step == solver.rounds)
        if solver.growth is None or self.step == 0:
            finished |= ~finite
        verdict = np.where(far | (residual > DIVERGED * self.start), int(Status.DIVERGED), int(Status.MAX_STEPS))
        verdict = np.where(finite, verdict, int(Status.NONFINITE))
        verdict = np.where(converged, int(Status.CONVERGED), verdict)
        self._settle(finished & live, np.where(np.isfinite(self.least), self.least, residual), verdict)
        return self.finished < self.done.size

    def advance(self) -> None:
        """Go to the next point: drop who is finished, send back who went astray, and step."""
        if self.finished >= DROP * self.done.size and self.droppable and self._dropping_pays():
            self._drop()
        if self.solver.growth is not None and not self.steady:
            residual = self.now.host_norms()[0]
            astray = ~(residual <= self.solver.growth * self.least) & ~self.done
            if np.count_nonzero(astray):
                self.now = self.best.restore(self.now, astray)
                self.solver.forget(self.state, self._device(astray), self.now)
        self.z = self.solver.step(self.f, self.now, self.state)
        self.step += 1

    def solution(self) -> Solution:
        """The record of what was found."""
        layout, value = self.f.layout, self.now.z.clone() if self.value is None else self.value
        trace = torch.from_numpy(np.stack(self.trace)) if self.trace else None
        return Solution(
            value=layout.tree(layout.unpack(value)),
            residual=torch.from_numpy(self.residual).to(value.device, value.dtype),
            steps=torch.from_numpy(self.steps).to(value.device),
            status=torch.from_numpy(self.status).to(value.device),
            evaluations=self.f.evaluations,
            trace=None if trace is None else trace.to(value.device, value.dtype),
        )

    def _record(self, residual: Vector) -> None:
        seen = self.residual.copy()
        seen[self.sample[~self.done]] = residual[~self.done]
        self.trace.append(seen)

    def _settle(self, finished: Mask, residual: Vector, verdict: Any) -> None:
        """Note how the rows ``finished`` have ended; ``verdict`` is a Status, or one for each row."""
        rows = finished.nonzero()[0]
        if not rows.size:
            return
        sample = self.sample[rows]
        self.status[sample] = verdict if isinstance(verdict, int) else verdict[rows]
        self.residual[sample] = residual[rows]
        spent = self.solver.spent(self.state, self.step)
        self.steps[sample] = spent if isinstance(spent, int) else spent[rows]
        self._keep_value(rows)
        self.done[rows] = True
        self.finished += rows.size

    def _keep_value(self, rows: np.ndarray[Any, Any]) -> None:
        """Note the best points of those who finish. As long as they stay in the batch they go on, unheeded."""
        if self.value is None:
            self.value = self.best.point(self.now)
        else:
            self.value.index_copy_(0, self._device(self.sample[rows]), self.best.point(self.now, rows))

    def _dropping_pays(self) -> bool:
        """Whether it spares evaluations more than it costs, the trial before the first drop included."""
        size = self.z.shape[1]
        trial = 0 if self.f.cut else 2 * (self.done.size - self.finished) * size
        return self._to_go() * self.finished * size > PRICE + trial

    def _to_go(self) -> float:
        """Iterations until the largest residual meets its tolerance, at the rate at which it has fallen so far."""
        residuals, scales = self.now.host_norms()
        worst = int(np.argmax(np.where(self.done, 0.0, residuals)))
        residual, scale, first = (float(of[worst]) for of in (residuals, scales, self.first))
        limit = self.solver.atol + self.solver.rtol * scale
        if not 0 < limit < residual < first:
            return math.inf
        return max(self.step, 1) * math.log(residual / limit) / math.log(first / residual)

    def _drop(self) -> None:
        live = ~self.done
        rows = self._device(np.flatnonzero(live))
        self.droppable = self.f.select(rows, self.now.z, self.now.fz)
        if not self.droppable:
            return
        self.now, self.state, self.finished = self.now.take(rows), self.solver.select(self.state, rows), 0
        self.best.select(live)
        for name in ("sample", "done", "least", "first", "start", "horizon"):
            setattr(self, name, getattr(self, name)[live])
        self.native = self._measure(self.now.z)

    def _device(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(self.z.device)
