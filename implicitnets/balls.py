"""Projections on simplices and ℓ1 balls."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["project_l1_ball", "simplex_threshold"]


def simplex_threshold(size: Tensor, total: float, scale: Tensor | None = None) -> Tensor:
    """The t of each row with Σᵢ max(sizeᵢ − t scaleᵢ, 0) = total, by sorting (Duchi et al. 2008, figure 1).

    max(size − t scale, 0) is then the point of the simplex {x ≥ 0, Σ x = total} nearest to ``size`` in the metric
    Σ xᵢ²/scaleᵢ. The sum is piecewise linear in t, with its kinks where an entry becomes zero, at sizeᵢ/scaleᵢ.

    Args:
        size: Rows along the last axis, of any sign.
        total: Positive.
        scale: Positive, of the shape of ``size``; None is ones.

    Returns:
        Of shape ``(..., 1)``, differentiable. It is negative where a row sums to less than ``total``.
    """
    if scale is None:
        ordered = kinks = size.sort(-1, descending=True).values
        slopes = torch.arange(1, size.shape[-1] + 1, device=size.device).expand_as(size)
    else:
        kinks, order = (size / scale).sort(-1, descending=True)
        ordered, slopes = size.gather(-1, order), scale.gather(-1, order).cumsum(-1)
    excess = ordered.cumsum(-1) - total
    last = (kinks * slopes > excess).sum(-1, keepdim=True).clamp_min(1)  # entries that stay nonzero
    return excess.gather(-1, last - 1) / slopes.gather(-1, last - 1)


def project_l1_ball(rows: Tensor, kappa: float, scale: Tensor | None = None) -> Tensor:
    """The point of the ball Σ|xᵢ| ≤ kappa nearest to each row, in the metric Σ xᵢ²/scaleᵢ; differentiable.

    Rows that are in the ball stay as they are. The others get sign(a) max(|a| − t scale, 0) with the threshold t.

    Args:
        rows: Along the last axis.
        kappa: Positive.
        scale: Positive, of the shape of ``rows``; None is ones.
    """
    size = rows.abs()
    threshold = simplex_threshold(size, kappa, scale)
    shrunk = rows.sign() * (size - (threshold if scale is None else threshold * scale)).clamp_min(0)
    # Where entries are huge, rounding errors of the threshold are no small part of kappa.
    reached = shrunk.detach().abs().sum(-1, keepdim=True) / kappa
    shrunk = shrunk / (reached - torch.finfo(rows.dtype).eps ** 0.5).clamp_min(1)
    return torch.where(size.sum(-1, keepdim=True) > kappa, shrunk, rows)
