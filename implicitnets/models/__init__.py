"""Implicit models as modules."""

from __future__ import annotations

from typing import Any

from .deq import DEQ, Equilibrium
from .implicit import ACTIVATIONS, ImplicitModel

__all__ = ["ACTIVATIONS", "DEQ", "Equilibrium", "ImplicitModel", "from_config"]

CLASSES = {"ImplicitModel": ImplicitModel}
"""The models that can be written down and built again."""


def from_config(config: dict[str, Any]) -> Equilibrium:
    """The model that a ``config()`` describes, with new weights.

    Raises:
        ValueError: If no such model exists, or an entry can't be read.
        TypeError: If an entry is missing or unknown.
    """
    name = config.get("model")
    if name not in CLASSES:
        raise ValueError(f"no model is called {name!r}. There are: {', '.join(CLASSES)}")
    return CLASSES[name].from_config(config)
