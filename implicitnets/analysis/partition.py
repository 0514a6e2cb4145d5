"""The states of a model in blocks: which depend on which, and how strongly."""

from __future__ import annotations

import math
from dataclasses import dataclass

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

    def norms(self, A: Array) -> tuple[Array, Index]:
        """N(A)ᵢⱼ ≥ γᵢ‖Aᵢⱼ‖ from the norm of block j to that of block i (El Ghaoui et al. 2021), rounding included.

        A block in the maximum norm has a row of N for each of its own, of which the largest counts for the block.
        Blocks from norm 2 to 2 have the spectral norm; other pairs the norm of the dual norms of their rows, which is
        exact except from the maximum norm to 2.

        Returns:
            N, and the block of each of its rows.
        """
        rows, columns = np.cumsum(self.rows) - self.rows, np.cumsum(self.states) - self.states
        owner, euclidean = np.repeat(np.arange(len(rows)), self.rows), self.p == 2
        norms: Array = np.add.reduceat(np.abs(A), columns, axis=1)
        if euclidean.any():
            norms = np.where(euclidean, np.sqrt(np.add.reduceat(A**2, columns, axis=1)), norms)
            whole = np.sqrt(np.add.reduceat(norms**2, rows, axis=0))
            for i in np.flatnonzero(euclidean):
                for j in np.flatnonzero(euclidean):
                    part = A[rows[i] : rows[i] + self.rows[i], columns[j] : columns[j] + self.states[j]]
                    whole[i, j] = np.linalg.norm(part, 2)
            kept = ~euclidean[owner]
            norms = np.concatenate([norms[kept], whole[euclidean]])
            owner = np.concatenate([owner[kept], np.flatnonzero(euclidean)])
        norms = norms + EPS * (8 + self.rows[owner, None] + self.states) * norms
        gamma = self.gamma[owner, None]
        return np.multiply(gamma, norms, out=np.zeros_like(norms), where=norms > 0), owner  # 0 if γ is infinite

    def members(self, blocks: Index) -> tuple[Index, Index]:
        """The rows and the states of some blocks."""
        return tuple(np.flatnonzero(np.isin(np.repeat(np.arange(len(n)), n), blocks)) for n in (self.rows, self.states))  # type: ignore[return-value]


def loops(norms: Array, owner: Index) -> list[Index]:
    """The blocks that depend on themselves, by way of each other: strongly connected components, diagonal entries.

    The others can be substituted one after another: A is well-posed if and only if it is on each of these (El Ghaoui
    et al. 2021, on block-triangular A).
    """
    there, (rows, columns) = np.shape(norms)[1], np.nonzero(norms)
    edges = coo_array((np.ones(len(rows)), (owner[rows], columns)), shape=(there, there))
    count, label = connected_components(edges, connection="strong")
    order = np.argsort(label, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(label, minlength=count))[:-1])
    own = np.bincount(columns[owner[rows] == columns], minlength=there) > 0
    return [part for part in parts if len(part) > 1 or own[part[0]]]
