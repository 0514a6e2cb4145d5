"""All equilibria over a region of inputs, and the bounds of them that are known so far."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ...activations import Activation, Blocks, Componentwise, GroupSort, MaxPool, Scaled
from ...models import AffineForm, NotAffine
from ..regions import Region

__all__ = ["Bounds", "Problem", "doubt", "product", "shifted", "states"]

EPS = torch.finfo(torch.float64).eps
ERRORS = {"relu": 0.0, "identity": 0.0, "hardtanh": 0.0, "softplus": 3e-9}
"""More than the absolute error of a computed φ(z), 4 eps for others. torch's softplus leaves e⁻²⁰ out where z > 20."""


class Bounds(NamedTuple):
    """Least and largest values, both of the same shape; −∞ and ∞ where nothing is known."""

    low: Tensor
    high: Tensor

    def meet(self, other: Bounds) -> Bounds:
        """What both say."""
        return Bounds(torch.maximum(self.low, other.low), torch.minimum(self.high, other.high))

    @property
    def size(self) -> Tensor:
        """The largest absolute value."""
        return torch.maximum(self.low.abs(), self.high.abs())


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The set of (u, x) with u in a region and x = φ(z), z = Ax + Bu + b; all tensors float64.

    Attributes:
        form: The model.
        region: Where u is.
        x0: States found for the centre, (batch, states), not trusted: their residual is measured by who uses them.
        z: Bounds of z that hold for every equilibrium of every input, (batch, rows).
        x: Bounds of x, likewise.
        unique: Whether it is proved that every input has one equilibrium, which depends on it continuously.
        origin: Bounds of z at the centre alone, if unique; or None.
        kept: Which states are the model's own, where the form has others too, (states,); or None.
    """

    form: AffineForm
    region: Region
    x0: Tensor
    z: Bounds
    x: Bounds
    unique: bool = False
    origin: Bounds | None = None
    kept: Tensor | None = None

    @classmethod
    def of(cls, form: AffineForm, region: Region, x0: Tensor) -> Problem:
        """The problem with what φ's range alone says of x.

        Raises:
            NotAffine: If φ is not known to rise with every entry.
        """
        if not all(_rises(phi) for phi, _ in Blocks((form.activation, form.rows)).parts):
            raise NotAffine(
                f"nothing is proved of activation={form.activation!r}: there are bounds for component-wise ones with "
                "slopes of at least 0, such as relu and tanh, for MaxPool and GroupSort, and for blocks of these"
            )
        unknown = form.B.new_full((len(x0), form.rows), torch.inf)
        z = Bounds(-unknown, unknown)
        return cls(form=form, region=region, x0=x0, z=z, x=states(form, z))

    def tighten(self, z: Bounds | None = None, x: Bounds | None = None, *, unique: bool = False) -> Problem:
        """The problem with what is known already and this: x = φ(z) carries bounds of z over to x."""
        z = self.z if z is None else self.z.meet(z)
        x = self.x if x is None else self.x.meet(x)
        return replace(self, z=z, x=x.meet(states(self.form, z)), unique=self.unique or unique)

    def take(self, index: Tensor) -> Problem:
        """The problem of some samples."""
        return replace(
            self,
            region=self.region.take(index),
            x0=self.x0[index],
            z=Bounds(*(part[index] for part in self.z)),
            origin=None if self.origin is None else Bounds(*(part[index] for part in self.origin)),
            x=Bounds(*(part[index] for part in self.x)),
        )

    def put(self, index: Tensor, problem: Problem) -> Problem:
        """The problem with the bounds that are known of some samples."""
        z, x = (
            Bounds(*(whole.index_copy(0, index, part) for whole, part in zip(*pair, strict=True)))
            for pair in ((self.z, problem.z), (self.x, problem.x))
        )
        return replace(self, z=z, x=x)

    @cached_property
    def known(self) -> Tensor:
        """Which samples have finite bounds of all states, (batch,)."""
        return torch.isfinite(self.x.size).all(1)

    @property
    def bounded(self) -> Tensor:
        """The samples that have finite bounds of all rows of z, int64 indices."""
        return torch.isfinite(self.z.size).all(1).nonzero().flatten()

    def maximum(self, x_part: Tensor, u_part: Tensor) -> Tensor:
        """An upper bound of c·x + d·u over the bounds of x and the region, with rounding: interval arithmetic.

        Args:
            x_part: c, (k, states) or (batch, k, states).
            u_part: d, (k, inputs) or (batch, k, inputs).

        Returns:
            (batch, k).
        """
        centre, reach = self.region.centre, self.region.support(u_part)
        value = (
            product(x_part.clamp_min(0), self.x.high)
            + product(x_part.clamp_max(0), self.x.low)
            + product(u_part, centre)
            + reach
        )
        return value + self.rounding(x_part, u_part)

    def values(self, x_part: Tensor, u_part: Tensor, bias: Tensor) -> Bounds:
        """Bounds of c·x + d·u + bias by interval arithmetic, both (batch, k), for c, d and bias of k rows."""
        return shifted(Bounds(-self.maximum(-x_part, -u_part), self.maximum(x_part, u_part)), bias)

    def rounding(self, x_part: Tensor, u_part: Tensor) -> Tensor:
        """More than the rounding error of c·x + d·u, however it is summed up, (batch, k); c, d of a few roundings."""
        inputs = torch.maximum(self.region.low.abs(), self.region.high.abs())
        size = product(x_part.abs(), self.x.size) + product(u_part.abs(), inputs)
        terms = self.form.states + self.form.inputs + 8
        return 4 * terms * EPS * size


def shifted(bounds: Bounds, bias: Tensor) -> Bounds:
    """Bounds of what is larger by a bias, which has a few roundings."""
    (low, high), slack = bounds, 4 * EPS
    low, high = low - slack * (low.abs() + bias.abs()) + bias, high + slack * (high.abs() + bias.abs()) + bias
    return Bounds(low - slack * low.abs(), high + slack * high.abs())


def product(w: Tensor, v: Tensor) -> Tensor:
    """The products w·v, (batch, k), for w of (k, n) or (batch, k, n) and v of (batch, n); 0 · ∞ is 0."""
    finite = torch.isfinite(v)
    if bool(finite.all()):
        return v @ w.T if w.dim() == 2 else (w @ v[:, :, None])[:, :, 0]
    terms = w * v[:, None]
    return torch.where(w == 0, torch.zeros_like(terms), terms).sum(-1)


def states(form: AffineForm, z: Bounds) -> Bounds:
    """Bounds of φ(z) for a φ that rises with every entry, rounded outwards."""
    low, high = form.activation(z.low), form.activation(z.high)
    error, relative = doubt(form.activation, form.rows)
    if not error:
        return Bounds(low, high)
    return Bounds(low - error - relative * low.abs(), high + error + relative * high.abs())


def doubt(phi: Activation, rows: int) -> tuple[float, float]:
    """More than the absolute and the relative error of a computed φ(z), of which the sum counts."""
    if isinstance(phi, Scaled):
        error, relative = doubt(phi.inner, rows)
        return error / min(phi.scale), relative + 4 * EPS
    if isinstance(phi, Blocks):
        found = [doubt(part, count) for part, count in phi.parts]
        return max(error for error, _ in found), max(relative for _, relative in found)
    error = 0.0 if not isinstance(phi, Componentwise) else ERRORS.get(phi.name, 4 * EPS)
    return error, 4 * EPS if error else 0.0


def _rises(phi: Activation) -> bool:
    slopes = phi.slopes()
    return isinstance(phi, MaxPool | GroupSort) or (phi.componentwise and slopes is not None and slopes[0] >= 0)
