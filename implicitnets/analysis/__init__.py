"""What can be measured and proved of a model: Jacobians at an equilibrium, invertibility."""

from __future__ import annotations

from .attack import (
    FGSM,
    PGD,
    SPSA,
    Attackable,
    AttackMethod,
    AttackResult,
    Check,
    Masking,
    Noise,
    Sparse,
    attack,
    check_masking,
)
from .certify import (
    Bounder,
    Bounds,
    Certificate,
    Certificates,
    ClosedForm,
    Crown,
    Interval,
    MonotoneBall,
    Problem,
    Verdict,
    certify,
    reachable,
)
from .invertibility import invertibility
from .jacobian import jacobian_frobenius, spectral_norm
from .ladder import Invertibility, SingularElement
from .regions import Ball, Box, Cardinality, Region, region
from .slopes import activation_slopes
from .spectrum import DominantEigenvalue, dominant_eigenvalue, spectral_radius

__all__ = [
    "FGSM",
    "PGD",
    "SPSA",
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
    "Check",
    "ClosedForm",
    "Crown",
    "DominantEigenvalue",
    "Interval",
    "Invertibility",
    "Masking",
    "MonotoneBall",
    "Noise",
    "Problem",
    "Region",
    "SingularElement",
    "Sparse",
    "Verdict",
    "activation_slopes",
    "attack",
    "certify",
    "check_masking",
    "dominant_eigenvalue",
    "invertibility",
    "jacobian_frobenius",
    "reachable",
    "region",
    "spectral_norm",
    "spectral_radius",
]
