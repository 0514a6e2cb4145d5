"""The iterate that the loop hands to a solver's step, and the best iterate of each sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Best", "Iterate", "Mask", "Vector"]

Vector = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Iterate:
    """A point with the value of the map there; a row for each sample that is still in the batch.

    Attributes:
        z: The point, shape (rows, size).
        fz: f(z).
    """

    __slots__ = ("_host", "_norms", "_r", "fz", "z")

    def __init__(self, z: Tensor, fz: Tensor, norms: Tensor | None = None, host: Vector | None = None) -> None:
        """Hold what is known; one of ``norms`` and ``host``, which are the same on the device and in NumPy."""
        self.z, self.fz = z, fz
        self._norms, self._host = norms, host
        self._r: Tensor | None = None

    @classmethod
    def at(cls, z: Tensor, fz: Tensor) -> Iterate:
        """The iterate of a point and the value there, by tensor operations."""
        now = cls(z, fz)
        now._norms = torch.stack((torch.linalg.vector_norm(now.r, dim=1), torch.linalg.vector_norm(fz, dim=1)))
        return now

    @property
    def norms(self) -> Tensor:
        """‖f(z) − z‖ of each row, then ‖f(z)‖ of each row, shape (2, rows)."""
        if self._norms is None:
            assert self._host is not None
            self._norms = torch.from_numpy(self._host)
        return self._norms

    @property
    def r(self) -> Tensor:
        """f(z) − z; computed when first asked for, since a plain step does without."""
        if self._r is None:
            self._r = self.fz - self.z
        return self._r

    def where(self, mask: Tensor, other: Iterate) -> Iterate:
        """This iterate in the rows where ``mask`` is true, ``other`` elsewhere."""
        z, fz = (torch.where(mask[:, None], *pair) for pair in ((self.z, other.z), (self.fz, other.fz)))
        return Iterate(z, fz, torch.where(mask, self.norms, other.norms))

    def take(self, rows: Tensor) -> Iterate:
        """The rows (int64 indices) alone."""
        return Iterate(self.z[rows], self.fz[rows], self.norms[:, rows])

    def host_norms(self) -> Vector:
        """As ``norms``, in NumPy; one transfer from the device, however often it is called."""
        if self._host is None:
            self._host = np.asarray(self.norms.cpu().numpy(), dtype=np.float64)
        return self._host

    def settle(self, rows: Mask) -> None:
        """Have it that ``rows`` seem to stand still, so that no step looks at how they converge."""
        if self._norms is not None:
            self._norms.masked_fill_(_device(rows, self._norms), 0)
        if self._host is not None:
            self._host[:, rows] = 0


class Best:
    """The best iterate of each row: the current one, save for the rows whose better one is kept aside.

    As long as everybody improves nothing is copied, and then only the rows that don't.
    """

    def __init__(self, rows: int) -> None:
        """Start with nothing kept."""
        self.stale: Mask = np.zeros(rows, dtype=bool)  # whose best iterate is in ``kept``
        self.kept: Iterate | None = None

    def update(self, last: Iterate, improved: Mask) -> None:
        """Go on from ``last`` to an iterate that is better in the rows ``improved``."""
        self._keep(~improved & ~self.stale, last)
        self.stale = ~improved

    def restore(self, now: Iterate, rows: Mask) -> Iterate:
        """``now``, back at the best iterate in ``rows``."""
        rows = rows & self.stale
        self.stale = self.stale & ~rows
        return now if self.kept is None else self.kept.where(_device(rows, now.z), now)

    def renew(self) -> None:
        """Go on to an iterate that is better in all rows."""
        if self.kept is not None:
            self.stale = np.zeros_like(self.stale)

    def point(self, now: Iterate, rows: np.ndarray[Any, Any] | None = None) -> Tensor:
        """The best z of each row, or of ``rows`` (indices), in a new matrix."""
        index = slice(None) if rows is None else _device(rows, now.z)
        stale = self.stale if rows is None else self.stale[rows]
        if self.kept is None or not np.count_nonzero(stale):
            return now.z.clone() if rows is None else now.z[index]
        return torch.where(_device(stale, now.z)[:, None], self.kept.z[index], now.z[index])

    def select(self, rows: Mask) -> None:
        """Go on with ``rows`` alone."""
        self.stale = self.stale[rows]
        if self.kept is not None:
            self.kept = self.kept.take(_device(np.flatnonzero(rows), self.kept.z))

    def _keep(self, rows: Mask, iterate: Iterate) -> None:
        if not np.count_nonzero(rows):
            return
        if self.kept is None:
            self.kept = Iterate(iterate.z.clone(), iterate.fz.clone(), iterate.norms.clone())
            return
        pairs = ((self.kept.z, iterate.z), (self.kept.fz, iterate.fz), (self.kept.norms.T, iterate.norms.T))
        if iterate.z.device.type == "cpu":  # touches no other row
            for out, source in pairs:
                np.copyto(out.numpy(), source.detach().numpy(), where=rows[:, None], casting="same_kind")
        else:
            mask = _device(rows, iterate.z)[:, None]
            for out, source in pairs:
                out.copy_(torch.where(mask, source, out))


def _device(array: np.ndarray[Any, Any], like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like.device)
