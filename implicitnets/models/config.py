"""Models as JSON values, and back: what was passed to the constructor, under the same names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any, ClassVar, TypeVar

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from .. import activations, backward, constraints, solvers
from . import structures

__all__ = ["Configurable", "from_config"]

VERSION = 1
"""The version of all configurations; one with a higher number is refused."""
READERS: dict[str, Callable[[str], Any]] = {
    "solver": solvers.parse,
    "backward": backward.parse,
    "constraint": constraints.parse,
    "activation": activations.parse,
    "structure": structures.parse,
}
"""By argument, what reads the text that a value was written as."""

SelfT = TypeVar("SelfT", bound="Configurable")


class Configurable(nn.Module):
    """A module that can be written down and built again.

    Each argument of its constructor is an attribute of the same name: a JSON value, a strategy (a frozen dataclass that
    ``READERS`` can read), or such a module itself. What is in ``unwritten`` is left out.
    """

    unwritten: ClassVar[tuple[str, ...]] = ("sync_group",)

    def config(self) -> dict[str, Any]:
        """What it takes to build the module again, of JSON types; the weights are in ``state_dict``.

        Raises:
            ValueError: If an argument is a function or a module of another kind, which can't be written down.
        """
        cls = type_before_parametrizations(self)
        names = [name for name in inspect.signature(cls).parameters if name not in self.unwritten]
        return {
            "model": cls.__name__,
            "version": VERSION,
            **{name: _written(cls.__name__, name, getattr(self, name)) for name in names},
        }

    @classmethod
    def from_config(cls: type[SelfT], config: dict[str, Any]) -> SelfT:
        """The module of a ``config()``, with new weights.

        Raises:
            ValueError: If an entry can't be read, or the version is a later one.
            TypeError: If an entry is missing or unknown, or the module is of another class.
        """
        if config.get("version", VERSION) > VERSION:
            raise ValueError(f"config has version {config['version']}, and this library reads up to {VERSION}")
        name = config.get("model", cls.__name__)
        if name != cls.__name__:
            raise TypeError(f"config describes a {name}: write {name}.from_config or models.from_config")
        options = {key: _read(key, value) for key, value in config.items() if key not in ("model", "version")}
        return cls(**options)


def from_config(config: dict[str, Any]) -> Configurable:
    """The module that a ``config()`` describes, with new weights.

    Raises:
        ValueError: If no such model exists, or an entry can't be read.
        TypeError: If an entry is missing or unknown.
    """
    name, known = config.get("model"), dict(_known(Configurable))
    if name not in known:
        raise ValueError(f"no model is called {name!r}. There are: {', '.join(sorted(known))}")
    return known[name].from_config(config)


def _known(cls: type[Configurable]) -> Iterator[tuple[str, type[Configurable]]]:
    """The classes of this library below ``cls``.

    Yields:
        Names and classes.
    """
    for child in cls.__subclasses__():
        if child.__module__.startswith(f"{__package__}.") and not inspect.isabstract(child):
            yield child.__name__, child
        yield from _known(child)


def _written(owner: str, name: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_written(owner, name, entry) for entry in value]
    if isinstance(value, dict):
        return {key: _written(owner, name, entry) for key, entry in value.items()}
    if isinstance(value, Configurable):
        return value.config()
    if name in READERS and is_dataclass(value) and _reads(name, value):
        return repr(value)
    raise ValueError(f"{owner}({name}={value!r}) can't be written down: use a name or a value of this library instead")


def _reads(name: str, value: Any) -> bool:
    """Whether a value is read again from what it prints: one of the user's own class is not."""
    try:
        return bool(READERS[name](repr(value)) == value)
    except (ValueError, TypeError):
        return False


def _read(name: str, value: Any) -> Any:
    if isinstance(value, dict) and "model" in value:
        return from_config(value)
    if name in READERS and isinstance(value, str):
        return READERS[name](value)
    return value
