"""Nonsmooth maps: the derivative at kinks is the user's choice, and what there is to choose from can be seen."""

from __future__ import annotations

from .check import DirectionalCheck, directional_check
from .selection import CLASSES, Autograd, Left, Midpoint, Random, Right, Selection, Slope
from .subdifferential import b_subdifferential
from .watching import Kinks, kinks

__all__ = [
    "CLASSES",
    "Autograd",
    "DirectionalCheck",
    "Kinks",
    "Left",
    "Midpoint",
    "Random",
    "Right",
    "Selection",
    "Slope",
    "b_subdifferential",
    "directional_check",
    "kinks",
]
