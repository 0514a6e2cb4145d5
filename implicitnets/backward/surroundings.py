"""What f depends on beside tensors: autocast, the random numbers that it draws, and buffers that it updates.

A fixed point is that of one map, so within one solve and its gradients f sees them as they were at its first call.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .capture import Substitution

__all__ = ["Surroundings", "without_autocast"]


class Surroundings:
    """Made before the first call of f, completed after it; from then on ``restored()`` brings back the same."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.autocast = _autocast(device.type)
        self.random: Any = None
        self.updated: list[tuple[Tensor, Tensor]] = []  # buffers, and what was in them before the first call
        self._before = _random_state(device)

    def complete(self, updated: Sequence[tuple[Tensor, Tensor]]) -> None:
        """See what the first call of f has used."""
        self.updated = list(updated)
        self.random = None if torch.equal(self._before, _random_state(self.device)) else self._before
        del self._before  # as large as a small state

    @property
    def matter(self) -> bool:
        """Whether there is anything to restore."""
        return self.autocast is not None or self.random is not None or bool(self.updated)

    def lowered(self) -> AbstractContextManager[Any]:
        """Inside, autocast is as it was at the start, without its cache, whose entries have a history of their own."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast, cache_enabled=False)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, f sees what it saw at its first call; afterwards all is as it was."""
        now = None if self.random is None else _random_state(self.device)
        buffers, first = zip(*self.updated, strict=True) if self.updated else ((), ())
        try:
            if self.random is not None:
                _set_random_state(self.device, self.random)
            with self.lowered(), Substitution(buffers, [value.clone() for value in first]):
                yield
        finally:
            if now is not None:
                _set_random_state(self.device, now)

    def rewind(self) -> None:
        """Put the first contents back into the buffers, so that one more call of f updates them once."""
        with torch.no_grad():
            for buffer, value in self.updated:
                buffer.copy_(value)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, arithmetic is in the dtypes of its operands."""
    return nullcontext() if _autocast(device.type) is None else torch.autocast(device.type, enabled=False)


def _autocast(kind: str) -> torch.dtype | None:
    on = _has_autocast(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


_has_autocast = functools.cache(torch.amp.is_autocast_available)


def _random_state(device: torch.device) -> Tensor:
    module, which = _generators(device)
    state: Tensor = module.get_rng_state(*which)
    return state


def _set_random_state(device: torch.device, state: Tensor) -> None:
    module, which = _generators(device)
    module.set_rng_state(state, *which)


def _generators(device: torch.device) -> tuple[Any, tuple[torch.device, ...]]:
    """Who has the random numbers of a device, and what else to tell it: there is one CPU, and one MPS."""
    if device.type == "cpu":
        return torch, ()
    return torch.get_device_module(device), () if device.type == "mps" else (device,)
