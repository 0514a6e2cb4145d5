"""Solvers: ways to find z = f(z), each sample on its own. A solver is a frozen value."""

from __future__ import annotations

from typing import Any

from .. import nonsmooth, values
from .adapters import SciPy, TorchDEQ
from .anderson import Anderson
from .base import Iterative, Solver
from .broyden import Broyden
from .dense import Dense
from .fallback import Fallback
from .krylov import GMRES, BiCGSTAB
from .loop import Iterate
from .newton import Newton
from .packed import Affine, PackedMap, Selectable
from .parts import Operator, Separable, SplitJacobian, Splittable, Splitting
from .picard import Picard
from .splitting import ForwardBackward, PeacemanRachford

__all__ = [
    "GMRES",
    "Affine",
    "Anderson",
    "BiCGSTAB",
    "Broyden",
    "Dense",
    "Fallback",
    "ForwardBackward",
    "Iterate",
    "Iterative",
    "Newton",
    "Operator",
    "PackedMap",
    "PeacemanRachford",
    "Picard",
    "SciPy",
    "Selectable",
    "Separable",
    "Solver",
    "SplitJacobian",
    "Splittable",
    "Splitting",
    "TorchDEQ",
    "by_name",
    "parse",
]

CLASSES: dict[str, type[Solver]] = {
    cls.__name__: cls
    for cls in (
        Anderson,
        BiCGSTAB,
        Broyden,
        Dense,
        Fallback,
        ForwardBackward,
        GMRES,
        Newton,
        PeacemanRachford,
        Picard,
        SciPy,
        TorchDEQ,
    )
}
"""All solvers by name."""


def by_name(name: str, /, **options: Any) -> Solver:
    """The solver of that name, upper or lower case, with its options: ``by_name("anderson", memory=5)``.

    The foreign solvers take the name of theirs as ``by_name("scipy", name="hybr")``.

    Raises:
        ValueError: If there is no such solver (the text lists those that exist), or an option has a bad value.
        TypeError: If the solver has no such option.
    """
    return values.build(name, CLASSES, options, what="solver")


def parse(text: str) -> Solver:
    """Read a solver from text, its ``repr`` or a bare name: ``"anderson"``, ``"Newton(linear=GMRES(restart=10))"``.

    Raises:
        ValueError: If the text can't be read or names no solver.
        TypeError: If an option does not exist, or a name is that of a selection.
    """
    found = values.parse(text, {**CLASSES, **nonsmooth.CLASSES}, what="solver")
    if not isinstance(found, Solver):
        raise TypeError(f"{text!r} is a selection, not a solver: write for instance Newton(selection={found!r})")
    return found
