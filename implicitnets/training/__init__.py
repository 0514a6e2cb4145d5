"""Ways to train models, implicit or not. A method is a frozen value; ``trainer`` binds it to a model."""

from __future__ import annotations

import re

from .. import values
from .backprop import Backprop
from .method import GradientTrainer, Loss, Method, Trainer, Unsupported

__all__ = ["Backprop", "GradientTrainer", "Loss", "Method", "Trainer", "Unsupported", "parse"]

CLASSES: dict[str, type[Method]] = {cls.__name__: cls for cls in (Backprop,)}
"""All methods by name."""


def parse(text: str) -> Method:
    """Read a method from text, its ``repr`` or a bare name: ``"backprop"``, ``"ProxProp(tau=10)"``.

    Raises:
        ValueError: If the text can't be read or names no method.
        TypeError: If an option does not exist.
    """
    if re.fullmatch(r"[A-Za-z-]+", text):  # a bare name: the literature's hyphens are not part of ours
        text = text.replace("-", "")
    method: Method = values.parse(text, CLASSES, what="method")
    return method
