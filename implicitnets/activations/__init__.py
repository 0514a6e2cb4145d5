"""Activations of implicit models as values: component-wise by name, on groups of rows, and mixtures of these."""

from __future__ import annotations

from typing import Any

from .. import values
from .base import Activation
from .blocks import Blocks, Scaled, as_activation, plain
from .groups import ACTIVATIONS, Componentwise, GroupSort, LayerNorm, MaxPool, Product, Softmax

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Blocks",
    "Componentwise",
    "GroupSort",
    "LayerNorm",
    "MaxPool",
    "Product",
    "Scaled",
    "Softmax",
    "as_activation",
    "parse",
    "plain",
]

CLASSES: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (Blocks, GroupSort, LayerNorm, MaxPool, Product, Scaled, Softmax)
}


def parse(text: str) -> str | Activation:
    """Read an activation: a name in ``ACTIVATIONS``, which stays one, or the ``repr`` of a value.

    Raises:
        ValueError: If the text can't be read or names no activation.
        TypeError: If an option does not exist.
    """
    if text.isidentifier() and text not in CLASSES:
        name: str = plain(as_activation(text))
        return name
    found: Activation = values.parse(text, CLASSES, what="activation")
    return found
