"""Training by the gradient, as everybody does it: what the other methods are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from .method import GradientTrainer, Loss, Method

__all__ = ["Backprop"]


@dataclass(frozen=True, kw_only=True)
class Backprop(Method):
    """The gradient, for an implicit model the one that its ``backward`` gives, and an optimizer.

    Attributes:
        optimizer: "adamw" (Loshchilov and Hutter 2019), or "sgd" with Nesterov's momentum of 0.9.

    Raises:
        ValueError: If the optimizer is neither.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"Backprop(optimizer={self.optimizer!r}): optimizer must be 'adamw' or 'sgd'")

    def trainer(self, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float = 0.0) -> GradientTrainer:  # noqa: D102
        return GradientTrainer(model, loss, lr=lr, weight_decay=weight_decay, optimizer=self.optimizer)
