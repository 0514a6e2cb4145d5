"""How the leaves of a state lie in the rows that solvers see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor

from ..pytree import Layout
from ..solution import Solution, amended
from .sync import Ranks

__all__ = ["Frame"]


@dataclass(frozen=True)
class Frame:
    """Leaves of shape ``(*copies, batch, ...)`` as rows: one a sample, one for each copy of the batch, or one in all.

    Attributes:
        layout: Of the state.
        copies: The axes that were put in front of the batch by ``vmap``.
        joint: Whether a row is a batch, since f mixes its samples.
        ranks: Those whose batches make up the one row together, since f communicates.
    """

    layout: Layout
    copies: tuple[int, ...] = ()
    joint: bool = False
    ranks: Ranks | None = None

    @property
    def natural(self) -> bool:
        """Whether there is nothing to reshape."""
        return not (self.copies or self.joint or self.ranks is not None)

    @property
    def plain(self) -> bool:
        """Whether the only leaf is that matrix already."""
        return self.natural and self.layout.plain

    def copied(self, size: int) -> Frame:
        """With one more axis in front.

        Raises:
            RuntimeError: If there are several ranks.
        """
        if self.ranks is not None:
            raise RuntimeError(
                "torch.func.vmap, and with it jacrev, jacfwd and hessian, can't map a solve with sync_group, since "
                "collectives can't be mapped: use a loop, or torch.autograd.functional"
            )
        return replace(self, copies=(size, *self.copies))

    def rows(self, flat: Sequence[Tensor]) -> list[Tensor]:
        """Leaves -> leaves with one axis of rows in front."""
        if self.ranks is not None:
            flat = [self.ranks.gather(t) for t in flat]
        batch = (self._batch,) if self._merged else ()
        return [t.reshape(self._rows, *batch, *s) for t, s in zip(flat, self.layout.shapes, strict=True)]

    def stacked(self, flat: Sequence[Tensor]) -> list[Tensor]:
        """The way back."""
        lead = (*self.copies, self._batch)
        stacked = [t.reshape(*lead, *s) for t, s in zip(flat, self.layout.shapes, strict=True)]
        return stacked if self.ranks is None else [self.ranks.mine(t) for t in stacked]

    def pack(self, flat: Sequence[Tensor]) -> Tensor:
        """Leaves -> matrix of rows."""
        if self.natural:
            return self.layout.pack(flat)
        return self._layout.pack(self.rows(flat))

    def unpack(self, matrix: Tensor) -> list[Tensor]:
        """The way back."""
        if self.natural:
            return self.layout.unpack(matrix)
        return self.stacked(self._layout.unpack(matrix))

    def tree(self, flat: Sequence[Tensor]) -> Any:
        """Leaves -> state."""
        return self.layout.tree(flat)

    def per_sample(self, x: Tensor) -> Tensor:
        """What is known of each row, shape ``(rows,)``, for each sample, shape ``(*copies, batch)``."""
        if self.natural:
            return x
        lead = (*self.copies, self.layout.batch)
        return x.reshape(*self.copies, 1).expand(lead) if self._merged else x.reshape(lead)

    def told(self, found: Solution, value: Sequence[Tensor], more: int = 0) -> Solution:
        """The record of a solve in rows, sample by sample, with these leaves of its value, and more evaluations."""
        found = amended(found, value=self.tree(value), evaluations=found.evaluations + more)
        if self.natural:
            return found
        return amended(
            found,
            residual=self.per_sample(found.residual),
            steps=self.per_sample(found.steps),
            status=self.per_sample(found.status),
            error=None if found.error is None else self.per_sample(found.error),
        )

    @property
    def _merged(self) -> bool:
        return self.joint or self.ranks is not None

    @property
    def _batch(self) -> int:
        return self.layout.batch if self.ranks is None else self.ranks.total

    @property
    def _rows(self) -> int:
        return prod(self.copies) * (1 if self._merged else self.layout.batch)

    @property
    def _layout(self) -> Layout:
        if not self._merged:
            return self.layout
        shapes = tuple((self._batch, *shape) for shape in self.layout.shapes)
        return replace(self.layout, shapes=shapes, batch=self._rows)
