"""What training methods share: a method is a value, a trainer carries it out on one model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

__all__ = ["GradientTrainer", "Loss", "Method", "Trainer", "Unsupported"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs of shape (batch, outputs) and targets to the mean over the batch, a scalar."""


class Unsupported(ValueError):
    """The method can't train this model; the message says why."""


class Trainer(ABC):
    """Trains one model, a batch at a time.

    Attributes:
        model: The model; a step changes its parameters.
        lr: The learning rate of the next step; a schedule assigns it.
    """

    def __init__(self, model: nn.Module, lr: float) -> None:
        self.model, self.lr = model, lr

    @abstractmethod
    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Learn from a batch: the loss and the outputs that the model had before, detached.

        If the loss is not finite, nothing is changed.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What the trainer remembers beside the model's own state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state_dict`` gave.

        Raises:
            ValueError: If it belongs to another trainer.
        """
        if state:
            raise ValueError(f"{type(self).__name__} has no state, and was given {', '.join(state)}")


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way to train a model. A value: frozen, comparable, printable."""

    lr: ClassVar[float] = 1e-2
    """The learning rate to begin with where the user says none."""

    @abstractmethod
    def trainer(self, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float = 0.0) -> Trainer:
        """What trains this model by this method.

        Args:
            model: From a batch of inputs to outputs of shape (batch, outputs).
            loss: What is to become small.
            lr: The learning rate of the first step.
            weight_decay: Decoupled from the gradient: before a step all parameters are multiplied by
                1 − lr · weight_decay.

        Raises:
            Unsupported: If the method can't train this model.
        """


def make_optimizer(
    name: str, parameters: Iterator[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), or SGD with Nesterov's momentum of 0.9 and the same decoupled decay.

    Raises:
        ValueError: If the name is neither "adamw" nor "sgd".
    """
    if name == "adamw":
        return AdamW(parameters, lr, weight_decay=weight_decay)
    if name == "sgd":
        return DecoupledSGD(parameters, lr, momentum=0.9, nesterov=True, decay=weight_decay)
    raise ValueError(f"optimizer={name!r}: optimizer must be 'adamw' or 'sgd'")


class DecoupledSGD(SGD):
    """SGD that first multiplies all parameters by 1 − lr · decay."""

    def __init__(self, parameters: Iterator[nn.Parameter], lr: float, *, decay: float, **options: Any) -> None:
        super().__init__(parameters, lr, **options)
        self.decay = decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """As SGD's."""
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * self.decay)
        return super().step(closure)


class GradientTrainer(Trainer):
    """An optimizer on what ``backward()`` gives.

    Args:
        model: The model.
        loss: The loss.
        lr: The learning rate.
        weight_decay: The optimizer's.
        optimizer: "adamw" or "sgd".
        change: Called between ``backward()`` and the optimizer's step, to change the gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        lr: float,
        weight_decay: float,
        optimizer: str = "adamw",
        change: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(model, lr)
        self.loss, self.change = loss, change
        self.optimizer = make_optimizer(optimizer, model.parameters(), lr, weight_decay)

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.zero_grad()
        outputs, loss, total = self.losses(inputs, targets)
        if bool(total.isfinite()):
            total.backward()
            self.change()
            self.optimizer.step()
        return loss.detach(), outputs.detach()

    def losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs, their loss, and the loss that is differentiated."""
        outputs = self.model(inputs)
        loss = self.loss(outputs, targets)
        return outputs, loss, loss

    def state_dict(self) -> dict[str, Tensor]:  # noqa: D102
        states = self.optimizer.state_dict()["state"]
        moments = ((f"{index}.{name}", value) for index, state in states.items() for name, value in state.items())
        return {name: value for name, value in moments if value is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: D102
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
