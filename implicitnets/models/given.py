"""Given matrices as the weights of an implicit model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ..activations import Activation
from .matrices import SparseMatrix, TriangularMatrix

__all__ = ["check_matrices", "fill"]


def check_matrices(
    given: Mapping[str, Tensor | None], phi: Activation, sizes: Sequence[int] | None
) -> dict[str, Tensor]:
    """The weights A, B, C, D and both or none of b, c, detached, sparse ones as coalesced COO tensors.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit each other, or A is not triangular for these sizes.
        TypeError: If one is not a tensor of floating point.
    """
    weights = {name: _tensor(name, value) for name, value in given.items() if value is not None}
    A, B, C = weights["A"], weights["B"], weights["C"]
    (rows, states), inputs, outputs = A.shape, B.shape[1], C.shape[0]
    if phi.states(rows) != states:
        raise ValueError(f"A has shape {tuple(A.shape)}, and {phi!r} makes {phi.states(rows)} states of {rows} rows")
    wanted = {"B": (rows, inputs), "C": (outputs, states), "D": (outputs, inputs), "b": (rows,), "c": (outputs,)}
    for name, weight in weights.items():
        if name in wanted and tuple(weight.shape) != wanted[name]:
            raise ValueError(f"{name} has shape {tuple(weight.shape)}, and beside the others it must be {wanted[name]}")
        if (weight.dtype, weight.device) != (A.dtype, A.device):
            raise ValueError(f"{name} is {weight.dtype} on {weight.device}, and A {A.dtype} on {A.device}: convert it")
    if "b" in weights or "c" in weights:
        weights.setdefault("b", A.new_zeros(rows, layout=torch.strided))
        weights.setdefault("c", A.new_zeros(outputs, layout=torch.strided))
    if sizes is not None:
        _check_triangular(A, phi, sizes)
    return weights


def _tensor(name: str, value: Any) -> Tensor:
    """The weight, detached; sparse ones coalesced.

    Raises:
        ValueError: If it is not a matrix, or for b and c not a vector.
        TypeError: If it is not a tensor of floating point.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must be a tensor of floating point, dense or sparse, not {value!r}")
    axes = 1 if name in ("b", "c") else 2
    if value.dim() != axes:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, and must have {axes} {'axis' if axes == 1 else 'axes'}"
        )
    weight = value.detach()
    if weight.layout == torch.strided:
        return weight
    coalesced: Tensor = weight.to_sparse_coo().coalesce()
    return coalesced


def _check_triangular(A: Tensor, phi: Activation, sizes: Sequence[int]) -> None:
    """Check that A is zero in and below the diagonal blocks.

    Raises:
        ValueError: Naming the first row and column where it is not.
    """
    if min(sizes, default=0) < 1 or sum(sizes) != A.shape[1]:
        raise ValueError(f"sizes={tuple(sizes)}: must be positive and add up to the {A.shape[1]} states")
    parts = phi.split(sizes)
    ends = torch.tensor(list(accumulate(sizes)), device=A.device)
    rows = torch.tensor([part.rows(size) for part, size in zip(parts, sizes, strict=True)], device=A.device)
    first = ends.repeat_interleave(rows)  # by row, the first column that may differ from zero
    row, column = A.indices() if A.is_sparse else A.nonzero().T
    wrong = (column < first[row]).nonzero()
    if len(wrong):
        i, j = int(row[wrong[0]]), int(column[wrong[0]])
        raise ValueError(
            f"A is not strictly upper block-triangular for sizes={tuple(sizes)}: it has an entry at "
            f"row {i}, column {j}. Order the states with the last layer first, or leave out sizes"
        )


@torch.no_grad()
def fill(model: Any, given: Mapping[str, Tensor]) -> None:
    """Set the parameters of an ``ImplicitModel`` of fitting structure.

    Raises:
        ValueError: If its constraint changes A.
    """
    for name, weight in given.items():
        parts = model._modules.get(f"{name}_parts")
        if isinstance(parts, SparseMatrix):
            parts.values.copy_(weight.values())
            parts.indices = weight.indices().clone()
        elif isinstance(parts, TriangularMatrix):
            rows = weight.split([shape[0] for shape in parts.shapes])
            for block, part in zip(parts.blocks, rows[:-1], strict=True):
                block.copy_(part[:, part.shape[1] - block.shape[1] :])
        elif name == "A" and nn.utils.parametrize.is_parametrized(model, "A"):
            model.parametrizations.A.original.copy_(weight)
        else:
            getattr(model, name).copy_(weight)
    if model.constraint is not None:
        _check_kept(model, given["A"])


def _check_kept(model: Any, A: Tensor) -> None:
    """Check that the constraint leaves A as it is.

    Raises:
        ValueError: Saying by how much it does not.
    """
    difference = (model.A.to_dense() - A.to_dense()).abs().max()
    if difference > torch.finfo(A.dtype).eps ** 0.75 * A.to_dense().abs().max():
        raise ValueError(
            f"A does not satisfy {model.constraint!r}, which changes it by {float(difference):.2g}: leave out "
            "constraint, or rescale the model first"
        )
