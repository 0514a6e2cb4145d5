"""What can be measured and proved of a model: Jacobians at an equilibrium, invertibility, structure."""

from __future__ import annotations

from .attack import FGSM, PGD, Attackable, AttackMethod, AttackResult, Sparse, attack
from .certify import (
    Answer,
    Bounder,
    Bounds,
    Certificate,
    Certificates,
    ClosedForm,
    Crown,
    Interval,
    LinearProgram,
    MixedInteger,
    MonotoneBall,
    Problem,
    Semidefinite,
    Verdict,
    Zonotope,
    certify,
    reachable,
)
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
    "Answer",
    "AttackMethod",
    "AttackResult",
    "Attackable",
    "Ball",
    "Bounder",
    "Bounds",
    "Box",
    "Cardinality",
    "Certificate",
    "Certificates",
    "ClosedForm",
    "Compressed",
    "Crown",
    "DominantEigenvalue",
    "Interval",
    "Invertibility",
    "LinearProgram",
    "MixedInteger",
    "MonotoneBall",
    "Problem",
    "Region",
    "Semidefinite",
    "SingularElement",
    "Sparse",
    "Sparsity",
    "Verdict",
    "Zonotope",
    "activation_slopes",
    "attack",
    "certify",
    "compress",
    "dominant_eigenvalue",
    "invertibility",
    "jacobian_frobenius",
    "prune",
    "reachable",
    "region",
    "sparsity",
    "spectral_norm",
    "spectral_radius",
]
