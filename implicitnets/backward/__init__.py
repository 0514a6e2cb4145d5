"""Backwards: ways to differentiate a solution. A backward is a frozen value."""

from __future__ import annotations

from .. import solvers, values
from .base import Backward, Equation, Report
from .implicit import Implicit
from .unroll import Unroll

__all__ = ["Backward", "Equation", "Implicit", "Report", "Unroll", "parse"]

CLASSES: dict[str, type[Backward]] = {"Implicit": Implicit, "Unroll": Unroll}
"""All backwards by name."""


def parse(text: str) -> Backward:
    """Read a backward from text, its ``repr`` or a bare name: ``"Implicit(solver=Anderson(rtol=1e-3))"``, ``"unroll"``.

    Raises:
        ValueError: If the text can't be read or names no backward.
        TypeError: If an option does not exist, or a name is that of a solver.
    """
    found = values.parse(text, {**CLASSES, **solvers.CLASSES}, what="backward")
    if not isinstance(found, Backward):
        raise TypeError(f"{text!r} is a solver, not a backward: write Implicit(solver={found!r})")
    return found
