"""Lines below and above an activation on an interval."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...activations import Activation, Blocks, Scaled
from ..slopes import activation_slopes
from .problem import EPS, Bounds, doubt

__all__ = ["Lines", "lines", "steepest"]

CONVEX = {"relu": torch.inf, "leaky_relu": torch.inf, "softplus": torch.inf, "elu": torch.inf, "identity": torch.inf}
CONVEX |= {"hardtanh": 1.0, "tanh": 0.0, "sigmoid": 0.0}
"""Where an activation is convex: up to here."""
CONCAVE = {"hardtanh": -1.0, "tanh": 0.0, "sigmoid": 0.0, "identity": -torch.inf}
"""Where it is concave: from here on."""


class Lines(NamedTuple):
    """low · z + under ≤ φ(z) ≤ high · z + over, each of the shape of z."""

    low: Tensor
    under: Tensor
    high: Tensor
    over: Tensor


def lines(phi: Activation, z: Bounds) -> Lines:
    """Lines below and above a rising component-wise φ on finite intervals, rounding included.

    Where φ is convex, the chord is above, and below is a tangent: in the middle, and of relu the one of slope 0 or 1
    that is closer. Where it is concave, the other way round. Elsewhere both have the least slope of the interval.

    """
    if isinstance(phi, Blocks):
        sizes = [rows for _, rows in phi.blocks]
        ends = zip(z.low.split(sizes, -1), z.high.split(sizes, -1), strict=True)
        found = [lines(part, Bounds(*end)) for (part, _), end in zip(phi.parts, ends, strict=True)]
        return Lines(*(torch.cat(pieces, -1) for pieces in zip(*found, strict=True)))
    if isinstance(phi, Scaled):
        scale = torch.tensor(phi.scale).to(z.low)
        inner = lines(phi.inner, Bounds(z.low * scale, z.high * scale))
        slack = 8 * EPS * scale * inner.high.abs() * z.size
        return Lines(inner.low, inner.under / scale - slack, inner.high, inner.over / scale + slack)
    return _lines(phi, z)


def _lines(phi: Activation, z: Bounds) -> Lines:
    name, (start, end) = str(getattr(phi, "name", "")), z
    slopes = phi.slopes() or (0.0, 0.0)
    known = name in CONVEX
    least, largest = activation_slopes(name, start, end) if known else (torch.full_like(start, s) for s in slopes)
    middle = (start + end) / 2
    at, below, above = phi(middle), phi(start), phi(end)
    tangent = activation_slopes(name, middle, middle)[0] if known else least
    chord = torch.maximum(torch.minimum((above - below) / (end - start).clamp_min(EPS * EPS), largest), least)
    convex, concave = end <= CONVEX.get(name, -torch.inf), start >= CONCAVE.get(name, torch.inf)
    low = torch.where(convex, tangent, torch.where(concave, chord, least))
    high = torch.where(convex, chord, torch.where(concave, tangent, least))
    ends = below - low * start, above - low * end
    under = torch.where(convex, at - low * middle, torch.where(concave, torch.minimum(*ends), ends[0]))
    ends = below - high * start, above - high * end
    over = torch.where(convex, torch.maximum(*ends), torch.where(concave, at - high * middle, ends[1]))
    error, relative = doubt(phi, start.shape[-1])
    size = torch.maximum(below.abs(), above.abs())
    slack = error + (relative + 16 * EPS) * size
    return Lines(low, under - slack - 16 * EPS * low * z.size, high, over + slack + 16 * EPS * high * z.size)


def steepest(phi: Activation, z: Bounds) -> Tensor:
    """The largest slopes of a rising component-wise φ on intervals."""
    if isinstance(phi, Blocks):
        sizes = [rows for _, rows in phi.blocks]
        ends = zip(z.low.split(sizes, -1), z.high.split(sizes, -1), strict=True)
        return torch.cat([steepest(part, Bounds(*end)) for (part, _), end in zip(phi.parts, ends, strict=True)], -1)
    if isinstance(phi, Scaled):
        scale = torch.tensor(phi.scale).to(z.low)
        return steepest(phi.inner, Bounds(z.low * scale, z.high * scale))
    name = str(getattr(phi, "name", ""))
    if name in CONVEX:
        return activation_slopes(name, *z)[1] * (1 + 8 * EPS)
    return torch.full_like(z.low, phi.lipschitz(float("inf")))
