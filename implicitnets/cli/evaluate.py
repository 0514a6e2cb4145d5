"""``implicitnets evaluate``."""

from __future__ import annotations

from pathlib import Path

from .. import data, report
from ..run import CHECKPOINT, accuracy
from ..storage import StorageError
from .console import fail, say, table
from .flags import UsageError

__all__ = ["evaluate"]


def evaluate(run: Path, /) -> int:
    """Read a run's model back and check that it has the test accuracy that its report says.

    Args:
        run: The folder of the run, the --out of implicitnets train.

    Raises:
        UsageError: If there is no report in that folder, or one that can't be read.
    """
    try:
        recorded = report.read(run)
    except StorageError as error:
        unfinished = (run / CHECKPOINT).is_file() and not (run / report.METRICS).exists()
        hint = f"the run is not finished; go on with implicitnets train --out {run} --resume" if unfinished else error
        raise UsageError(f"RUN: {run} holds no report: {hint}") from error
    test = data.load(recorded.experiment.data).test
    measured = accuracy(recorded.model, test)
    table(
        f"{run}: {len(test)} held-out samples of {recorded.experiment.data}",
        [
            ("test accuracy, reported", f"{recorded.test_accuracy:.4%}"),
            ("test accuracy, now", f"{measured:.4%}"),
        ],
    )
    if measured != recorded.test_accuracy:
        return fail("the model does not reproduce the accuracy in its report", code=1)
    say("Reproduced exactly.")
    return 0
