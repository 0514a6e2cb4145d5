"""Training for robustness: certified losses, adversarial training, Lipschitz and flatness penalties."""

from __future__ import annotations

from .bounds import certified_loss, worst_outputs
from .methods import Adversarial, Certified
from .penalties import SAM, Lipschitz, lipschitz_bound

__all__ = ["SAM", "Adversarial", "Certified", "Lipschitz", "certified_loss", "lipschitz_bound", "worst_outputs"]
