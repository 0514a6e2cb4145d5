"""Certified robustness: what holds for every input within a radius of a given one."""

from __future__ import annotations

from .base import Bounder
from .certificate import Certificate, Certificates, Verdict
from .crown import Crown
from .ladder import METHODS
from .prepare import prepare
from .problem import Bounds, Problem
from .run import certify, reachable
from .simple import ClosedForm, Interval, MonotoneBall

__all__ = [
    "METHODS",
    "Bounder",
    "Bounds",
    "Certificate",
    "Certificates",
    "ClosedForm",
    "Crown",
    "Interval",
    "MonotoneBall",
    "Problem",
    "Verdict",
    "certify",
    "prepare",
    "reachable",
]
