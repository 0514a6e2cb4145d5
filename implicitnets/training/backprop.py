"""Training by the gradient, as everybody does it: what the other methods are compared with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .method import GradientTrainer, Loss, Method

__all__ = ["Backprop"]


@dataclass(frozen=True, kw_only=True)
class Backprop(Method):
    """AdamW (Loshchilov and Hutter 2019) on the gradient, for an implicit model the one that its ``backward`` gives."""

    def trainer(self, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float = 0.0) -> GradientTrainer:  # noqa: D102
        return GradientTrainer(model, loss, lr=lr, weight_decay=weight_decay)
