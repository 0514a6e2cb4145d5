"""Adversarial inputs: what refutes that a model is robust."""

from __future__ import annotations

from .adapter import Attackable
from .blackbox import SPSA, Noise
from .lp import LinearProgramAttack
from .masking import Check, Masking, check_masking
from .methods import FGSM, PGD, AttackMethod
from .result import AttackResult
from .run import attack
from .sparse import Sparse

__all__ = [
    "FGSM",
    "PGD",
    "SPSA",
    "AttackMethod",
    "AttackResult",
    "Attackable",
    "Check",
    "LinearProgramAttack",
    "Masking",
    "Noise",
    "Sparse",
    "attack",
    "check_masking",
]
