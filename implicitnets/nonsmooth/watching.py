"""Where the kinks of a map are: what it passed by, how close, and on which side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..pytree import leaves
from .chooser import Chooser
from .mode import Kinked

__all__ = ["Event", "Forced", "Kinks", "kinks", "watch"]


@dataclass(frozen=True, kw_only=True)
class Kinks:
    """The kinks that an evaluation passed by, in the order of the operations; clamp has two, one for each bound.

    Attributes:
        distance: For each sample, how far the nearest kink is, in units of the quantity that has to cross it: of the
            pre-activation for relu, of the difference to the runner-up for a maximum. Infinite if there is none.
        operations: The name of the operation of each kink.
        gaps: The signed distances of its entries; of a maximum, minimum or sort, distances to a tie.
        pieces: The active pieces: 1 right of the kink, −1 left of it, 0 at it; for a maximum or minimum the index of
            the winner, for a sort the permutation.
    """

    distance: Tensor
    operations: tuple[str, ...]
    gaps: tuple[Tensor, ...]
    pieces: tuple[Tensor, ...]


@dataclass(frozen=True)
class Event:
    """One kink: the gap of a hinge or of a cone, what a maximum is of, or what was sorted.

    The last two are along the last axis, with the sign that makes it a maximum or an ascending sort.
    """

    name: str
    kind: str  # hinge, extreme, order, cone
    x: Tensor

    @property
    def pieces(self) -> Tensor:
        """The active pieces."""
        if self.kind == "extreme":
            return self.x.argmax(-1) if self.x.shape[-1] else self.x.new_zeros(self.x.shape[:-1], dtype=torch.int64)
        return self.x.argsort(dim=-1, stable=True) if self.kind == "order" else self.x.sign().to(torch.int8)

    @property
    def gap(self) -> Tensor:
        """The distance to the kink, of a hinge with its sign."""
        x = self.x.detach()
        if self.kind in {"hinge", "cone"}:
            return x.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        if x.shape[-1] < 2:
            return torch.full(x.shape[:-1], torch.inf, dtype=x.dtype, device=x.device)
        ranked = x.sort(dim=-1, descending=True).values
        gaps = ranked[..., :-1] - ranked[..., 1:]
        return (gaps[..., 0] if self.kind == "extreme" else gaps).nan_to_num(nan=torch.inf, posinf=torch.inf)


class _Watching(Chooser):
    """Changes nothing and takes note of everything."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def hinge(self, name: str, gap: Tensor) -> tuple[Tensor, float | Tensor]:
        self.events.append(Event(name, "hinge", gap))
        return torch.zeros_like(gap, dtype=torch.bool), 0.5

    def extreme(self, name: str, x: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
        self.events.append(Event(name, "extreme", -x if name in {"min", "amin"} else x))
        return torch.zeros_like(best, dtype=torch.bool), torch.zeros_like(x)

    def order(self, name: str, x: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        self.events.append(Event(name, "order", x))
        return first, first, 1.0

    def cone(self, name: str, distance: Tensor) -> None:
        self.events.append(Event(name, "cone", distance))


class Forced(_Watching):
    """Takes given pieces (as of ``Event.pieces``), one entry of the list for each kink, and goes on watching.

    A piece 0 leaves the choice to autograd.
    """

    def __init__(self, pieces: Iterable[Tensor]) -> None:
        super().__init__()
        self.pieces = list(pieces)

    def _next(self) -> Tensor:
        if len(self.events) > len(self.pieces):
            raise RuntimeError("f has other kinks each time it is evaluated: it must be a function of z alone")
        return self.pieces[len(self.events) - 1]

    def hinge(self, name: str, gap: Tensor) -> tuple[Tensor, float | Tensor]:  # noqa: D102
        super().hinge(name, gap)
        side = self._next()
        return (side != 0) & (gap.sign() != side), (side > 0).to(gap.dtype)

    def extreme(self, name: str, x: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        super().extreme(name, x, best)
        winner = torch.nn.functional.one_hot(self._next(), x.shape[-1]).to(x.dtype)
        return torch.ones_like(best, dtype=torch.bool), winner

    def order(  # noqa: D102
        self, name: str, x: Tensor, first: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor, float | Tensor]:
        super().order(name, x, first, last)
        place = self._next()
        return place, place, 1.0


def watch(f: Callable[..., Any], *inputs: Any, pieces: Iterable[Tensor] | None = None) -> tuple[Any, list[Event]]:
    """f(*inputs), with the given pieces if there are any, and the kinks that it met."""
    chooser = _Watching() if pieces is None else Forced(pieces)
    with Kinked(chooser):
        value = f(*inputs)
    return value, chooser.events


@torch.no_grad()
def kinks(f: Callable[..., Any], z: Any, *inputs: Any) -> Kinks:
    """The kinks that f(z, *inputs) passes by, and how far they are.

    What has an entry for each sample along its first axis counts for that sample; a kink that has not, of a
    weight for example, counts for all. A selection within f hides its kinks.

    Args:
        f: The map, e.g. a cell.
        z: The state: a tensor or a pytree of tensors, batch first.
        inputs: Further arguments of f.

    Raises:
        NotImplementedError: If f has an operation that has kinks which can't be told.
    """
    _, events = watch(f, z, *inputs)
    first = leaves(z)[0]
    distance = torch.full((first.shape[0],), torch.inf, dtype=first.dtype, device=first.device)
    for event in events:
        gap = event.gap.abs().to(first.dtype)
        if gap.numel():
            own = gap.dim() > 0 and gap.shape[0] == first.shape[0]
            distance = torch.minimum(distance, gap.reshape(len(gap), -1).amin(1) if own else gap.amin())
    return Kinks(
        distance=distance,
        operations=tuple(event.name for event in events),
        gaps=tuple(event.gap for event in events),
        pieces=tuple(event.pieces for event in events),
    )
