"""Activations made of others: side by side, and in other units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from .base import Activation
from .groups import ACTIVATIONS, OTHERS, Componentwise, Uniform

__all__ = ["Blocks", "Function", "Scaled", "as_activation", "plain"]


@dataclass(frozen=True)
class Function(Uniform):
    """A function of one tensor that is taken to be component-wise; nothing else is known of it."""

    function: Callable[[Tensor], Tensor]

    @property
    def shape(self) -> tuple[int, int]:  # noqa: D102
        return 1, 1

    @property
    def homogeneous(self) -> bool:  # noqa: D102
        return False

    def __call__(self, z: Tensor) -> Tensor:  # noqa: D102
        return self.function(z)

    def lipschitz(self, p: float) -> float:
        """1: who passes a function vouches for it."""
        return 1.0


def as_activation(activation: Any) -> Activation:
    """The activation that a name, a value or a function of one tensor stands for.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If it is none of these.
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        known = ACTIVATIONS | OTHERS
        if activation not in known:
            raise ValueError(f"no activation is called {activation!r}. There are: {', '.join(sorted(known))}")
        return known[activation]
    if isinstance(activation, type) or not callable(activation):
        raise TypeError(f"activation={activation!r} is neither a name, e.g. 'relu', nor a value, e.g. MaxPool(size=4)")
    return Function(activation)


def plain(activation: Any) -> Any:
    """The activation as it is written down: component-wise ones by their names."""
    return activation.name if isinstance(activation, Componentwise) else activation


@dataclass(frozen=True, init=False, repr=False)
class Blocks(Activation):
    """Different activations on consecutive blocks of rows: ``Blocks(("relu", 20), (MaxPool(size=4), 40))``.

    Neighbors of the same kind are merged.

    Attributes:
        blocks: The activation of each block (a name or a value) and how many rows it has.

    Raises:
        ValueError: If there is no block, or one can't have so many rows.
        TypeError: If a block is not such a pair.
    """

    blocks: tuple[tuple[str | Activation, int], ...]

    def __init__(self, *blocks: tuple[str | Activation, int]) -> None:
        """Take the blocks in their order.

        Raises:
            ValueError: If there is none, or one can't have so many rows.
            TypeError: If one is not a pair of an activation and a number.
        """
        parts: list[tuple[Any, int]] = []
        for block in blocks:
            if not (isinstance(block, tuple) and len(block) == 2 and isinstance(block[1], int)):
                raise TypeError(f'Blocks({block!r}): a block is an activation and its number of rows, ("relu", 20)')
            phi = as_activation(block[0])
            if phi.states(block[1]) < 1:
                raise ValueError(f"Blocks({block!r}): a block needs at least one row")
            parts += phi.blocks if isinstance(phi, Blocks) else [(plain(phi), block[1])]
        if not parts:
            raise ValueError('Blocks() is empty: write for instance Blocks(("relu", 20), ("tanh", 10))')
        object.__setattr__(self, "blocks", tuple(_merged(parts)))

    def __repr__(self) -> str:
        return f"Blocks({', '.join(map(repr, self.blocks))})"

    @property
    def homogeneous(self) -> bool:  # noqa: D102
        return all(phi.homogeneous for phi, _ in self.parts)

    @property
    def componentwise(self) -> bool:  # noqa: D102
        return all(phi.componentwise for phi, _ in self.parts)

    @property
    def parts(self) -> list[tuple[Activation, int]]:
        """The blocks, with values in place of names."""
        return [(as_activation(phi), rows) for phi, rows in self.blocks]

    def __call__(self, z: Tensor) -> Tensor:  # noqa: D102
        pieces = z.split([rows for _, rows in self.blocks], -1)
        return torch.cat([phi(piece) for (phi, _), piece in zip(self.parts, pieces, strict=True)], -1)

    def groups(self, rows: int) -> list[tuple[int, int, int]]:  # noqa: D102
        own = sum(n for _, n in self.blocks)
        if own != rows:
            raise ValueError(f"the blocks of the activation have {own} rows in all, and A has {rows}")
        return [group for phi, n in self.parts for group in phi.groups(n)]

    def lipschitz(self, p: float) -> float:
        """The largest of the blocks'."""
        return max(phi.lipschitz(p) for phi, _ in self.parts)

    def slopes(self) -> tuple[float, float] | None:  # noqa: D102
        known = [phi.slopes() for phi, _ in self.parts]
        bounds = [b for b in known if b is not None]
        if len(bounds) < len(known):
            return None
        return min(low for low, _ in bounds), max(high for _, high in bounds)

    def rows(self, states: int) -> int:  # noqa: D102
        rows = sum(n for _, n in self.blocks)
        own = self.states(rows)
        if own != states:
            raise ValueError(f"the blocks of the activation make {own} states, not {states}")
        return rows

    def split(self, states: Sequence[int]) -> list[Activation]:  # noqa: D102
        self.rows(sum(states))
        left = [(phi, phi.states(rows)) for phi, rows in self.parts]
        found: list[Activation] = []
        for size in states:
            pieces: list[tuple[Any, int]] = []
            missing = size
            while missing:
                phi, there = left.pop(0)
                taken = min(there, missing)
                phi, *rest = phi.split([taken, there - taken] if taken < there else [there])
                pieces.append((phi, phi.rows(taken)))
                left[:0] = [(part, there - taken) for part in rest]
                missing -= taken
            found.append(as_activation(pieces[0][0]) if len(pieces) == 1 else Blocks(*pieces))
        return found


def _merged(parts: Sequence[tuple[Any, int]]) -> list[tuple[Any, int]]:
    merged: list[tuple[Any, int]] = []
    for phi, alike in groupby(parts, key=lambda part: part[0]):
        rows = [n for _, n in alike]
        # what has its own number of rows can't be merged
        merged += [(phi, sum(rows))] if isinstance(as_activation(phi), Uniform) else [(phi, n) for n in rows]
    return merged


@dataclass(frozen=True)
class Scaled(Activation):
    """S⁻¹φ(Sz): the activation of a model whose states are in other units. Its Lipschitz constants are those of φ.

    Attributes:
        activation: φ, a name or a value.
        scale: The diagonal of S, positive: one number for each group (of one row, where φ is component-wise).

    Raises:
        ValueError: If a number is not positive and finite, or there is not one for each group.
    """

    activation: str | Activation
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "activation", plain(as_activation(self.activation)))
        object.__setattr__(self, "scale", tuple(map(float, self.scale)))
        if not all(0 < s < float("inf") for s in self.scale):
            raise ValueError("Scaled(scale=...): the scales must be positive and finite")

    @property
    def inner(self) -> Activation:
        """The value of φ."""
        return as_activation(self.activation)

    @property
    def homogeneous(self) -> bool:  # noqa: D102
        return self.inner.homogeneous

    @property
    def componentwise(self) -> bool:  # noqa: D102
        return self.inner.componentwise

    def __call__(self, z: Tensor) -> Tensor:  # noqa: D102
        scale = torch.tensor(self.scale, dtype=z.dtype, device=z.device)
        groups = self.groups(z.shape[-1])
        before = torch.tensor([n for count, n, _ in groups for _ in range(count)], device=z.device)
        after = torch.tensor([n for count, _, n in groups for _ in range(count)], device=z.device)
        return self.inner(z * scale.repeat_interleave(before)) / scale.repeat_interleave(after)

    def groups(self, rows: int) -> list[tuple[int, int, int]]:  # noqa: D102
        groups = self.inner.groups(rows)
        if sum(count for count, _, _ in groups) != len(self.scale):
            raise ValueError(f"Scaled(scale=...) has {len(self.scale)} numbers, which do not fit {rows} rows")
        return groups

    def lipschitz(self, p: float) -> float:  # noqa: D102
        return self.inner.lipschitz(p)

    def slopes(self) -> tuple[float, float] | None:  # noqa: D102
        return self.inner.slopes()

    def rows(self, states: int) -> int:  # noqa: D102
        rows = self.inner.rows(states)
        self.groups(rows)
        return rows

    def split(self, states: Sequence[int]) -> list[Activation]:  # noqa: D102
        self.rows(sum(states))
        found: list[Activation] = []
        at = 0
        for phi, size in zip(self.inner.split(states), states, strict=True):
            count = sum(n for n, _, _ in phi.groups(phi.rows(size)))
            found.append(Scaled(plain(phi), self.scale[at : at + count]))
            at += count
        return found
