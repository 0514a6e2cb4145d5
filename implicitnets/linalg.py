"""Batched dense linear systems, solved so that a wrong answer can't pass."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["inverse", "inverse_or_any", "invert_definite", "solve_dense"]

SAFE = 64
"""Batched LU is used up to this size only: beyond about 150, the CPU build of torch 2.13 hangs or returns wrong
numbers once ``torch.set_num_threads`` was called (pytorch#142815)."""


def solve_dense(matrix: Tensor, right: Tensor) -> Tensor:
    """The x with ``matrix[i] @ x[i] = right[i]``: ``(batch, n, n), (batch, n) -> (batch, n)``.

    Small systems go through batched LU, large ones on the CPU one by one. Where the residual of a row is not of
    the order of rounding errors, the row gets its least-squares solution of smallest norm instead, so that a
    singular matrix gives a finite answer, whose residual tells.
    """
    if matrix.shape[0] == 0 or matrix.shape[1] == 0:
        return right.clone()
    if matrix.shape[1] <= SAFE or matrix.device.type != "cpu":
        x: Tensor = torch.linalg.solve_ex(matrix, right[:, :, None])[0][:, :, 0]
    else:
        x = torch.stack([torch.linalg.solve_ex(a, b)[0] for a, b in zip(matrix, right, strict=True)])
    residual = torch.linalg.vector_norm(torch.linalg.vecdot(matrix, x[:, None]) - right, dim=1)
    size = torch.linalg.vector_norm(matrix, dim=(1, 2)) * torch.linalg.vector_norm(x, dim=1)
    wrong = ~(residual <= torch.finfo(x.dtype).eps * matrix.shape[1] * size)
    for i in wrong.nonzero().flatten().tolist():
        if bool(torch.isfinite(matrix[i]).all() & torch.isfinite(right[i]).all()):
            x[i] = torch.linalg.lstsq(matrix[i].cpu(), right[i, :, None].cpu(), driver="gelsd")[0][:, 0]
    return x


def invert_definite(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The inverses of symmetric matrices ``(..., n, n)``, and which are positive definite up to rounding, ``(...,)``.

    Differentiable. By Cholesky's factorization, which the CPU build does one by one, and rightly. Where a matrix is not
    positive definite its inverse means nothing.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    if not matrix.shape[-1]:
        return matrix, info == 0
    pivots = factor.detach().diagonal(dim1=-2, dim2=-1).square()
    definite = pivots.amin(-1) > torch.finfo(matrix.dtype).eps * matrix.shape[-1] * pivots.amax(-1)
    return torch.cholesky_solve(eye, factor), (info == 0) & definite


def inverse(matrices: Tensor) -> Tensor:
    """The inverses of regular matrices ``(batch, n, n)``: small ones in a batch, others one by one on the CPU."""
    if matrices.shape[-1] <= SAFE or matrices.device.type != "cpu":
        whole: Tensor = torch.linalg.inv(matrices)
        return whole
    return torch.stack([torch.linalg.inv(matrix) for matrix in matrices])


def inverse_or_any(matrices: Tensor) -> Tensor:
    """As ``inverse``, but for a singular matrix something finite, for what holds whatever the inverse is."""
    if matrices.shape[-1] <= SAFE or matrices.device.type != "cpu":
        found = torch.linalg.inv_ex(matrices)[0]
    else:
        found = torch.stack([torch.linalg.inv_ex(matrix)[0] for matrix in matrices])
    finite: Tensor = found.nan_to_num(0, 0, 0)
    return finite
