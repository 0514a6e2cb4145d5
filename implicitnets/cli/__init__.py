"""The command line: ``implicitnets train``, ``evaluate``, ``certify`` and ``sparsify``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError

from ..experiment import InvalidSetting
from ..run import TrainingError
from .certify import certify
from .console import fail
from .evaluate import evaluate
from .flags import UsageError, explain
from .sparsify import sparsify
from .train import train

__all__ = ["main"]

app = App(name="implicitnets", help="Train and evaluate implicit models.", version=version("implicitnets"))
app.command(train)
app.command(evaluate)
app.command(certify)
app.command(sparsify)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        words: The words after the program's name; those of this process if not given.

    Returns:
        The exit code: 0 if all is well, 1 if the training or the evaluation failed, 2 for a wrong command
        line, 130 after Ctrl-C.
    """
    try:
        result = app(
            list(sys.argv[1:] if words is None else words),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except (UsageError, InvalidSetting, CycloptsError) as error:
        return fail(explain(error), code=2)
    except (TrainingError, ImportError, OSError) as error:  # a diverging loss, a missing extra, a full disk
        return fail(str(error), code=1)
    except KeyboardInterrupt:
        return fail("interrupted", code=130)
    return result if isinstance(result, int) else 0
