"""Flags of the command line: made from a dataclass, read into values, and named in every complaint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import Field, fields, make_dataclass
from typing import Annotated, Any, get_type_hints

from cyclopts import CycloptsError, Parameter, Token, UnusedCliTokensError

from .. import backward, solvers, training
from ..backward import Backward
from ..experiment import InvalidSetting
from ..solvers import Solver
from ..training import Method

__all__ = ["UsageError", "explain", "flag", "optional_flags"]


class UsageError(Exception):
    """A wrong command line; the message names the flag and says what to write instead."""


def optional_flags(record: type) -> type[Any]:
    """A twin of a dataclass with a flag for each field, None where it was not written on the command line.

    Which flags were written matters to a command that takes the others from somewhere else than the defaults.
    """
    hints = get_type_hints(record)
    return make_dataclass(
        record.__name__,
        [(field.name, _annotated(hints[field.name], field), None) for field in fields(record)],
        namespace={
            "__module__": record.__module__,
            "__doc__": record.__doc__,
        },  # the help texts are in the latter
        frozen=True,
        kw_only=True,
    )


def flag(name: str) -> str:
    """The flag that sets a field: ``--batch-size`` for batch_size."""
    return "--" + name.replace("_", "-")


def explain(error: Exception) -> str:
    """A line that says what is wrong with a command line."""
    if isinstance(error, InvalidSetting):
        return f"{flag(error.name)}: {error.problem}"
    if isinstance(error, UnusedCliTokensError):
        return f"what is {' '.join(error.unused_tokens or [])!r}? Settings are written --name VALUE; see --help"
    if isinstance(error, CycloptsError):
        error.verbose = False
    return " ".join(str(error).split())


def _annotated(hint: Any, field: Field[Any]) -> Any:
    read = _READERS[hint]

    def convert(_: Any, tokens: Sequence[Token]) -> Any:
        try:
            return read(tokens[0].value)
        except TypeError as error:  # an option that the value does not have
            raise ValueError(str(error)) from error

    parameter = Parameter(converter=convert, n_tokens=1, accepts_keys=False, show_default=f"{field.default}")
    return Annotated[hint | None, parameter]


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


_READERS: dict[Any, Callable[[str], Any]] = {
    int: _whole,
    float: _number,
    float | None: _number,
    str: str,
    Solver: solvers.parse,
    Backward: backward.parse,
    Method: training.parse,
}
