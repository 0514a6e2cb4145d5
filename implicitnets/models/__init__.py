"""Implicit models as modules."""

from __future__ import annotations

from . import algebra, structures
from .adjacency import Graph
from .affine import AffineForm, NotAffine
from .cells import ConvCell, DenseCell, TransformerCell
from .config import Configurable, from_config
from .convert import SkipLayers, from_sequential, to_layers
from .convolutional import ConvDEQ
from .deq import DEQ, Equilibrium
from .folding import affine
from .graph import ImplicitGraph
from .implicit import ACTIVATIONS, ImplicitModel
from .lipschitz import LipschitzDEQ
from .monotone import IntervalMonotoneDEQ, MonotoneDEQ, UniqueEquilibrium
from .monotone_conv import MonotoneConvDEQ, MonotoneMultiTierDEQ
from .multiscale import MultiscaleCell, MultiscaleDEQ
from .noneuclidean import NonEuclideanDEQ
from .operators import dense
from .proximal import PROXIMAL
from .qp import QPLayer, QPSolution
from .recurrent import ImplicitRNN
from .scaling import pf_eigenvalue, rescale
from .sparse_coding import SparseCoding
from .split import SplitMap
from .starts import LearnedStart, Start, WarmStart
from .transformer import DEQTransformer

__all__ = [
    "ACTIVATIONS",
    "DEQ",
    "PROXIMAL",
    "AffineForm",
    "Configurable",
    "ConvCell",
    "ConvDEQ",
    "DEQTransformer",
    "DenseCell",
    "Equilibrium",
    "Graph",
    "ImplicitGraph",
    "ImplicitModel",
    "ImplicitRNN",
    "IntervalMonotoneDEQ",
    "LearnedStart",
    "LipschitzDEQ",
    "MonotoneConvDEQ",
    "MonotoneDEQ",
    "MonotoneMultiTierDEQ",
    "MultiscaleCell",
    "MultiscaleDEQ",
    "NonEuclideanDEQ",
    "NotAffine",
    "QPLayer",
    "QPSolution",
    "SkipLayers",
    "SparseCoding",
    "SplitMap",
    "Start",
    "TransformerCell",
    "UniqueEquilibrium",
    "WarmStart",
    "affine",
    "algebra",
    "dense",
    "from_config",
    "from_sequential",
    "pf_eigenvalue",
    "rescale",
    "structures",
    "to_layers",
]
