"""Solvers one after the other, each for the samples that the ones before could not solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..pytree import leaves, rebuild
from ..solution import Solution, Status
from .anderson import Anderson
from .base import Solver
from .newton import Newton

__all__ = ["Fallback"]


@dataclass(frozen=True, kw_only=True, init=False, repr=False)
class Fallback(Solver):
    """A chain of solvers, ``Fallback(Anderson(), Newton())``: each gets the samples that no one before it solved.

    It goes on from a sample's best iterate, or from z0 where the last solver diverged or met non-finite values. A
    sample that has converged keeps its value, and f is spared its rows where f can be cut. Steps and evaluations
    are sums over the chain. Without arguments it is Anderson's method and then Newton's.

    The chain has one tolerance and one budget of steps. Each is that of the solvers where it is not given here:
    their common tolerance, the sum of their ``max_steps``. Where it is given, it takes the place of theirs: a
    tolerance that of every solver, ``max_steps`` as a limit to the sum, with the last solver having what the
    others leave.

    Attributes:
        solvers: The chain, with the tolerances and limits that hold in it.

    Raises:
        TypeError: If one of them is not a Solver.
        ValueError: If their tolerances differ and none is given for all, or an option is out of range.
    """

    solvers: tuple[Solver, ...]

    remedies: ClassVar[str] = "more steps (max_steps=), a looser tolerance (rtol=), or a further solver in the chain"

    def __init__(
        self,
        *chain: Solver,
        solvers: Sequence[Solver] = (),
        rtol: float | None = None,
        atol: float | None = None,
        max_steps: int | None = None,
        record: bool | None = None,
    ) -> None:
        """Take the solvers in their order, one by one or as the sequence ``solvers``."""
        members = (*chain, *solvers) or (Anderson(), Newton())
        _check(members)
        options = {
            "rtol": _common("rtol", members) if rtol is None else rtol,
            "atol": _common("atol", members) if atol is None else atol,
            "max_steps": sum(member.max_steps for member in members) if max_steps is None else max_steps,
            "record": any(member.record for member in members) if record is None else record,
        }
        for name, value in options.items():
            object.__setattr__(self, name, value)
        self.__post_init__()
        object.__setattr__(self, "solvers", tuple(self._limited(members)))

    def _limited(self, members: Sequence[Solver]) -> list[Solver]:
        """The members with the tolerance of the chain and their shares of its steps."""
        shares: list[int] = []
        for member in members[:-1]:
            shares.append(min(member.max_steps, self.max_steps - sum(shares)))
        shares.append(self.max_steps - sum(shares))
        return [
            replace(member, rtol=self.rtol, atol=self.atol, max_steps=n, record=self.record)
            for member, n in zip(members, shares, strict=True)
        ]

    def __repr__(self) -> str:
        return f"Fallback({', '.join(map(repr, self.solvers))})"

    @torch.no_grad()
    def run(self, f: Callable[[Any], Any], z0: Any, *, fz0: Any = None) -> Solution:  # noqa: D102
        found = self.solvers[0].run(f, z0, fz0=fz0)
        for solver in self.solvers[1:]:
            if found.all_converged:
                break
            lost = (found.status == Status.DIVERGED) | (found.status == Status.NONFINITE)
            # The loop finds at once who has converged, and cuts f to the others after trying whether it may.
            found = _merge(found, solver.run(f, _where(lost, z0, found.value)))
        return found


def _check(members: Sequence[object]) -> None:
    """Check that these are Solvers.

    Raises:
        TypeError: If one is not, or is a class.
    """
    for member in members:
        if not isinstance(member, Solver):
            shown = member.__name__ if isinstance(member, type) else repr(member)
            raise TypeError(f"Fallback({shown}): the chain must consist of Solvers, e.g. Fallback(Anderson())")


def _common(name: str, members: Sequence[Solver]) -> float:
    """The tolerance that the members share.

    Raises:
        ValueError: If they have different ones.
    """
    seen = sorted({getattr(member, name) for member in members})
    if len(seen) > 1:
        raise ValueError(
            f"Fallback: its solvers have different tolerances, {name} = {', '.join(map(repr, seen))}; "
            f"give the one that holds for all, e.g. Fallback(..., {name}={seen[0]!r})"
        )
    return float(seen[0])


def _merge(first: Solution, second: Solution) -> Solution:
    """Of each sample the better result, with the steps of both where the second was needed."""
    better = ~first.converged & (second.converged | ~(first.residual < second.residual))
    trace = None
    if first.trace is not None and second.trace is not None:
        trace = torch.cat((first.trace, torch.where(first.converged, first.residual, second.trace)))
    return Solution(
        value=_where(better, second.value, first.value),
        residual=torch.where(better, second.residual, first.residual),
        steps=first.steps + torch.where(first.converged, 0, second.steps),
        status=torch.where(better, second.status, first.status),
        evaluations=first.evaluations + second.evaluations,
        trace=trace,
    )


def _where(mask: Tensor, yes: Any, no: Any) -> Any:
    """The state ``yes`` in the samples where ``mask`` is true, ``no`` elsewhere."""
    others = iter(leaves(no))
    return rebuild(lambda leaf: torch.where(mask.view(-1, *[1] * (leaf.dim() - 1)), leaf, next(others)), yes)
