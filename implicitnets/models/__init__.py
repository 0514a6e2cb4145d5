"""Implicit models as modules."""

from __future__ import annotations

from . import algebra, structures
from .adjacency import Graph
from .config import Configurable, from_config
from .convert import SkipLayers, from_sequential, to_layers
from .deq import DEQ, Equilibrium
from .graph import ImplicitGraph
from .implicit import ACTIVATIONS, ImplicitModel
from .qp import QPLayer, QPSolution
from .scaling import pf_eigenvalue, rescale
from .sparse_coding import SparseCoding
from .starts import LearnedStart, Start, WarmStart

__all__ = [
    "ACTIVATIONS",
    "DEQ",
    "Configurable",
    "Equilibrium",
    "Graph",
    "ImplicitGraph",
    "ImplicitModel",
    "LearnedStart",
    "QPLayer",
    "QPSolution",
    "SkipLayers",
    "SparseCoding",
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
