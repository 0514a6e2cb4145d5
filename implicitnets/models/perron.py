"""How states can grow: the absolute values of A as a positively homogeneous, monotone map of sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigs, spsolve
from torch import Tensor

__all__ = ["Growth", "spectral_radius"]

LARGE = 1000
"""Up to this size of an irreducible block all its eigenvalues are computed."""
ABOVE = 1e-6
"""So far above the eigenvalue, relatively, stands the t at which choices of rows are compared."""

Vector = npt.NDArray[np.float64]


class Growth:
    """T(v)ₛ = max over the rows i of group s of Σⱼ |Aᵢⱼ| v(group of j), for sizes v ≥ 0 of the groups of states.

    Where each group is one row and one state, T = |A|. Else T is the largest of linear maps: those of all choices of
    one row from each group. Its eigenvalue λ, the infimum of t with T(v) ≤ tv for some v > 0, is the largest of theirs,
    and found by improving the choice (policy iteration, as for Markov decision processes).

    Attributes:
        sums: By rows and groups of states, Σ |Aᵢⱼ|, a sparse array.
        group: The group of each row, in ascending order.
        states: The group of each state.
    """

    def __init__(self, A: Tensor, groups: list[tuple[int, int, int]]) -> None:
        """Take A, (rows, states), dense or COO, and the groups as an activation tells them.

        Raises:
            ValueError: If A is not finite.
        """
        self.group, self.states = _numbers(groups, 1), _numbers(groups, 2)
        self.count = int(self.group[-1]) + 1
        A = A.detach().to_sparse() if not A.is_sparse else A.detach().coalesce()
        rows, columns = A.indices().cpu().numpy()
        entries = A.values().abs().double().cpu().numpy()
        if not np.isfinite(entries).all():
            raise ValueError("A is not finite")
        shape = (A.shape[0], self.count)
        self.sums = scipy.sparse.coo_array((entries, (rows, self.states[columns])), shape=shape).tocsr()
        self.sums.eliminate_zeros()

    @property
    def single(self) -> bool:
        """Whether there is but one choice."""
        return len(self.group) == self.count

    def best(self, v: Vector) -> Any:
        """For each group the row where growth is largest."""
        gain = self.sums @ v
        order = np.lexsort((-gain, self.group))
        return order[np.searchsorted(self.group[order], np.arange(self.count))]

    def eigenvalue(self) -> float:
        """λ, 0 if the groups can be ordered so that each depends only on those after it."""
        if self.single:
            return spectral_radius(self.sums)
        anything = scipy.sparse.coo_array(
            (np.ones(self.sums.nnz), (self.group[self.sums.tocoo().coords[0]], self.sums.indices)),
            shape=(self.count, self.count),
        )
        if spectral_radius(anything.tocsr()) == 0:
            return 0.0
        choice, radius, seen = self.best(np.ones(self.count)), 0.0, set[bytes]()
        while choice is not None and choice.tobytes() not in seen:  # rounding alone leads back to a choice
            seen.add(choice.tobytes())
            radius = max(radius, spectral_radius(self.sums[choice]))
            # a cycle of groups grows at least by its smallest entry
            t = radius * (1 + ABOVE) if radius > 0 else 0.5 * float(self.sums.data.min())
            choice = self._improved(choice, t)
        return radius

    def vector(self, t: float) -> Vector:
        """The v = 1 + T(v) / t, for t above λ: T(v) / v = t (1 − 1 / v) < t."""
        choice, seen = self.best(np.ones(self.count)), set[bytes]()
        while (better := self._improved(choice, t)) is not None and better.tobytes() not in seen:
            seen.add(better.tobytes())
            choice = better
        return self._sizes(choice, t)

    def _sizes(self, choice: Any, t: float) -> Vector:
        """The v = 1 + (T of the choice)(v) / t."""
        v: Vector = spsolve(
            scipy.sparse.eye_array(self.count, format="csc") - self.sums[choice].tocsc() / t, np.ones(self.count)
        )
        return v

    def _improved(self, choice: Any, t: float) -> Any:
        """A choice with larger growth, or None."""
        if self.single:
            return None
        v = self._sizes(choice, t)
        other, gain = self.best(v), self.sums @ v
        rises = gain[other] > gain[choice] * (1 + 1e-9)
        return np.where(rises, other, choice) if rises.any() else None


def spectral_radius(matrix: Any) -> float:
    """The spectral radius of a nonnegative sparse array, the largest of its irreducible blocks': exactly 0 without."""
    count, label = connected_components(matrix, connection="strong")
    radius = float(matrix.diagonal().max(initial=0.0))
    sizes = np.bincount(label, minlength=count)
    for number in np.flatnonzero(sizes > 1):
        inside = np.flatnonzero(label == number)
        block = matrix[inside][:, inside]
        if len(inside) <= LARGE:
            found = np.linalg.eigvals(block.toarray())
        else:
            found = eigs(block, k=1, which="LR", return_eigenvectors=False)
        radius = max(radius, float(found.real.max()))
    return radius


def _numbers(groups: list[tuple[int, int, int]], axis: int) -> Any:
    """The number of the group of each row (axis 1) or state (axis 2)."""
    sizes = np.concatenate([np.full(group[0], group[axis]) for group in groups])
    return np.repeat(np.arange(len(sizes)), sizes)
