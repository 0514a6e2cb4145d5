"""Which slopes an activation can have: everywhere, at a point, on a box of inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..fixed_point import fixed_point
from ..models import ACTIVATIONS, ImplicitModel
from ..solvers import Anderson
from .criteria import perron_frobenius

__all__ = ["activation_slopes", "preactivation_bounds"]

Slope = Callable[[Tensor], Tensor]

RISING: dict[str, tuple[Slope, Slope]] = {
    "relu": (lambda u: (u > 0).to(u), lambda u: (u >= 0).to(u)),
    "leaky_relu": (lambda u: torch.where(u > 0, 1.0, 0.01).to(u), lambda u: torch.where(u >= 0, 1.0, 0.01).to(u)),
    "softplus": (torch.sigmoid, torch.sigmoid),
    "identity": (torch.ones_like, torch.ones_like),
    "elu": (lambda u: u.clamp_max(0).exp(), lambda u: u.clamp_max(0).exp()),
}
"""The least and the largest slope at u, of activations whose slope rises with u."""

EVEN: dict[str, tuple[Slope, Slope]] = {
    "tanh": (lambda u: u.cosh() ** -2, lambda u: u.cosh() ** -2),
    "sigmoid": (lambda u: (u / 2).cosh() ** -2 / 4, lambda u: (u / 2).cosh() ** -2 / 4),
    "hardtanh": (lambda u: (u < 1).to(u), lambda u: (u <= 1).to(u)),
}
"""The same of |u|, of activations whose slope falls with |u|."""


def activation_slopes(activation: str, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest slope of an activation on each interval [low, high], Clarke's at a kink.

    Examples:
        >>> u = torch.tensor([-1.0, 0.0, 1.0])
        >>> activation_slopes("relu", u, u)
        (tensor([0., 0., 1.]), tensor([0., 1., 1.]))

    Args:
        activation: A name in ``models.ACTIVATIONS``.
        low: Where the intervals begin; −∞ is allowed.
        high: Where they end.

    Raises:
        ValueError: If the slopes of the activation are not known.
    """
    if activation in RISING:
        least, largest = RISING[activation]
        return least(low), largest(high)
    if activation in EVEN:
        least, largest = EVEN[activation]
        nearest = torch.where((low <= 0) & (high >= 0), torch.zeros_like(low), torch.minimum(low.abs(), high.abs()))
        return least(torch.maximum(low.abs(), high.abs())), largest(nearest)
    raise ValueError(
        f"the slopes of activation={activation!r} are not known, only those of {', '.join(sorted(RISING | EVEN))}: "
        "pass slopes=(least, largest)"
    )


@torch.no_grad()
def preactivation_bounds(model: ImplicitModel, u: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds of the pre-activation Ax + Bu′ + b over all u′ with ‖u′ − u‖∞ ≤ radius, in float64.

    Where ρ(|A|) < 1, the equilibrium of u′ is within (I − |A|)⁻¹(|B| radius + |r|) of the state that was found for u, r
    its residual (El Ghaoui et al. 2021, section 4). Interval iterations from there keep every equilibrium inside and
    tighten the box. Where ρ(|A|) ≥ 1 the bounds are infinite for a positive radius, and for none the value itself.

    Returns:
        The bounds, both ``(batch, states)``, and which samples have an equilibrium, ``(batch,)``.
    """
    phi = ACTIVATIONS[model.activation] if isinstance(model.activation, str) else model.activation
    a, b = model.A.to_dense().double(), model.B.to_dense().double()
    v = functional.linear(u.double(), b, None if model.b is None else model.b.double())
    solver = model.solver or Anderson()
    tight = replace(solver, rtol=1e-10, atol=1e-10, max_steps=max(1000, solver.max_steps))
    solution = fixed_point(lambda x, v: phi(torch.addmm(v, x, a.T)), torch.zeros_like(v), v, solver=tight)
    x: Tensor = solution.value
    centre, spread = torch.addmm(v, x, a.T), radius * b.abs().sum(1)
    size = a.abs().cpu().numpy()
    if not perron_frobenius(size, np.zeros_like(size)) > 0:
        reach = torch.full_like(centre, torch.inf if radius > 0 else 0.0)
        return centre - reach, centre + reach, solution.converged
    residual = (phi(centre) - x).abs() + torch.finfo(x.dtype).eps * (1 + x.abs())
    inverse = torch.linalg.inv(torch.eye(len(a)).to(a) - a.abs())
    error = (spread + residual) @ inverse.T * (1 + 1e-9)
    low, high = x - error, x + error
    for _ in range(50):
        c, r = torch.addmm(v, (low + high) / 2, a.T), torch.addmm(spread, (high - low) / 2, a.abs().T)
        low, high = torch.maximum(low, phi(c - r)), torch.minimum(high, phi(c + r))
    return c - r, c + r, solution.converged
