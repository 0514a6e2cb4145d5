"""What can be measured and proved of a model: well-posedness, sensitivity, robustness, structure, Jacobians."""

from __future__ import annotations

from .attacks.adapter import Attackable
from .attacks.blackbox import SPSA, Noise
from .attacks.lp import LinearProgramAttack
from .attacks.masking import Check, Masking, check_masking
from .attacks.methods import FGSM, PGD, AttackMethod
from .attacks.result import AttackResult
from .attacks.run import attack
from .attacks.sparse import Sparse
from .certificates.base import Answer, Bounder
from .certificates.certificate import Certificate, Certificates, Verdict
from .certificates.crown import Crown
from .certificates.lp import LinearProgram
from .certificates.milp import MixedInteger
from .certificates.problem import Bounds, Problem
from .certificates.run import certify, reachable
from .certificates.sdp import Semidefinite
from .certificates.simple import ClosedForm, Interval, MonotoneBall
from .certificates.zonotope import Zonotope
from .invertibility import invertibility
from .jacobian import jacobian_frobenius, spectral_norm
from .ladder import Invertibility, SingularElement
from .lipschitz import Lipschitz, lipschitz
from .regions import Ball, Box, Cardinality, Region, region
from .sensitivity import Sensitivity, sensitivity
from .slopes import activation_slopes
from .spectrum import DominantEigenvalue, dominant_eigenvalue, spectral_radius
from .structure.compress import Compressed, compress, prune
from .structure.sparsity import Sparsity, sparsity
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
