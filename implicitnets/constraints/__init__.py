"""Constraints that keep a model well-posed by construction, as parametrizations of its weights."""

from __future__ import annotations

from typing import Any

from .. import activations, values
from .base import Constraint
from .blocks import BlockNorm, block_norm
from .euclidean import Monotone, SpectralNorm, monotone, spectral_norm
from .infinity import InfNorm, PerronFrobenius, inf_norm, perron_frobenius

__all__ = [
    "BlockNorm",
    "Constraint",
    "InfNorm",
    "Monotone",
    "PerronFrobenius",
    "SpectralNorm",
    "block_norm",
    "inf_norm",
    "monotone",
    "parse",
    "perron_frobenius",
    "spectral_norm",
]

CLASSES: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (InfNorm, BlockNorm, Monotone, PerronFrobenius, SpectralNorm)
}
"""All constraints by name."""


def parse(text: str) -> Constraint:
    """Read a constraint from its ``repr``: ``"InfNorm(kappa=0.9)"``.

    Raises:
        ValueError: If the text can't be read or names no constraint.
        TypeError: If an option does not exist, or the text is an activation.
    """
    found = values.parse(text, {**CLASSES, **activations.CLASSES}, what="constraint")
    if not isinstance(found, Constraint):
        raise TypeError(f"{text!r} is an activation, not a constraint: write for instance InfNorm()")
    return found
