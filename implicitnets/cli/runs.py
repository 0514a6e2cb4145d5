"""Runs that are finished, as the commands that look at them read them."""

from __future__ import annotations

from pathlib import Path

from .. import report
from ..run import CHECKPOINT
from ..storage import StorageError
from .flags import UsageError

__all__ = ["recorded"]


def recorded(run: Path) -> report.Recorded:
    """The report in the folder of a run.

    Raises:
        UsageError: If there is none, or one that can't be read.
    """
    try:
        return report.read(run)
    except StorageError as error:
        unfinished = (run / CHECKPOINT).is_file() and not (run / report.METRICS).exists()
        hint = f"the run is not finished; go on with implicitnets train --out {run} --resume" if unfinished else error
        raise UsageError(f"RUN: {run} holds no report: {hint}") from error
