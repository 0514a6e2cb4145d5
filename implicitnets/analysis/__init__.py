"""What can be measured and proved of a model: well-posedness, sensitivity, robustness, structure, Jacobians."""

from __future__ import annotations

from .attack import (
    FGSM,
    PGD,
    SPSA,
    Attackable,
    AttackMethod,
    AttackResult,
    Check,
    LinearProgramAttack,
    Masking,
    Noise,
    Sparse,
    attack,
    check_masking,
)
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
from .lipschitz import Lipschitz, lipschitz
from .regions import Ball, Box, Cardinality, Region, region
from .sensitivity import Sensitivity, sensitivity
from .slopes import activation_slopes
from .spectrum import DominantEigenvalue, dominant_eigenvalue, spectral_radius
from .structure import Compressed, Sparsity, compress, prune, sparsity
from .twins import Twins
from .wellposed import WellPosedness, well_posedness

__all__ = [
    "FGSM",
    "PGD",
    "SPSA",
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
    "Check",
    "ClosedForm",
    "Compressed",
    "Crown",
    "DominantEigenvalue",
    "Interval",
    "Invertibility",
    "LinearProgram",
    "LinearProgramAttack",
    "Lipschitz",
    "Masking",
    "MixedInteger",
    "MonotoneBall",
    "Noise",
    "Problem",
    "Region",
    "Semidefinite",
    "Sensitivity",
    "SingularElement",
    "Sparse",
    "Sparsity",
    "Twins",
    "Verdict",
    "WellPosedness",
    "Zonotope",
    "activation_slopes",
    "attack",
    "certify",
    "check_masking",
    "compress",
    "dominant_eigenvalue",
    "invertibility",
    "jacobian_frobenius",
    "lipschitz",
    "prune",
    "reachable",
    "region",
    "sensitivity",
    "sparsity",
    "spectral_norm",
    "spectral_radius",
    "well_posedness",
]
