"""The states of a model in blocks: which depend on which, and how strongly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..activations import Blocks
from ..models import AffineForm
from .criteria import EPS, Array

__all__ = ["Partition", "loops"]

Index = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    """Consecutive blocks of rows and the states that φ makes of them, each with a norm.

    Attributes:
        rows: How many rows are in each block.
        states: How many states.
        p: The norm of each block, 2 or infinity: that in which φ has the smaller Lipschitz constant there.
        gamma: That constant.
    """

    rows: Index
    states: Index
    p: Array
    gamma: Array

    @classmethod
    def of(cls, form: AffineForm, *, fine: bool) -> Partition:
        """The groups that φ maps on their own (fine), or the blocks of one kind of φ."""
        found: list[tuple[int, int, float, float]] = []
        for phi, rows in Blocks((form.activation, form.rows)).parts:
            p, gamma = min(((p, phi.lipschitz(p)) for p in (math.inf, 2)), key=lambda pair: pair[1])
            if fine:
                for count, before, after in phi.groups(rows):
                    found += [(before, after, p, gamma)] * count
            else:
                found.append((rows, phi.states(rows), p, gamma))
        rows_, states, p_, gamma_ = zip(*found, strict=True)
        return cls(rows=np.array(rows_), states=np.array(states), p=np.array(p_), gamma=np.array(gamma_))

    def norms(self, A: Array) -> Array:
        """N(A)ᵢⱼ ≥ γᵢ‖Aᵢⱼ‖ from the norm of block j to that of block i (El Ghaoui et al. 2021), rounding included.

        Blocks from norm 2 to 2 have the spectral norm; other pairs the norm of the dual norms of their rows, which is
        exact except from the maximum norm to 2.
        """
        rows, columns = np.cumsum(self.rows) - self.rows, np.cumsum(self.states) - self.states
        sums = np.add.reduceat(np.abs(A), columns, axis=1)
        euclidean = self.p == 2
        if euclidean.any():
            sums = np.where(euclidean, np.sqrt(np.add.reduceat(A**2, columns, axis=1)), sums)
        norms: Array = np.maximum.reduceat(sums, rows, axis=0)
        if euclidean.any():
            norms[euclidean] = np.sqrt(np.add.reduceat(sums**2, rows, axis=0))[euclidean]
            for i in np.flatnonzero(euclidean):
                for j in np.flatnonzero(euclidean):
                    part = A[rows[i] : rows[i] + self.rows[i], columns[j] : columns[j] + self.states[j]]
                    norms[i, j] = np.linalg.norm(part, 2)
        norms = norms + EPS * (8 + self.rows[:, None] + self.states) * norms
        return np.where(norms > 0, self.gamma[:, None] * norms, 0.0)

    def members(self, blocks: Index) -> tuple[Index, Index]:
        """The rows and the states of some blocks."""
        return tuple(np.flatnonzero(np.isin(np.repeat(np.arange(len(n)), n), blocks)) for n in (self.rows, self.states))  # type: ignore[return-value]


def loops(norms: Array) -> list[Index]:
    """The blocks that depend on themselves, by way of each other: strongly connected components, diagonal entries.

    The others can be substituted one after another: A is well-posed if and only if it is on each of these (El Ghaoui
    et al. 2021, on block-triangular A).
    """
    edges: Any = coo_array(norms != 0)
    count, label = connected_components(edges, connection="strong")
    order = np.argsort(label, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(label, minlength=count))[:-1])
    own = norms.diagonal() != 0
    return [part for part in parts if len(part) > 1 or own[part[0]]]
