"""Feed-forward networks as implicit models, exactly, and back."""

from __future__ import annotations

from .back import to_layers
from .sequential import from_sequential

__all__ = ["from_sequential", "to_layers"]
