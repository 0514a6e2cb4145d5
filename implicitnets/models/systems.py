"""The weights of implicit models as blocks of larger ones, dense or sparse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..activations import Blocks
from ..backward import Backward
from ..solvers import Solver
from .implicit import ImplicitModel
from .structures import Triangular

__all__ = ["System", "after", "block", "check_map", "diagonal", "join", "mm", "plus", "same_outputs", "systems"]


@dataclass(frozen=True, kw_only=True)
class System:
    """A model taken apart.

    Attributes:
        A: The weights, detached, and so are the others; zero where the model has no b or c.
        blocks: The activation, block by block, and how many rows each has.
        sizes: Block sizes, if A is strictly triangular.
        solver: What the model has.
        backward: Likewise.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    b: Tensor
    c: Tensor
    blocks: tuple[tuple[Any, int], ...]
    sizes: tuple[int, ...] | None
    solver: Solver | None
    backward: Backward | None

    @classmethod
    def of(cls, model: ImplicitModel) -> System:
        """The parts of a model.

        Raises:
            TypeError: If it is not one.
        """
        if not isinstance(model, ImplicitModel):
            raise TypeError(f"{model!r} is not an ImplicitModel, and only these can be composed to one")
        like = model.C.detach().to_dense()
        return cls(
            **{name: getattr(model, name).detach() for name in "ABCD"},
            b=like.new_zeros(model.rows) if model.b is None else model.b.detach(),
            c=like.new_zeros(model.outputs) if model.c is None else model.c.detach(),
            blocks=((model.activation, model.rows),),
            sizes=model.structure.sizes if isinstance(model.structure, Triangular) else None,
            solver=model.solver,
            backward=model.backward,
        )

    def model(self) -> ImplicitModel:
        """The model of these parts."""
        weights = (self.A, self.B, self.C, self.D, self.b, self.c)
        blocks = Blocks(*self.blocks)
        phi = blocks.blocks[0][0] if len(blocks.blocks) == 1 else blocks
        return ImplicitModel.from_matrices(
            *weights, activation=phi, sizes=self.sizes, solver=self.solver, backward=self.backward
        )


def systems(models: Sequence[ImplicitModel]) -> list[System]:
    """The parts of each.

    Raises:
        ValueError: If there is no model, or their weights differ in dtype or device.
        TypeError: If one is not an ImplicitModel.
    """
    if not models:
        raise ValueError("there is no model to compose: pass one or more")
    found = [System.of(model) for model in models]
    kinds = {(system.c.dtype, system.c.device) for system in found}
    if len(kinds) > 1:
        raise ValueError(f"the models are of {' and '.join(f'{d} on {where}' for d, where in kinds)}: convert them")
    return found


def join(later: System, earlier: System) -> dict[str, Any]:
    """What two systems have together beside weights, the later one first."""
    sizes = None if later.sizes is None or earlier.sizes is None else (*later.sizes, *earlier.sizes)
    chosen = later if earlier.solver is None else earlier
    return {
        "blocks": later.blocks + earlier.blocks,
        "sizes": sizes,
        "solver": chosen.solver,
        "backward": chosen.backward,
    }


def after(system: System, K: Tensor, k: Tensor) -> System:
    """With the outputs Ky + k in place of y."""
    return replace(system, C=mm(K, system.C), D=mm(K, system.D), c=K @ system.c + k)


def same_outputs(of: Sequence[System]) -> int:
    """How many outputs each has.

    Raises:
        ValueError: If they differ.
    """
    found = {system.C.shape[0] for system in of}
    if len(found) > 1:
        raise ValueError(f"the models have different numbers of outputs: {', '.join(map(str, sorted(found)))}")
    return found.pop()


def check_map(K: Any, rows: int | None, columns: int | None) -> None:
    """Check the shape of a matrix, where it is given.

    Raises:
        ValueError: If it is another.
    """
    shape = tuple(K.shape) if isinstance(K, Tensor) else ()
    if len(shape) != 2 or (rows or shape[0], columns or shape[1]) != shape:
        raise ValueError(f"K must be a matrix of shape ({rows or 'any'}, {columns or 'any'}), not {shape or K}")


def mm(left: Tensor, right: Tensor) -> Tensor:
    """The product, sparse if both are."""
    if left.is_sparse and right.is_sparse:
        product: Tensor = torch.sparse.mm(left, right)
        return product
    return left.to_dense() @ right.to_dense()


def plus(left: Tensor, right: Tensor) -> Tensor:
    """The sum, sparse if both are."""
    return left + right if left.is_sparse == right.is_sparse else left.to_dense() + right.to_dense()


def block(rows: Sequence[Sequence[Tensor | tuple[int, int]]]) -> Tensor:
    """A matrix from its blocks, a pair of sizes standing for zeros; sparse if one of them is."""
    given = [part for row in rows for part in row if isinstance(part, Tensor)]
    sparse = any(part.is_sparse for part in given)

    def filled(part: Tensor | tuple[int, int]) -> Tensor:
        if not isinstance(part, Tensor):
            part = torch.zeros(part, dtype=given[0].dtype, device=given[0].device)
        return part.to_sparse() if sparse else part

    return torch.cat([torch.cat([filled(part) for part in row], 1) for row in rows])


def diagonal(first: Tensor, second: Tensor) -> Tensor:
    """Both along the diagonal."""
    return block([[first, (first.shape[0], second.shape[1])], [(second.shape[0], first.shape[1]), second]])
