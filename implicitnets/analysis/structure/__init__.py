"""What the weights of a model are like, and smaller models that do the same or nearly the same."""

from __future__ import annotations

from .change import output_change
from .duplicates import Duplicates
from .factors import LowRank, Match, Quantize, Share
from .order import Order
from .posed import Proof
from .pruning import Exact, Inputs, Magnitude, Salience, Shrink, States
from .reduction import Reduction
from .sparsity import Spectrum

__all__ = [
    "Duplicates",
    "Exact",
    "Inputs",
    "LowRank",
    "Magnitude",
    "Match",
    "Order",
    "Proof",
    "Quantize",
    "Reduction",
    "Salience",
    "Share",
    "Shrink",
    "Spectrum",
    "States",
    "output_change",
]
