"""What the weights of a model are like, and smaller models that do the same or nearly the same."""

from __future__ import annotations

from .change import output_change
from .compress import Compressed, compress, prune
from .duplicates import Duplicates
from .factors import LowRank, Match, Quantize, Share
from .order import Order
from .posed import Proof
from .pruning import Exact, Inputs, Magnitude, Salience, Shrink, States
from .reduction import Reduction
from .sparsity import Sparsity, Spectrum, sparsity

__all__ = [
    "Compressed",
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
    "Sparsity",
    "Spectrum",
    "States",
    "compress",
    "output_change",
    "prune",
    "sparsity",
]
