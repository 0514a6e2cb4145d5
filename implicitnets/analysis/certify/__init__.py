"""Certified robustness: what holds for every input within a radius of a given one."""

from __future__ import annotations

from .base import Answer, Bounder
from .certificate import Certificate, Certificates, Verdict
from .crown import Crown
from .ladder import METHODS
from .lp import LinearProgram
from .milp import MixedInteger
from .prepare import prepare
from .problem import Bounds, Problem
from .run import certify, reachable
from .sdp import Semidefinite
from .simple import ClosedForm, Interval, MonotoneBall
from .zonotope import Zonotope

__all__ = [
    "METHODS",
    "Answer",
    "Bounder",
    "Bounds",
    "Certificate",
    "Certificates",
    "ClosedForm",
    "Crown",
    "Interval",
    "LinearProgram",
    "MixedInteger",
    "MonotoneBall",
    "Problem",
    "Semidefinite",
    "Verdict",
    "Zonotope",
    "certify",
    "prepare",
    "reachable",
]
