"""Lifted training: states and weights in turn, on an energy that penalizes states which are not those of the model."""

from __future__ import annotations

from .energy import LiftedEnergy
from .trainer import Lifted

__all__ = ["Lifted", "LiftedEnergy"]
