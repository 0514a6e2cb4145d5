"""Implicit models as modules."""

from __future__ import annotations

from . import algebra, structures
from .config import Configurable, from_config
from .convert import SkipLayers, from_sequential, to_layers
from .deq import DEQ, Equilibrium
from .implicit import ACTIVATIONS, ImplicitModel
from .scaling import pf_eigenvalue, rescale
from .starts import LearnedStart, Start, WarmStart

__all__ = [
    "ACTIVATIONS",
    "DEQ",
    "Configurable",
    "Equilibrium",
    "ImplicitModel",
    "LearnedStart",
    "SkipLayers",
    "Start",
    "WarmStart",
    "algebra",
    "from_config",
    "from_sequential",
    "pf_eigenvalue",
    "rescale",
    "structures",
    "to_layers",
]
