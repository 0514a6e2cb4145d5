"""The Jacobian written out: exact for small affine maps, and the oracle of the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..linalg import solve_dense
from .base import Iterative
from .loop import Iterate
from .packed import PackedMap

__all__ = ["Dense"]


@dataclass
class _Matrix:
    matrix: Tensor | None = None  # I − J, (rows, size, size)


@dataclass(frozen=True, kw_only=True)
class Dense(Iterative[_Matrix]):
    """z ← z + (I − J)⁻¹ (f(z) − z) for an affine map f(z) = Jz + b, with J written out column by column.

    One step solves the equation up to rounding, further ones refine. Costs as many evaluations as the state of
    a sample has entries, and their square in memory, so it is for small states. A map that is not affine is
    solved by ``Newton(linear=Dense())``.
    """

    remedies: ClassVar[str] = (
        "Newton(linear=Dense()) if the map is not affine; if it is, its I - J is singular or nearly so"
    )

    def init(self, z: Tensor) -> _Matrix:  # noqa: D102
        return _Matrix()

    def step(self, f: PackedMap, now: Iterate, state: _Matrix) -> Tensor:  # noqa: D102
        if state.matrix is None:
            identity = torch.eye(now.z.shape[1], dtype=now.z.dtype, device=now.z.device)
            state.matrix = identity - f.matrix(now.z, now.fz)
        return now.z + solve_dense(state.matrix, now.r)

    def select(self, state: _Matrix, rows: Tensor) -> _Matrix:  # noqa: D102
        return _Matrix(None if state.matrix is None else state.matrix[rows])
