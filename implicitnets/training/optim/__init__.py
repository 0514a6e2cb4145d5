"""Adaptive proximal optimizers: PyTorch's own, with a penalty whose proximal map is taken in their metric."""

from .adam import ProxAdam, ProxAdamW
from .penalties import penalize
from .sgd import ProxSGD

__all__ = ["ProxAdam", "ProxAdamW", "ProxSGD", "penalize"]
