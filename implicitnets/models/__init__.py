"""Implicit models as modules."""

from __future__ import annotations

from . import algebra, structures
from .config import Configurable, from_config
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
    "Start",
    "WarmStart",
    "algebra",
    "from_config",
    "pf_eigenvalue",
    "rescale",
    "structures",
]
