"""What the commands show in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..experiment import Epoch, Means
from ..run import Watch

__all__ = ["fail", "progress", "say", "steps", "table"]

T = TypeVar("T")

_out, _err = Console(highlight=False), Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print a line, as it is."""
    _out.print(text, markup=False, soft_wrap=True)


def fail(text: str, *, code: int) -> int:
    """Print why a command failed, as one line on the error stream, and give back the exit code."""
    _err.print("error:", style="bold red", end=" ")
    _err.print(text, markup=False, soft_wrap=True)
    return code


def table(title: str, rows: Iterable[Sequence[str]], header: Sequence[str] = ("", "")) -> None:
    """Print names beside their values, under a title; with what each column is where the header says it."""
    _out.print(title, style="bold", markup=False, soft_wrap=True)
    grid = Table(show_header=any(header))
    grid.add_column(header[0], style="dim", overflow="fold")
    for name in header[1:]:
        grid.add_column(name, overflow="fold", justify="right" if name else "left")
    for row in rows:
        grid.add_row(*row)
    _out.print(grid)


@contextmanager
def progress(epochs: int) -> Iterator[Watch]:
    """A live bar with the state of a run; where there is no terminal, a line for each epoch.

    Yields:
        The watch to give to the run.
    """
    if not _out.is_terminal:
        yield lambda means, done: say(_line(means, epochs)) if isinstance(means, Epoch) else None
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), TimeRemainingColumn()
    with Progress(*columns, console=_out, expand=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda means, done: bar.update(task, completed=done, description=_line(means, epochs))


def steps(items: Sequence[T], what: str) -> Iterator[T]:
    """The items in turn, with a live bar that tells which it is at; where there is no terminal, a line for each.

    Yields:
        Each item.
    """
    if not _out.is_terminal:
        for item in items:
            say(f"{what} {item}")
            yield item
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), TimeRemainingColumn()
    with Progress(*columns, console=_out, expand=True) as bar:
        task = bar.add_task("", total=len(items))
        for done, item in enumerate(items):
            bar.update(task, completed=done, description=f"{what} {item}")
            yield item


def _line(means: Means, epochs: int) -> str:
    width = len(str(epochs))
    return (
        f"epoch {means.epoch:{width}}/{epochs}  loss {means.loss:.4f}  accuracy {means.train_accuracy:6.2%}"
        f"  steps {means.forward_steps:4.1f}  residual {means.forward_residual:.0e}"
    )
