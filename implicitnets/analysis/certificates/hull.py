"""Polygons around the pairs (z, φ(z)), and the bound that any multipliers of z = Ax + Bu + b give over them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...activations import Activation, Blocks, Componentwise, Scaled
from ...models import NotAffine
from .problem import EPS, Bounds, Problem, doubt, product
from .relaxation import lines

__all__ = ["Hull", "bound", "hull", "kinks"]

KINKS: dict[str, tuple[float, ...]] = {"relu": (0.0,), "leaky_relu": (0.0,), "hardtanh": (-1.0, 1.0), "identity": ()}
"""Where the slopes of the piecewise linear activations change."""

PIECES = 4
"""Into how many parts the range of z is cut where φ is curved."""


class Hull(NamedTuple):
    """Corners of polygons that hold all pairs (z, φ(z)), (batch, rows, corners) each; corners may coincide.

    Attributes:
        z: Of each corner, ascending. Where φ is piecewise linear the corners are on its graph, and those between are
            the pairs themselves.
        x: Of each corner, up to the rounding error of φ.
    """

    z: Tensor
    x: Tensor


def kinks(phi: Activation, rows: int) -> list[tuple[float, ...] | None]:
    """Where the slope of φ changes, for each row; None where φ is curved.

    Raises:
        NotAffine: If φ is not component-wise.
    """
    if not phi.componentwise:
        raise NotAffine(f"activation={phi!r} is not component-wise: rewrite the problem with componentwise(problem)")
    if isinstance(phi, Blocks):
        return [place for part, count in phi.parts for place in kinks(part, count)]
    if isinstance(phi, Scaled):
        inner = kinks(phi.inner, rows)
        return [None if k is None else tuple(v / s for v in k) for k, s in zip(inner, phi.scale, strict=True)]
    return [KINKS.get(phi.name) if isinstance(phi, Componentwise) else None] * rows


def hull(problem: Problem) -> Hull:
    """The polygons of a problem with finite bounds of z: for relu, triangles, or segments where the sign is known."""
    phi, (low, high) = problem.form.activation, problem.z
    places = kinks(phi, problem.form.rows)
    curved = torch.tensor([k is None for k in places], device=low.device)
    count = max((len(k) for k in places if k is not None), default=0)
    inner = [list(k or ()) + [torch.inf] * (count - len(k or ())) for k in places]
    grid = torch.cat([low[..., None], low.new_tensor(inner).expand(*low.shape, count), high[..., None]], -1)
    z = torch.minimum(torch.maximum(grid, low[..., None]), high[..., None])
    exact = Hull(z, phi(z.mT).mT)
    if not bool(curved.any()):
        return exact
    share = torch.linspace(0, 1, PIECES + 1).to(low)[:, None]
    ends = (low[:, None] + share * (high - low)[:, None]).clamp(low[:, None], high[:, None])
    line = lines(phi, Bounds(ends[:, :-1], ends[:, 1:]))
    corners = [(z, z * a + b) for z in (ends[:, :-1], ends[:, 1:]) for a, b in (line[:2], line[2:])]
    around = [torch.cat(part, 1).mT for part in zip(*corners, strict=True)]
    padded = [torch.cat([part, part[..., -1:].expand(*low.shape, 4 * PIECES - count - 2)], -1) for part in exact]
    return Hull(*(torch.where(curved[:, None], a, b) for a, b in zip(around, padded, strict=True)))


def bound(
    problem: Problem, polygons: Hull, x_part: Tensor, u_part: Tensor, y: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """An upper bound of c·x + d·u from multipliers y of z = Ax + Bu + b, whatever they are, rounding included.

    c·x + d·u = y·b + (d + Bᵀy)·u + Σ (c + Aᵀy)ᵢxᵢ − yᵢzᵢ, and each term is largest at the end of the region or at a
    corner. The best y gives the optimum of the linear programme over the polygons, by duality; a y that is a bit off
    gives a bound that is a bit larger (Neumaier and Shcherbina 2004).

    Args:
        problem: What is asked.
        polygons: Its polygons.
        x_part: c, (k, states) or (batch, k, states).
        u_part: d, (k, inputs) or (batch, k, inputs).
        y: (batch, k, rows).
        allowed: The corners that the pairs are between, (batch or 1, k, rows, corners), or None for all.

    Returns:
        (batch, k).
    """
    form, region = problem.form, problem.region
    alpha, beta = x_part + y @ form.A, u_part + y @ form.B
    terms = alpha[..., None] * polygons.x[:, None] - y[..., None] * polygons.z[:, None]
    if allowed is not None:
        terms = torch.where(allowed, terms, -torch.inf)
    value = y @ form.b + terms.amax(-1).sum(-1) + product(beta, region.centre) + region.support(beta)
    inputs = torch.maximum(region.low.abs(), region.high.abs())
    outputs, error = polygons.x.abs().amax(-1), doubt(form.activation, form.rows)
    size = product(y.abs(), form.b.abs() + polygons.z.abs().amax(-1))
    size = size + product(x_part.abs() + y.abs() @ form.A.abs(), outputs)
    size = size + product(u_part.abs() + y.abs() @ form.B.abs(), inputs)
    count = form.states + form.inputs + form.rows + 8
    value = value + product(alpha.abs(), error[0] + error[1] * outputs) * (1 + 1e-9) + 4 * count * EPS * size
    return torch.where(torch.isfinite(value), value, torch.inf)
