"""``implicitnets train``."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from .. import report
from ..experiment import Experiment
from ..run import Run
from ..storage import StorageError
from .console import progress, say, table
from .flags import UsageError, flag, optional_flags

__all__ = ["train"]

Settings: Any = optional_flags(Experiment)


def train(
    settings: Annotated[Settings, Parameter(name="*")] = Settings(),
    *,
    out: Path | None = None,
    resume: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> int:
    """Train an implicit classifier and write a report: metrics, model, plots.

    Args:
        settings: The experiment.
        out: The folder for the report: a new or an empty one. If not given, the next free runs/DATA-NUMBER.
        resume: Go on with the run in the folder --out, where it was interrupted.
    """
    given = {name: value for name, value in vars(settings).items() if value is not None}
    if resume:
        folder, run = _interrupted(out, given)
    else:
        run = Run(Experiment(**given))
        folder = _new_folder(out, run)
    try:
        with warnings.catch_warnings(record=True) as caught, progress(run.experiment.epochs) as watch:
            run.train(folder, watch)
        report.write(run, folder)
    except KeyboardInterrupt:
        say(f"Interrupted: {len(run.history)} of {run.experiment.epochs} epochs are kept. Go on with:")
        say(f"  implicitnets train --out {shlex.quote(str(folder))} --resume")
        return 130
    _show(run, folder, caught)
    return 0


def _interrupted(out: Path | None, given: dict[str, Any]) -> tuple[Path, Run]:
    if out is None:
        raise UsageError("--resume: which run? Add --out FOLDER, the folder of the run")
    try:
        run = Run.resume(out)
    except StorageError as error:
        raise UsageError(f"--resume: there is no run to go on with in {out}: {error}") from error
    for name, value in given.items():
        if (stored := getattr(run.experiment, name)) != value:
            raise UsageError(
                f"{flag(name)}: the run in {out} has {stored}, not {value}; leave this flag out to go on "
                "with it, or start another run in another folder"
            )
    return out, run


def _new_folder(out: Path | None, run: Run) -> Path:
    try:
        if out is None:
            return _next_free(Path("runs"), run.data.name)
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UsageError(f"--out: {out} is not empty; choose another folder, or add --resume to go on with its run")
    except OSError as error:
        raise UsageError(f"--out: can't make the folder {out or 'runs'}: {error.strerror}; choose another") from error
    return out


def _next_free(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    numbers = count(1)
    while True:
        folder = parent / f"{name}-{next(numbers):03}"
        with suppress(FileExistsError):
            folder.mkdir()  # raises where it exists, so that two runs never get the same folder
            return folder


def _show(run: Run, folder: Path, caught: Sequence[warnings.WarningMessage]) -> None:
    last = run.history[-1]
    backward = "nothing to solve"
    if last.backward_steps is not None:
        backward = f"{last.backward_steps:.1f} steps a sample, {last.backward_evaluations:.1f} products a batch"
    table(
        f"Implicit model on {run.data.name}",
        [
            ("test accuracy", f"{last.test_accuracy:.2%}"),
            ("training accuracy", f"{last.train_accuracy:.2%}"),
            ("training loss", f"{last.loss:.4f}"),
            (
                "forward solves",
                f"{last.forward_steps:.1f} steps a sample, {last.forward_evaluations:.1f} evaluations a batch",
            ),
            ("backward solves", backward),
            ("mean residual", f"{last.forward_residual:.1e}"),
            ("time", f"{sum(epoch.seconds for epoch in run.history):.1f} s, {len(run.history)} epochs"),
        ],
    )
    forward = sum(epoch.forward_unconverged for epoch in run.history)
    backwards = sum(epoch.backward_unconverged for epoch in run.history)
    if forward or backwards:
        say(f"Samples that missed the tolerance: {forward} in forward and {backwards} in backward solves.")
    first_of_each = {warning.category: warning for warning in reversed(caught)}
    for category, warning in first_of_each.items():
        say(f"{category.__name__}: {warning.message}")
    say(f"Report: {folder}/ (metrics.json, model/, learning.png, steps.png, residuals.png)")
    say(f"Check it: implicitnets evaluate {shlex.quote(str(folder))}")
