"""Adversarial inputs: what refutes that a model is robust."""

from __future__ import annotations

from .adapter import Attackable
from .methods import FGSM, PGD, AttackMethod
from .result import AttackResult
from .run import attack
from .sparse import Sparse

__all__ = ["FGSM", "PGD", "AttackMethod", "AttackResult", "Attackable", "Sparse", "attack"]
