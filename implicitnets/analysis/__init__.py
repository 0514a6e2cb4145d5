"""What can be measured and proved of a model: Jacobians at an equilibrium, invertibility, structure."""

from __future__ import annotations

from .attack import FGSM, PGD, AttackMethod, AttackResult, Sparse, attack
from .invertibility import invertibility
from .jacobian import jacobian_frobenius, spectral_norm
from .ladder import Invertibility, SingularElement
from .regions import Ball, Box, Cardinality, Region, region
from .slopes import activation_slopes
from .spectrum import DominantEigenvalue, dominant_eigenvalue, spectral_radius
from .structure import Compressed, Sparsity, compress, prune, sparsity

__all__ = [
    "FGSM",
    "PGD",
    "AttackMethod",
    "AttackResult",
    "Ball",
    "Box",
    "Cardinality",
    "Compressed",
    "DominantEigenvalue",
    "Invertibility",
    "Region",
    "SingularElement",
    "Sparse",
    "Sparsity",
    "activation_slopes",
    "attack",
    "compress",
    "dominant_eigenvalue",
    "invertibility",
    "jacobian_frobenius",
    "prune",
    "region",
    "sparsity",
    "spectral_norm",
    "spectral_radius",
]
