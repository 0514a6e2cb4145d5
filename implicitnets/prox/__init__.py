"""Penalties with their proximal maps, in any diagonal metric. A penalty is a frozen value."""

from __future__ import annotations

from typing import Any

from .. import values
from .base import Indicator, Prox, Step
from .groups import GroupL1, LInf, Nuclear
from .sets import Box, InfNormBall, NonNegative, Simplex
from .shrinkage import L0, L1, L2, L12, L23, Binary, ReverseHuber, Shrinkage

__all__ = [
    "L0",
    "L1",
    "L2",
    "L12",
    "L23",
    "Binary",
    "Box",
    "GroupL1",
    "Indicator",
    "InfNormBall",
    "LInf",
    "NonNegative",
    "Nuclear",
    "Prox",
    "ReverseHuber",
    "Shrinkage",
    "Simplex",
    "Step",
    "by_name",
    "parse",
]

CLASSES: dict[str, type[Prox]] = {
    cls.__name__: cls
    for cls in (
        *(L0, L1, L12, L23, L2, ReverseHuber, Binary, Box, GroupL1),
        *(InfNormBall, LInf, NonNegative, Nuclear, Simplex),
    )
}
"""All penalties by name."""


def by_name(name: str, /, **options: Any) -> Prox:
    """The penalty of that name, upper or lower case, with its options: ``by_name("l1", weight=1e-4)``.

    Raises:
        ValueError: If there is no such penalty (the text lists those that exist), or an option has a bad value.
        TypeError: If the penalty has no such option.
    """
    return values.build(name, CLASSES, options, what="penalty")


def parse(text: str) -> Prox:
    """Read a penalty from text, its ``repr`` or a bare name: ``"l1"``, ``"Binary(distance=L12(weight=1e-3))"``.

    Raises:
        ValueError: If the text can't be read or names no penalty.
        TypeError: If an option does not exist.
    """
    penalty: Prox = values.parse(text, CLASSES, what="penalty")
    return penalty
