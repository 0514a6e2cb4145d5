"""``implicitnets evaluate``."""

from __future__ import annotations

from pathlib import Path

from .. import data
from ..run import accuracy
from .console import fail, say, table
from .runs import recorded

__all__ = ["evaluate"]


def evaluate(run: Path, /) -> int:
    """Read a run's model back and check that it has the test accuracy that its report says.

    Args:
        run: The folder of the run, the --out of implicitnets train.
    """
    found = recorded(run)
    test = data.load(found.experiment.data).test
    measured = accuracy(found.model, test)
    table(
        f"{run}: {len(test)} held-out samples of {found.experiment.data}",
        [
            ("test accuracy, reported", f"{found.test_accuracy:.4%}"),
            ("test accuracy, now", f"{measured:.4%}"),
        ],
    )
    if measured != found.test_accuracy:
        return fail("the model does not reproduce the accuracy in its report", code=1)
    say("Reproduced exactly.")
    return 0
