"""The methods by name, from cheap to exact."""

from __future__ import annotations

from .base import Bounder
from .crown import Crown
from .lp import LinearProgram
from .milp import MixedInteger
from .sdp import Semidefinite
from .simple import ClosedForm, Interval, MonotoneBall
from .zonotope import Zonotope

__all__ = ["METHODS", "rungs"]

CROWN: tuple[Bounder, ...] = (Crown(rounds=0, tries=0), Crown(rounds=2, tries=0), Crown())

METHODS: dict[str, tuple[Bounder, ...]] = {
    "closed_form": (ClosedForm(),),
    "monotone_ball": (MonotoneBall(),),
    "interval": (Interval(),),
    "crown": CROWN,
    "zonotope": (Interval(), Zonotope()),
    "lp": (Interval(), *CROWN, LinearProgram()),
    "sdp": (Interval(), *CROWN, Semidefinite()),
    "milp": (Interval(), *CROWN, MixedInteger()),
    "auto": (Interval(), *CROWN, MixedInteger(time_limit=5.0)),
}
"""What ``method=`` can be, and the bounders that stand for it: each for the samples that those before left undecided,
with the bounds that they found."""


def rungs(method: str | Bounder) -> tuple[Bounder, ...]:
    """The bounders to try one after the other.

    Raises:
        ValueError: If no method has that name.
        TypeError: If method is neither a name nor a bounder.
    """
    if isinstance(method, Bounder):
        return (method,)
    if not isinstance(method, str):
        raise TypeError(f"method={method!r} is neither a name, e.g. 'auto', nor a bounder, e.g. Crown(rounds=3)")
    if method not in METHODS:
        raise ValueError(f"method={method!r}: the methods are {', '.join(METHODS)}, and bounders such as Crown()")
    return METHODS[method]
