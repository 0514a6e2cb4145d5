"""Backwards: ways to differentiate a solution. A backward is a frozen value."""

from __future__ import annotations

from .. import nonsmooth, solvers, values
from .base import Backward, Equation, Report
from .error import error_bound, estimate_error
from .implicit import Implicit
from .reversible import Reversible
from .shine import Shine
from .unroll import Unroll

__all__ = [
    "Backward",
    "Equation",
    "Implicit",
    "Report",
    "Reversible",
    "Shine",
    "Unroll",
    "error_bound",
    "estimate_error",
    "parse",
]

CLASSES: dict[str, type[Backward]] = {cls.__name__: cls for cls in (Implicit, Reversible, Shine, Unroll)}
"""All backwards by name."""


def parse(text: str) -> Backward:
    """Read a backward from text, its ``repr`` or a bare name: ``"Implicit(solver=Anderson(rtol=1e-3))"``, ``"unroll"``.

    Raises:
        ValueError: If the text can't be read or names no backward.
        TypeError: If an option does not exist, or a name is that of a solver or a selection.
    """
    found = values.parse(text, {**CLASSES, **solvers.CLASSES, **nonsmooth.CLASSES}, what="backward")
    if not isinstance(found, Backward):
        kind = "solver" if isinstance(found, solvers.Solver) else "selection"
        raise TypeError(f"{text!r} is a {kind}, not a backward: write Implicit({kind}={found!r})")
    return found
