"""What can be measured and proved of a model: well-posedness, sensitivity, robustness, invertibility, Jacobians."""

from __future__ import annotations

from .attack import FGSM, PGD, AttackMethod, AttackResult, Sparse, attack
from .invertibility import invertibility
from .jacobian import jacobian_frobenius, spectral_norm
from .ladder import Invertibility, SingularElement
from .lipschitz import Lipschitz, lipschitz
from .regions import Ball, Box, Cardinality, Region, region
from .sensitivity import Sensitivity, sensitivity
from .slopes import activation_slopes
from .spectrum import DominantEigenvalue, dominant_eigenvalue, spectral_radius
from .twins import Twins
from .wellposed import WellPosedness, well_posedness

__all__ = [
    "FGSM",
    "PGD",
    "AttackMethod",
    "AttackResult",
    "Ball",
    "Box",
    "Cardinality",
    "DominantEigenvalue",
    "Invertibility",
    "Lipschitz",
    "Region",
    "Sensitivity",
    "SingularElement",
    "Sparse",
    "Twins",
    "WellPosedness",
    "activation_slopes",
    "attack",
    "dominant_eigenvalue",
    "invertibility",
    "jacobian_frobenius",
    "lipschitz",
    "region",
    "sensitivity",
    "spectral_norm",
    "spectral_radius",
    "well_posedness",
]
