"""Sets of inputs around given ones: what may happen to an input."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..balls import project_l1_ball

__all__ = ["Ball", "Box", "Cardinality", "Region", "region"]

ROUNDS = 6
"""For the point of a ball of the norm 2, cut off by a domain, that is farthest in a direction."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Region(ABC):
    """A closed convex set of inputs for each sample, or one whose convex hull bounds are the same.

    Attributes:
        centre: The inputs given, (batch, inputs).
        low: No input of the region is below, (batch, inputs).
        high: No input of the region is above, (batch, inputs).
    """

    centre: Tensor
    low: Tensor
    high: Tensor

    @abstractmethod
    def support(self, w: Tensor) -> Tensor:
        """An upper bound of w·(u − centre) over the region; exact but for balls of the norm 2 that a domain cuts off.

        Args:
            w: (batch, k, inputs), or (k, inputs) for the same in all samples.

        Returns:
            (batch, k).
        """

    @abstractmethod
    def maximizer(self, w: Tensor) -> Tensor:
        """A u of the region with the largest w·u (or nearly, as above), (batch, inputs), for w of that shape."""

    @abstractmethod
    def project(self, u: Tensor) -> Tensor:
        """A point of the region near u, (batch, inputs), u itself if it is in the region."""

    @abstractmethod
    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A random point of each, (batch, inputs)."""

    def contains(self, u: Tensor, tol: float = 1e-9) -> Tensor:
        """Which u are in their region up to rounding, (batch,)."""
        return (self.project(u) - u).abs().amax(1) <= tol * (1 + u.abs().amax(1))

    def take(self, index: Tensor) -> Region:
        """The regions of some samples."""
        parts: dict[str, Any] = {k: v[index] if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return type(self)(**parts)

    def _box_support(self, w: Tensor) -> Tensor:
        up, down = self.high - self.centre, self.centre - self.low
        return _dot(w.clamp_min(0), up) - _dot(w.clamp_max(0), down)


def _dot(w: Tensor, v: Tensor) -> Tensor:
    """W·v, for w of (k, inputs) or (batch, k, inputs), and v of (batch, inputs)."""
    return v @ w.T if w.dim() == 2 else (w @ v[:, :, None])[:, :, 0]  # vecdot would make the products first


@dataclass(frozen=True, kw_only=True, eq=False)
class Box(Region):
    """low ≤ u ≤ high."""

    def support(self, w: Tensor) -> Tensor:  # noqa: D102
        return self._box_support(w)

    def maximizer(self, w: Tensor) -> Tensor:  # noqa: D102
        return torch.where(w > 0, self.high, torch.where(w < 0, self.low, self.centre))

    def project(self, u: Tensor) -> Tensor:  # noqa: D102
        return u.clamp(self.low, self.high)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:  # noqa: D102
        share = torch.rand(self.low.shape, generator=generator, dtype=self.low.dtype)
        return self.low + share.to(self.low.device) * (self.high - self.low)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ball(Region):
    """‖u − centre‖ₚ ≤ radius and low ≤ u ≤ high.

    Attributes:
        radius: (batch,).
        p: 1 or 2.
    """

    radius: Tensor
    p: int

    def support(self, w: Tensor) -> Tensor:  # noqa: D102
        size = torch.linalg.vector_norm(w, 2 if self.p == 2 else math.inf, dim=-1)
        value = torch.minimum(self.radius[:, None] * size, self._box_support(w))
        room = torch.minimum(self.high - self.centre, self.centre - self.low).amin(1)
        if bool((room >= self.radius * (1 - 1e-6)).all()):
            return value
        w = w.expand(len(self.centre), -1, -1)
        step, share = self._farthest(w)
        if self.p == 1:
            return torch.minimum(value, (step * w).sum(-1))
        # w is the sum of a part along the step, whose support is that of the ball, and of a rest: that of the box
        along = torch.where(share > 0, step / share.clamp_min(torch.finfo(w.dtype).tiny), 0)
        ball = self.radius[:, None] * torch.linalg.vector_norm(along, dim=-1)
        return torch.minimum(value, ball + self._box_support(w - along))

    def maximizer(self, w: Tensor) -> Tensor:  # noqa: D102
        return self.project(self.centre + self._farthest(w[:, None])[0][:, 0])

    def _farthest(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The step from the centre that goes farthest along w, (batch, k, inputs); and a share s, (batch, k, 1).

        For p = 1 the largest |wᵢ| take what they can first. For p = 2 the step is sw, cut off at the bounds, with the s
        that makes it as long as the radius: what was cut off in a round leaves more to the others in the next.
        """
        up, down, radius = self.high - self.centre, self.low - self.centre, self.radius[:, None, None]
        if self.p == 1:
            room = torch.where(w > 0, up[:, None], -down[:, None]).minimum(radius) * (w != 0)
            order = w.abs().argsort(-1, descending=True)
            rooms = room.gather(-1, order)
            used = torch.minimum(rooms, (radius - (rooms.cumsum(-1) - rooms)).clamp_min(0))
            return torch.zeros_like(room).scatter(-1, order, used) * w.sign(), torch.zeros_like(radius)
        tiny = torch.finfo(w.dtype).tiny ** 0.5  # so that what is divided by it stays finite
        share = radius / torch.linalg.vector_norm(w, dim=-1, keepdim=True).clamp_min(tiny)
        for _ in range(ROUNDS):
            step = torch.minimum(torch.maximum(share * w, down[:, None]), up[:, None])
            cut = step != share * w
            left = (radius.square() - (step * cut).square().sum(-1, keepdim=True)).clamp_min(0)
            free = torch.linalg.vector_norm(torch.where(cut, 0, w), dim=-1, keepdim=True)
            share = torch.where(free > 0, torch.maximum(share, left.sqrt() / free.clamp_min(tiny)), share)
        return torch.minimum(torch.maximum(share * w, down[:, None]), up[:, None]), share

    def project(self, u: Tensor) -> Tensor:  # noqa: D102
        step = u.clamp(self.low, self.high) - self.centre
        if self.p == 2:
            size: Tensor = torch.linalg.vector_norm(step, dim=1, keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)
            return self.centre + step * (self.radius[:, None] / size).clamp_max(1)
        scale = self.radius.clamp_min(torch.finfo(u.dtype).tiny)[:, None]
        return self.centre + project_l1_ball(step / scale, 1.0) * scale

    def sample(self, generator: torch.Generator | None = None) -> Tensor:  # noqa: D102
        draw = torch.randn(self.centre.shape, generator=generator, dtype=self.centre.dtype).to(self.centre.device)
        size = torch.linalg.vector_norm(draw, self.p, dim=1, keepdim=True)
        share = torch.rand(len(draw), 1, generator=generator, dtype=draw.dtype).to(draw.device)
        return self.project(self.centre + draw / size * share * self.radius[:, None])


@dataclass(frozen=True, kw_only=True, eq=False)
class Cardinality(Region):
    """low ≤ u ≤ high, and at most ``count`` entries differ from the centre.

    The region is not convex; ``project`` keeps the largest changes.

    Attributes:
        count: How many.
    """

    count: int

    def support(self, w: Tensor) -> Tensor:  # noqa: D102
        up, down = (self.high - self.centre)[:, None], (self.centre - self.low)[:, None]
        gain = torch.maximum(w * up, -w * down)
        largest: Tensor = gain.topk(min(self.count, gain.shape[-1]), dim=-1).values.sum(-1)
        return largest

    def maximizer(self, w: Tensor) -> Tensor:  # noqa: D102
        best = torch.where(w > 0, self.high, torch.where(w < 0, self.low, self.centre))
        return self._keep(best, (best - self.centre) * w)

    def project(self, u: Tensor) -> Tensor:  # noqa: D102
        u = u.clamp(self.low, self.high)
        return self._keep(u, (u - self.centre).abs())

    def _keep(self, u: Tensor, worth: Tensor) -> Tensor:
        chosen = worth.topk(min(self.count, worth.shape[1]), dim=1).indices
        kept = torch.zeros_like(u, dtype=torch.bool).scatter_(1, chosen, True)
        return torch.where(kept, u, self.centre)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:  # noqa: D102
        share, worth = (torch.rand(self.low.shape, generator=generator, dtype=self.low.dtype) for _ in range(2))
        return self._keep(self.low + share.to(self.low) * (self.high - self.low), worth.to(self.low))


def region(
    x: Tensor,
    radius: float | Tensor,
    norm: float | str = "inf",
    *,
    cardinality: int | None = None,
    domain: tuple[float, float] | None = None,
    dtype: torch.dtype | None = None,
) -> Region:
    """The inputs within a radius of x.

    Examples:
        >>> ball = region(torch.rand(5, 64), 0.1, norm=2, domain=(0, 1))
        >>> bool(ball.contains(ball.sample()).all())
        True

    Args:
        x: (batch, ...), flattened.
        radius: A number, or a tensor that broadcasts to x: each feature has its own, 0 where it is certain. With the
            norms 2 and 1 there is one for each sample, (batch, 1).
        norm: "inf" (a box), 2 or 1.
        cardinality: At most so many entries change, each within the radius; with the maximum norm.
        domain: The least and the largest value that any entry can have, or None. x must be inside.
        dtype: Of the region; None is that of x.

    Raises:
        ValueError: If an argument does not fit the others.
    """
    if not x.is_floating_point() or x.dim() < 2:
        raise ValueError(f"x must be a batch of floating point, (batch, ...), not {x.dtype} of shape {tuple(x.shape)}")
    x = x if dtype is None else x.to(dtype)
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x has entries that are not finite: leave these samples out")
    kind = {"inf": math.inf, "2": 2, "1": 1}.get(str(norm).removesuffix(".0"))
    if kind is None:
        raise ValueError(f'norm={norm!r}: the norms are "inf", 2 and 1')
    if cardinality is not None and (kind != math.inf or cardinality < 0):
        raise ValueError(f"cardinality={cardinality}, norm={norm!r}: it must be at least 0, and is for norm='inf'")
    size = torch.as_tensor(radius, dtype=x.dtype, device=x.device)
    if not bool(((size >= 0) & torch.isfinite(size)).all()):
        raise ValueError(f"radius={radius}: it must be at least 0 and finite")
    shape = x.shape if kind == math.inf else (len(x), *(1 for _ in x.shape[1:]))
    try:
        reach = size.expand(shape).flatten(1)
    except RuntimeError as error:
        raise ValueError(f"radius has shape {tuple(size.shape)}, which does not broadcast to {shape}") from error
    flat = x.flatten(1)
    low, high = _domain(flat, domain)
    limits = {"centre": flat, "low": torch.maximum(low, flat - reach), "high": torch.minimum(high, flat + reach)}
    if kind != math.inf:
        return Ball(**limits, radius=reach[:, 0], p=int(kind))
    return Box(**limits) if cardinality is None else Cardinality(**limits, count=cardinality)


def _domain(x: Tensor, domain: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    least, largest = (-math.inf, math.inf) if domain is None else domain
    if not bool(((x >= least) & (x <= largest)).all()):
        raise ValueError(f"domain={domain}: x has entries from {float(x.min()):g} to {float(x.max()):g}, outside of it")
    return torch.full_like(x, least), torch.full_like(x, largest)
