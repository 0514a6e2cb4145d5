"""Products with a short history of vectors, which limited-memory methods live on.

A history is a ring ``(slots, rows, size)``: a slot is a matrix like the state, contiguous, so that taking it
in and out costs one pass, and the products below read the ring once.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["combine", "inner"]

WIDE = 256
"""From this many columns on, a matrix product beats the row-wise dot product (measured on the CPU)."""
SMALL = 2**15
"""Up to this many entries a slot, one fused sum beats adding the slots one by one (measured on the CPU)."""


def inner(ring: Tensor, vector: Tensor) -> Tensor:
    """⟨ring[j], vector⟩ in each row: ``(slots, rows, size), (rows, size) -> (slots, rows)``."""
    if vector.shape[1] < WIDE:
        products: Tensor = torch.linalg.vecdot(ring, vector)
        return products
    return torch.bmm(vector[:, None], ring.permute(1, 2, 0))[:, 0].T


def combine(start: Tensor, ring: Tensor, coefficients: Tensor) -> Tensor:
    """The sum start + Σⱼ coefficients[j] · ring[j] in each row, a new matrix."""
    if start.numel() <= SMALL:
        return (ring * coefficients[:, :, None]).sum(0).add_(start)
    out = start
    for vectors, c in zip(ring, coefficients, strict=True):
        out = torch.addcmul(out, vectors, c[:, None]) if out is start else out.addcmul_(vectors, c[:, None])
    return out
