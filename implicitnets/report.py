"""The report on a finished run: its metrics as JSON, its model, its plots."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import plots, storage
from .experiment import Experiment
from .models import ImplicitModel
from .run import Run
from .solution import ConvergenceWarning, Solution
from .solvers import Anderson, Picard, Solver

__all__ = ["Recorded", "compare", "read", "rivals", "write"]

METRICS, MODEL = "metrics.json", "model"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a report says of its run, and the model it holds.

    Attributes:
        experiment: What was done.
        test_accuracy: The held-out accuracy that was measured at the end of the run.
        model: The model, read back.
    """

    experiment: Experiment
    test_accuracy: float
    model: torch.nn.Module


def write(run: Run, folder: Path) -> None:
    """Write the report on a run to a folder: ``metrics.json``, ``model/``, and three plots as PNG."""
    traces = compare(run.model, run.data.test.inputs, rivals(run.experiment.solver))
    folder.mkdir(parents=True, exist_ok=True)
    storage.save(run.model, folder / MODEL)
    plots.save(plots.learning(run.history), folder / "learning.png")
    plots.save(plots.steps(run.history), folder / "steps.png")
    plots.save(plots.residuals(traces), folder / "residuals.png")
    # Last, since a folder with metrics in it is a report that is complete.
    storage.write_json(folder / METRICS, _metrics(run, traces))


def read(folder: Path) -> Recorded:
    """Read a report's metrics and model back.

    Raises:
        StorageError: If a file is missing, damaged, or of a later format.
    """
    metrics = storage.read_json(folder / METRICS)
    try:
        experiment = Experiment.from_record(metrics["experiment"])
        test_accuracy = float(metrics["test_accuracy"])
    except (KeyError, TypeError, ValueError) as error:
        raise storage.StorageError(f"{folder / METRICS} does not describe a run of this version ({error})") from error
    return Recorded(experiment=experiment, test_accuracy=test_accuracy, model=storage.load(folder / MODEL))


def rivals(solver: Solver) -> tuple[Solver, Solver]:
    """A solver beside one to compare it with: Picard's iteration, or Anderson's if it is Picard itself."""
    other = Anderson() if isinstance(solver, Picard) else Picard()
    return other, solver


def compare(
    model: ImplicitModel, inputs: Tensor, candidates: Iterable[Solver], *, max_steps: int = 200
) -> dict[str, Solution]:
    """Solve the model's fixed points for the same inputs with each solver, as far as rounding lets it come.

    Args:
        model: Its own solver is left as it was.
        inputs: Shape ``(batch, features)``.
        candidates: The solvers; their tolerances and limits are not used.
        max_steps: The limit in their place.

    Returns:
        For each solver, under the name of its class, the solution with the trace of its residuals.
    """
    own, solutions = model.solver, {}
    rtol = 10 * torch.finfo(inputs.dtype).eps
    try:
        for solver in candidates:
            model.solver = replace(solver, rtol=rtol, atol=0.0, max_steps=max_steps, record=True)
            with torch.no_grad(), warnings.catch_warnings():
                # A solver that does not get there is what the comparison is there to show.
                warnings.simplefilter("ignore", ConvergenceWarning)
                model(inputs)
            assert model.forward_solution is not None  # the model was just called
            solutions[type(solver).__name__] = model.forward_solution
    finally:
        model.solver = own
    return solutions


def _metrics(run: Run, solutions: dict[str, Solution]) -> dict[str, Any]:
    last = run.history[-1]
    return {
        "experiment": run.experiment.to_record(),
        "test_accuracy": last.test_accuracy,
        "train_accuracy": last.train_accuracy,
        "loss": last.loss,
        "seconds": sum(epoch.seconds for epoch in run.history),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "solvers": {name: _summary(solution) for name, solution in solutions.items()},
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "threads": torch.get_num_threads(),
        },
        "history": [asdict(epoch) for epoch in run.history],
    }


def _summary(solution: Solution) -> dict[str, Any]:
    return {
        "steps_mean": float(solution.steps.double().mean()),
        "steps_max": int(solution.steps.max()),
        "evaluations": solution.evaluations,
        "residual_max": float(solution.residual.max()),
        "unconverged": int((~solution.converged).sum()),
    }
