"""Feed-forward networks as implicit models, exactly, and back."""

from __future__ import annotations

from .back import to_layers
from .modules import SkipLayers
from .sequential import from_sequential

__all__ = ["SkipLayers", "from_sequential", "to_layers"]
