"""A training run: it learns an epoch at a time, can be stopped at any moment, and goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from . import data, storage
from .data import Split
from .experiment import Epoch, Experiment, Means
from .models import ImplicitModel
from .solution import Solution

__all__ = ["CHECKPOINT", "Run", "TrainingError", "Watch", "accuracy"]

CHECKPOINT = "checkpoint.safetensors"

Watch = Callable[[Means, float], None]
"""Told how a run goes: the means of its epoch so far, and the share of all epochs that is done."""


class TrainingError(RuntimeError):
    """The training can't go on: its loss is not a number any more."""


class Run:
    """An experiment that is being carried out.

    Attributes:
        experiment: What is to be done.
        data: The data set it is done on.
        model: The model, as far as it has learned.
        history: The epochs that are done.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.data = data.load(experiment.data)
        self.model = experiment.model(self.data)
        self.history: list[Epoch] = []
        self._trainer = experiment.trainer(self.model)
        self._shuffle = torch.Generator().manual_seed(experiment.seed)

    def train(self, folder: Path | None = None, watch: Watch = lambda means, done: None) -> None:
        """Train through the epochs that are left.

        Args:
            folder: Where to keep a checkpoint, if anywhere: one is written at once and after each epoch.
            watch: Called after each step, and with an ``Epoch`` after each epoch.

        Raises:
            TrainingError: If the loss becomes infinite or undefined.
        """
        self._save(folder)
        while len(self.history) < self.experiment.epochs:
            epoch = self._epoch(watch)
            self.history.append(epoch)
            self._save(folder)
            watch(epoch, len(self.history) / self.experiment.epochs)

    def _epoch(self, watch: Watch) -> Epoch:
        start, tally = time.perf_counter(), _Tally(epoch=len(self.history) + 1)
        for inputs, labels in self.data.train.batches(self.experiment.batch_size, generator=self._shuffle):
            middle = self._done(tally.samples + len(labels) / 2)
            loss, logits = self._step(inputs, labels, self.experiment.learning_rate(middle))
            tally.add(loss, logits, labels, self.model)
            watch(tally.means(), self._done(tally.samples))
        test_accuracy = accuracy(self.model, self.data.test)
        return Epoch(**asdict(tally.means()), test_accuracy=test_accuracy, seconds=time.perf_counter() - start)

    def _done(self, samples: float) -> float:
        """The share of the whole training that is done after so many samples of this epoch."""
        return (len(self.history) + samples / len(self.data.train)) / self.experiment.epochs

    def _step(self, inputs: Tensor, labels: Tensor, learning_rate: float) -> tuple[float, Tensor]:
        self._trainer.lr = learning_rate
        loss, logits = self._trainer.step(inputs, labels)
        if not bool(loss.isfinite()):
            raise TrainingError(f"the loss became {loss.item()} in epoch {len(self.history) + 1}: try a lower lr")
        return loss.item(), logits

    def _save(self, folder: Path | None) -> None:
        if folder is None:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self._trainer.state_dict().items()}
        tensors["shuffle"] = self._shuffle.get_state()
        record = {
            "experiment": self.experiment.to_record(),
            "history": [asdict(epoch) for epoch in self.history],
        }
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_bundle(folder / CHECKPOINT, tensors, record)

    @classmethod
    def resume(cls, folder: Path) -> Run:
        """The run that keeps its checkpoint in that folder, as it was after its last full epoch.

        Raises:
            StorageError: If there is no checkpoint, or one that can't be read.
        """
        path = folder / CHECKPOINT
        tensors, record = storage.read_bundle(path)
        try:
            run = cls(Experiment.from_record(record["experiment"]))
            run.history = [Epoch(**epoch) for epoch in record["history"]]
            run.model.load_state_dict(_under("model.", tensors))
            run._shuffle.set_state(tensors["shuffle"])
            run._trainer.load_state_dict(_under("optimizer.", tensors))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise storage.StorageError(f"{path} does not hold a run of this version ({error})") from error
        return run


def accuracy(model: nn.Module, split: Split, *, batch_size: int = 1024) -> float:
    """The share of the samples to whose label the model gives its largest output."""
    with torch.no_grad():
        right = sum(int((model(u).argmax(1) == labels).sum()) for u, labels in split.batches(batch_size))
    return right / len(split)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class _Tally:
    """Sums over the samples of an epoch so far."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.batches = self.samples = self.right = 0
        self.loss = 0.0
        self.forward, self.backward = _SolverTally(), _SolverTally()

    def add(self, loss: float, logits: Tensor, labels: Tensor, model: ImplicitModel) -> None:
        """Count a step in: its loss, and how well the fixed points and the gradients were solved for."""
        self.batches += 1
        self.samples += len(labels)
        self.loss += loss * len(labels)
        self.right += int((logits.argmax(1) == labels).sum())
        self.forward.add(model.forward_solution)
        self.backward.add(model.backward_solution)

    def means(self) -> Means:
        """The sums, each divided by the number of samples, or of batches."""
        forward, backward = self.forward, self.backward
        return Means(
            epoch=self.epoch,
            loss=self.loss / self.samples,
            train_accuracy=self.right / self.samples,
            forward_steps=forward.steps / self.samples,
            forward_steps_max=forward.steps_max,
            forward_evaluations=forward.evaluations / self.batches,
            forward_residual=forward.residual / self.samples,
            forward_unconverged=forward.unconverged,
            backward_steps=backward.steps / self.samples if backward.solves else None,
            backward_evaluations=backward.evaluations / self.batches if backward.solves else None,
            backward_unconverged=backward.unconverged,
        )


class _SolverTally:
    """Sums over the solutions of one solver."""

    def __init__(self) -> None:
        self.solves = self.steps = self.steps_max = self.evaluations = self.unconverged = 0
        self.residual = 0.0

    def add(self, solution: Solution | None) -> None:
        """Count the solution of a batch in, if there was anything to solve."""
        if solution is None:
            return
        self.solves += 1
        self.steps += int(solution.steps.sum())
        self.steps_max = max(self.steps_max, int(solution.steps.max()))
        self.evaluations += solution.evaluations
        self.residual += float(solution.residual.sum())
        self.unconverged += int((~solution.converged).sum())
