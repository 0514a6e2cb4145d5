"""Ways to train implicit models beside plain gradient descent."""

from .optim import ProxAdam, ProxAdamW, ProxSGD, penalize

__all__ = ["ProxAdam", "ProxAdamW", "ProxSGD", "penalize"]
