"""The record of a solve, and the warning that goes with one that failed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["ConvergenceWarning", "Solution", "Status", "amended", "warn_unconverged"]


class Status(IntEnum):
    """How the solve of one sample ended."""

    CONVERGED = 0
    """The residual met the tolerance."""
    MAX_STEPS = 1
    """The budget of steps was spent first."""
    DIVERGED = 2
    """The residual grew instead of falling."""
    NONFINITE = 3
    """The map returned an infinite or undefined value."""


_CONVERGED = int(Status.CONVERGED)  # an enumeration is slow to compare with


class ConvergenceWarning(RuntimeWarning):
    """Some samples of a solve did not converge.

    To make this an error: ``warnings.simplefilter("error", ConvergenceWarning)``.
    """


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a solver found: a state z with z ≈ f(z), sample by sample.

    Attributes:
        value: The state, of the structure, shapes and dtypes of the starting point; for each sample the best
            iterate that was measured.
        residual: ‖f(z) − z‖₂ at ``value`` for each sample, shape ``(batch,)``, over all leaves of the state.
        steps: Solver steps spent on each sample, int64 of shape ``(batch,)``.
        status: A ``Status`` for each sample, int64 of shape ``(batch,)``.
        evaluations: How often f was called (each call is on the batch, or on what is left of it).
        trace: The residual of each sample at each iteration, shape ``(iterations, batch)``, if the solver was
            told to ``record`` it, else None. A finished sample keeps its last residual.
        error: Of the linear equation of a gradient, a bound or an estimate of the relative error of its solution, in
            the Euclidean norm, for each sample, shape ``(batch,)``, if ``Implicit(contraction=...)`` asks for one.
    """

    value: Any
    residual: Tensor
    steps: Tensor
    status: Tensor
    evaluations: int
    trace: Tensor | None = None
    error: Tensor | None = None

    @property
    def converged(self) -> Tensor:
        """Which samples met the tolerance, bool of shape ``(batch,)``."""
        return self.status == _CONVERGED

    @property
    def all_converged(self) -> bool:
        """Whether every sample met the tolerance."""
        try:
            return not np.count_nonzero(self.status.numpy())  # a quarter of the time, and a solve asks several times
        except (RuntimeError, TypeError):  # inside torch.func, or on another device
            return not bool(self.status.any())


def amended(solution: Solution, **changes: Any) -> Solution:
    """As ``dataclasses.replace``, at a fifth of its time: there are several in each solve."""
    new = object.__new__(Solution)
    new.__dict__.update(solution.__dict__, **changes)
    return new


_CAUSES = {
    Status.MAX_STEPS: "ran out of steps",
    Status.DIVERGED: "diverged",
    Status.NONFINITE: "met non-finite values",
}


def warn_unconverged(solution: Solution, solver: object, *, what: str, remedies: str, stacklevel: int = 2) -> None:
    """Warn if a sample of ``solution`` did not converge: how many, how far off, why, and what to try.

    Args:
        solution: The record to judge.
        solver: Named in the text.
        what: What was being solved, e.g. "fixed point" or "gradient".
        remedies: What the user can try.
        stacklevel: As for ``warnings.warn``, counted from the caller of this function.

    Warns:
        ConvergenceWarning: If any sample's status is not CONVERGED.
    """
    if solution.all_converged:
        return
    failed = ~solution.converged
    causes = [f"{n} {text}" for status, text in _CAUSES.items() if (n := int((solution.status == status).sum()))]
    residual = solution.residual[failed]
    worst = float(torch.where(residual.isnan(), torch.inf, residual).max())
    warnings.warn(
        f"{what}: {int(failed.sum())} of {failed.numel()} samples did not converge ({', '.join(causes)}; "
        f"largest residual {worst:.2e}) with {solver!r}. Their value is the best iterate found. Try {remedies}.",
        ConvergenceWarning,
        stacklevel=stacklevel + 1,
    )
