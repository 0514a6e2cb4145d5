"""Implicit models as modules."""

from __future__ import annotations

from . import algebra, structures
from .config import Configurable, from_config
from .convolutional import MonotoneConvDEQ, MonotoneMultiTierDEQ
from .deq import DEQ, Equilibrium
from .implicit import ACTIVATIONS, ImplicitModel
from .lipschitz import LipschitzDEQ
from .monotone import IntervalMonotoneDEQ, MonotoneDEQ, UniqueEquilibrium
from .noneuclidean import NonEuclideanDEQ
from .operators import dense
from .proximal import PROXIMAL
from .scaling import pf_eigenvalue, rescale
from .split import SplitMap
from .starts import LearnedStart, Start, WarmStart

__all__ = [
    "ACTIVATIONS",
    "DEQ",
    "PROXIMAL",
    "Configurable",
    "Equilibrium",
    "ImplicitModel",
    "IntervalMonotoneDEQ",
    "LearnedStart",
    "LipschitzDEQ",
    "MonotoneConvDEQ",
    "MonotoneDEQ",
    "MonotoneMultiTierDEQ",
    "NonEuclideanDEQ",
    "SplitMap",
    "Start",
    "UniqueEquilibrium",
    "WarmStart",
    "algebra",
    "dense",
    "from_config",
    "pf_eigenvalue",
    "rescale",
    "structures",
]
