"""The interface of a solver, and what makes one of a single mathematical step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar, final

import torch
from torch import Tensor

from ..pytree import Layout, leaves
from ..solution import Solution, warn_unconverged
from .loop import Iterate, Loop
from .packed import PackedMap

__all__ = ["Iterative", "Solver", "require"]

StateT = TypeVar("StateT")


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """A way to find z = f(z), each sample on its own. A value: frozen, comparable, printable.

    A sample has converged when ‖f(z) − z‖₂ ≤ atol + rtol · ‖f(z)‖₂, norms over all entries of its state.

    Attributes:
        rtol: Tolerance relative to ‖f(z)‖.
        atol: Absolute tolerance.
        max_steps: Steps that a sample may take.
        record: Keep the residuals of all iterations in ``Solution.trace``.

    Raises:
        ValueError: If a tolerance or ``max_steps`` is negative, or both tolerances are zero.
    """

    rtol: float = 1e-4
    atol: float = 1e-6
    max_steps: int = 50
    record: bool = False

    remedies: ClassVar[str] = "more steps (max_steps=), a looser tolerance (rtol=), or another solver"

    def __post_init__(self) -> None:
        require(self.rtol >= 0, self, "rtol", self.rtol, "at least 0, e.g. 1e-4")
        require(self.atol >= 0, self, "atol", self.atol, "at least 0, e.g. 1e-6")
        require(self.rtol + self.atol > 0, self, "atol", self.atol, "positive where rtol is 0")
        require(self.max_steps >= 0, self, "max_steps", self.max_steps, "at least 0")

    def solve(self, f: Callable[[Any], Any], z0: Any, *, fz0: Any = None) -> Solution:
        """Find z = f(z) from ``z0``, without derivatives.

        Args:
            f: The map. It gets a state like ``z0`` (a tensor, or a pytree of tensors, batch first) and returns
                one. If it also has ``select(rows)``, finished samples are dropped from the batch.
            z0: Where to start.
            fz0: f(z0), if it is known already.

        Returns:
            The record of the solve; the value has no gradient (``implicitnets.fixed_point`` gives it one).

        Raises:
            TypeError: If z0 is not of floating point or f(z) is not built like z.
            ValueError: If z0 has no batch axis, or the shape of f(z) differs from z's.

        Warns:
            ConvergenceWarning: If a sample did not converge.
        """
        solution = self.run(f, z0, fz0=fz0)
        warn_unconverged(solution, self, what="fixed point", remedies=self.remedies)
        return solution

    def at_least(self, rtol: float) -> Solver:
        """This solver with a relative tolerance of at least ``rtol``."""
        return replace(self, rtol=max(self.rtol, rtol))

    @abstractmethod
    def run(self, f: Callable[[Any], Any], z0: Any, *, fz0: Any = None) -> Solution:
        """As ``solve``, but leaves it to the caller to look at the status: no warning."""


def require(fact: bool, owner: object, name: str, value: object, meaning: str) -> None:
    """Raise unless ``fact`` holds of an option.

    Raises:
        ValueError: Naming the option, its value and what it should be.
    """
    if not fact:
        raise ValueError(f"{type(owner).__name__}({name}={value!r}): {name} must be {meaning}")


@dataclass(frozen=True, kw_only=True)
class Iterative(Solver, Generic[StateT]):
    """A solver that is one mathematical step, repeated by the shared loop.

    To write one: ``init`` makes what the steps remember, ``step`` goes from one iterate to the next point. A
    state that ``forget`` and ``select`` have to know about overrides those too.
    """

    growth: ClassVar[float | None] = None
    """Where set, a sample whose residual exceeds this multiple of its best goes back there and restarts."""

    def init(self, z: Tensor) -> StateT:
        """What the steps remember, for a batch of points ``z`` of shape ``(rows, size)``."""
        return None  # type: ignore[return-value]

    @abstractmethod
    def step(self, f: PackedMap, now: Iterate, state: StateT) -> Tensor:
        """The next point for every row. It must not change ``now`` in place; it may change ``state``."""

    def forget(self, state: StateT, rows: Tensor, now: Iterate) -> None:
        """Forget the past of ``rows`` (bool), which are back at their best iterate in ``now``."""

    def select(self, state: StateT, rows: Tensor) -> StateT:
        """The state of ``rows`` (int64 indices) alone."""
        return state

    @property
    def rounds(self) -> int:
        """How many steps the loop may take."""
        return self.max_steps

    def spent(self, state: StateT, step: int) -> Any:
        """What to report as the steps of each row after ``step`` steps of the loop."""
        return step

    @final
    @torch.no_grad()
    def run(self, f: Callable[[Any], Any], z0: Any, *, fz0: Any = None) -> Solution:  # noqa: D102
        layout = Layout.of(z0)
        packed = PackedMap(f, layout)
        z = layout.pack([leaf.detach() for leaf in leaves(z0)])
        if fz0 is not None:
            packed.remember(z, fz0)
        loop: Loop[StateT] = Loop(self, packed, z)
        while loop.measure():
            loop.advance()
        return loop.solution()
