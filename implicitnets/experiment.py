"""What a training run is to do, in one value, and the record of what it did."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from . import backward, solvers, training
from .backward import Backward, Implicit
from .constraints import InfNorm
from .data import DATASETS, Dataset
from .models import ACTIVATIONS, ImplicitModel
from .solvers import Anderson, Solver
from .training import Backprop, Method, Trainer, Unsupported

__all__ = ["Epoch", "Experiment", "InvalidSetting", "Means"]

_FROM_TEXT = {"solver": solvers.parse, "backward": backward.parse, "method": training.parse}


class InvalidSetting(ValueError):
    """A setting of an experiment that can't be; ``name`` is the setting."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name = name
        self.problem = problem


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Train an implicit model x = φ(Ax + Bu), y = Cx + Du as a classifier, with ‖A‖∞ ≤ kappa < 1.

    Two experiments that are equal give the same weights, bit for bit, on the same machine with the same
    number of threads.

    Attributes:
        data: The data set.
        solver: What finds the fixed point: a name, or a call with options such as "Anderson(memory=8)".
        backward: What differentiates it: "implicit", or a call such as "Unroll(steps=3, damping=0.5)".
        method: How the weights are trained: backprop, proxprop, semi-implicit, f-adjoint, lifted, implicit-sgd,
            sobolev, certified, adversarial, lipschitz or sam, or a call with options such as "Certified(radius=0.05)".
        states: The number of states, the size of x.
        activation: The function φ.
        kappa: The bound on ‖A‖∞. Below 1 there is one fixed point, whatever the input.
        epochs: How often to go through the training part.
        batch_size: The number of samples in a step.
        lr: The learning rate after the first epoch's warm-up, by default the method's own; it then falls to 0 as a
            cosine.
        weight_decay: Pull of the weights to 0, apart from the gradient.
        label_smoothing: The share of each label that is spread over all classes in the loss.
        seed: What the first weights and the order of the samples are drawn from.
    """

    data: str = "digits"
    solver: Solver = Anderson()
    backward: Backward = Implicit()
    method: Method = Backprop()
    states: int = 100
    activation: str = "relu"
    kappa: float = 0.95
    epochs: int = 20
    batch_size: int = 100
    lr: float | None = None
    weight_decay: float = 1e-2
    label_smoothing: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("states", "epochs", "batch_size"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1")
        self._require("kappa", 0 < self.kappa < 1, "must lie between 0 and 1")
        self._require("lr", self.lr is None or 0 < self.lr < math.inf, "must be positive")
        self._require("weight_decay", 0 <= self.weight_decay < math.inf, "can't be negative")
        self._require("label_smoothing", 0 <= self.label_smoothing < 1, "must lie between 0 and 1")
        self._require("seed", 0 <= self.seed < 2**63, "must lie between 0 and 2**63 - 1")
        self._require("data", self.data in DATASETS, f"must be one of {', '.join(DATASETS)}")
        self._require("activation", self.activation in ACTIVATIONS, f"must be one of {', '.join(sorted(ACTIVATIONS))}")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise InvalidSetting(name, f"{rule}, not {getattr(self, name)}")

    def model(self, data: Dataset) -> ImplicitModel:
        """A new model for that data, its weights drawn from the seed; the global generator is not touched."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return ImplicitModel(
                data.features,
                self.states,
                data.classes,
                activation=self.activation,
                constraint=InfNorm(kappa=self.kappa),
                solver=self.solver,
                backward=self.backward,
            )

    def trainer(self, model: ImplicitModel) -> Trainer:
        """What trains the model: cross entropy with smoothed labels, by the method.

        Raises:
            InvalidSetting: If the method can't train this model.
        """
        lr = self.learning_rate(1 / self.epochs)

        def bound(method: Method) -> Trainer:
            loss = partial(cross_entropy, label_smoothing=self.label_smoothing)
            return method.trainer(model, loss, lr=lr, weight_decay=self.weight_decay)

        try:
            return bound(self.method)
        except Unsupported as error:
            able = ", ".join(name for name, method in training.CLASSES.items() if _works(partial(bound, method())))
            raise InvalidSetting("method", f"{self.method!r} can't train this model: {error}. {able} can") from error

    def learning_rate(self, progress: float) -> float:
        """The learning rate when ``progress`` (from 0 to 1) of the steps are done.

        It rises in a line through the first epoch, and falls as a cosine through the others.
        """
        warm = 1 / self.epochs
        return (self.method.lr if self.lr is None else self.lr) * min(
            progress / warm, 0.5 * (1 + math.cos(math.pi * progress))
        )

    def to_record(self) -> dict[str, Any]:
        """The settings as JSON values; a solver, a backward and a method as the text that makes them again."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: repr(value) if name in _FROM_TEXT else value for name, value in values.items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Experiment:
        """The experiment that ``to_record`` wrote.

        Raises:
            ValueError: If a solver, backward or method can't be read.
            TypeError: If there is a setting that does not exist.
        """
        values: dict[str, Any] = {k: _FROM_TEXT[k](v) if k in _FROM_TEXT else v for k, v in record.items()}
        return cls(**values)


def _works(bind: Callable[[], object]) -> bool:
    try:
        bind()
    except Unsupported:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Means:
    """How a pass through the training part goes. Means are over the samples so far, while the model learns.

    Attributes:
        epoch: The number of the pass, 1 for the first.
        loss: Mean cross entropy with the smoothed labels.
        train_accuracy: Share of the training samples classified rightly.
        forward_steps: Mean solver steps to a fixed point.
        forward_steps_max: The most steps that a sample needed.
        forward_evaluations: Mean number of applications of f that a batch needed.
        forward_residual: Mean ‖f(z) − z‖₂ that was left.
        forward_unconverged: How many samples missed the forward solver's tolerance.
        backward_steps: Mean solver steps to a gradient (a step of GMRES is a cycle of products); None where no
            equation is solved for it.
        backward_evaluations: Mean number of products with Jᵀ that a batch needed for that, or None.
        backward_unconverged: How many samples missed the backward solver's tolerance.
    """

    epoch: int
    loss: float
    train_accuracy: float
    forward_steps: float
    forward_steps_max: int
    forward_evaluations: float
    forward_residual: float
    forward_unconverged: int
    backward_steps: float | None
    backward_evaluations: float | None
    backward_unconverged: int


@dataclass(frozen=True, kw_only=True)
class Epoch(Means):
    """A pass that is done.

    Attributes:
        test_accuracy: Share of the held-out samples that the model then classified rightly.
        seconds: Wall-clock time.
    """

    test_accuracy: float
    seconds: float
