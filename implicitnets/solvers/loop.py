"""The one loop that runs all solvers, and the iterate that it hands to their steps."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..solution import Solution, Status
from . import native
from .packed import PackedMap

__all__ = ["Iterate", "Loop"]

Vector = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

DIVERGED = 10.0
"""A sample has diverged, not merely run out of steps, if its residual ends above this multiple of the start's."""
DROP = 0.1
"""Finished samples are dropped from the batch when they are at least this share of it, and if that pays."""
StateT = TypeVar("StateT")


class Iterate(NamedTuple):
    """A point with the value of the map there; a row for each sample that is still in the batch."""

    z: Tensor
    fz: Tensor
    r: Tensor
    """f(z) − z."""
    norms: Tensor
    """‖f(z) − z‖ and ‖f(z)‖ of each row, shape (rows, 2)."""

    @classmethod
    def at(cls, z: Tensor, fz: Tensor) -> Iterate:
        """The iterate of a point and the value there."""
        z, fz = z.contiguous(), fz.contiguous()
        if native.fits(z):
            return cls(z, fz, *native.residual(z, fz))
        r = fz - z
        norms = torch.stack((torch.linalg.vector_norm(r, dim=1), torch.linalg.vector_norm(fz, dim=1)), 1)
        return cls(z, fz, r, norms)

    def where(self, mask: Tensor, other: Iterate) -> Iterate:
        """This iterate in the rows where ``mask`` is true, ``other`` elsewhere."""
        rows = mask[:, None]
        return Iterate(*(torch.where(rows, mine, theirs) for mine, theirs in zip(self, other, strict=True)))

    def take(self, rows: Tensor) -> Iterate:
        """The rows (int64 indices) alone."""
        return Iterate(*(matrix[rows] for matrix in self))

    def host_norms(self) -> tuple[Vector, Vector]:
        """‖f(z) − z‖ and ‖f(z)‖ of each row, in NumPy."""
        residual, scale = self.norms.cpu().numpy().T.astype(np.float64)
        return residual, scale


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
        self.step = 0
        self.droppable = True
        self.horizon = torch.finfo(z.dtype).eps ** -0.75
        # by row of the matrices
        self.sample = np.arange(batch)  # whose row it is
        self.done = np.zeros(batch, dtype=bool)  # finished, but still in the batch
        self.least = np.full(batch, np.inf)  # residual of the best iterate
        self.start = np.zeros(batch)  # the scale that growth is measured against
        # by sample
        self.value = torch.empty_like(z)
        self.residual = np.full(batch, np.nan)
        self.steps = np.zeros(batch, dtype=np.int64)
        self.status = np.zeros(batch, dtype=np.int64)
        self.trace: list[Vector] = []

    def measure(self) -> bool:
        """Evaluate f at z, settle the samples that are finished, and say whether any is not."""
        solver = self.solver
        self.now = Iterate.at(self.z, self.f(self.z))
        if np.count_nonzero(self.done):  # they stand still, and no step should look at how they converge
            self.now.norms.masked_fill_(self._device(self.done)[:, None], 0)
        residual, scale = self.now.host_norms()
        self.current = residual
        if self.step == 0:
            self.best, self.first = self.now, residual
            self.start = np.where(np.isfinite(residual + scale), np.maximum(residual, scale), 0.0)
        if solver.record:
            self._record()
        live = ~self.done
        with np.errstate(invalid="ignore"):
            self.limit = solver.atol + solver.rtol * scale
            converged = (residual <= self.limit) & live
        far = (scale > self.start * self.horizon) & live  # so far out a tolerance relative to f(z) means nothing
        improved = residual < self.least
        self.steady = bool(np.count_nonzero(improved | self.done) == live.size)
        if self.steady and not np.count_nonzero(converged | far) and self.step < solver.rounds:
            self.best, self.least = self.now, residual  # the usual iteration: everybody improves, nobody is lost
            return live.size > 0
        converged &= np.isfinite(residual) & ~far
        self._keep_best((improved & ~far) | converged)
        finished = converged | far | (self.step == solver.rounds)
        if solver.growth is None or self.step == 0:
            finished |= ~np.isfinite(residual)
        self._settle(finished & live, converged, far)
        return not self.done.all()

    def advance(self) -> None:
        """Go to the next point: drop who is finished, send back who went astray, and step."""
        finished = int(np.count_nonzero(self.done))
        if finished >= DROP * self.done.size and self.droppable and self._dropping_pays(finished):
            finished = self._drop(finished)
        if self.solver.growth is not None and not self.steady:
            astray = ~(self.current <= self.solver.growth * self.least) & ~self.done
            if np.count_nonzero(astray):
                rows = self._device(astray)
                self.now = self.best.where(rows, self.now)
                self.solver.forget(self.state, rows, self.now)
        z = self.solver.step(self.f, self.now, self.state)
        self.z = torch.where(self._device(self.done)[:, None], self.best.z, z) if finished else z
        self.step += 1

    def solution(self) -> Solution:
        """The record of what was found."""
        self._write(np.arange(self.sample.size))
        layout, device = self.f.layout, self.value.device
        trace = torch.from_numpy(np.stack(self.trace)) if self.trace else None
        return Solution(
            value=layout.tree(layout.unpack(self.value)),
            residual=torch.from_numpy(self.residual).to(device, self.value.dtype),
            steps=torch.from_numpy(self.steps).to(device),
            status=torch.from_numpy(self.status).to(device),
            evaluations=self.f.evaluations,
            trace=None if trace is None else trace.to(device, self.value.dtype),
        )

    def _keep_best(self, improved: Mask) -> None:
        if (improved | self.done).all():
            self.best = self.now
        elif improved.any():
            self.best = self.now.where(self._device(improved), self.best)
        self.least = np.where(improved, self.current, self.least)

    def _record(self) -> None:
        seen = self.residual.copy()
        seen[self.sample[~self.done]] = self.current[~self.done]
        self.trace.append(seen)

    def _settle(self, finished: Mask, converged: Mask, far: Mask) -> None:
        if not np.count_nonzero(finished):
            return
        verdict = np.where(far | (self.current > DIVERGED * self.start), int(Status.DIVERGED), int(Status.MAX_STEPS))
        verdict = np.where(np.isfinite(self.current), verdict, int(Status.NONFINITE))
        verdict = np.where(converged, int(Status.CONVERGED), verdict)
        sample = self.sample[finished]
        self.status[sample] = verdict[finished]
        self.residual[sample] = np.where(np.isfinite(self.least), self.least, self.current)[finished]
        self.steps[self.sample] = np.where(finished, self.solver.spent(self.state, self.step), self.steps[self.sample])
        self.done |= finished

    def _dropping_pays(self, finished: int) -> bool:
        """Whether the rows that evaluations would be spared are twice those of the trial before the first drop."""
        live = ~self.done
        with np.errstate(divide="ignore", invalid="ignore"):
            to_go = np.log(self.current / self.limit)[live] / np.log(self.first / self.current)[live]
        iterations = max(self.step, 1) * np.max(np.where(to_go > 0, to_go, np.inf))
        return bool(iterations * finished > (0 if self.f.cut else 2 * np.count_nonzero(live)))

    def _drop(self, finished: int) -> int:
        keep = np.flatnonzero(~self.done)
        rows = self._device(keep)
        self.droppable = self.f.select(rows, self.now.z, self.now.fz)
        if not self.droppable:
            return finished
        self._write(np.flatnonzero(self.done))
        self.now, self.best = self.now.take(rows), self.best.take(rows)
        self.state = self.solver.select(self.state, rows)
        for name in ("sample", "done", "least", "first", "start", "current", "limit"):
            setattr(self, name, getattr(self, name)[keep])
        return 0

    def _write(self, rows: np.ndarray[Any, Any]) -> None:
        """Put the best iterates of these rows where they belong in the value."""
        if rows.size == self.value.shape[0]:
            self.value.copy_(self.best.z)
        else:
            self.value[self._device(self.sample[rows])] = self.best.z[self._device(rows)]

    def _device(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(self.value.device)
