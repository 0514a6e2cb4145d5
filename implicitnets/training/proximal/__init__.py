"""ProxProp (Frerix, Möllenhoff, Möller and Cremers 2018), for feed-forward and implicit models."""

from __future__ import annotations

from .constrained import Projection
from .handle import ProxPropHandle
from .method import ProxProp, proxprop
from .metric import Metric
from .sweep import Sweep

__all__ = ["Metric", "Projection", "ProxProp", "ProxPropHandle", "Sweep", "proxprop"]
