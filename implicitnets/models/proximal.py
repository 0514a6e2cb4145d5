"""Activations as proximal operators, φ = prox_h of a convex h, and the operators prox_{ah} of their multiples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["PROXIMAL", "ProximalActivation", "proximal"]

Function = Callable[[Tensor], Tensor]
LEAK, NEWTON_STEPS = 0.01, 60


@dataclass(frozen=True)
class ProximalActivation:
    """A component-wise φ with slopes in [0, 1], which is the proximal operator of a convex function h.

    Attributes:
        function: φ.
        closed: prox_{ah} as a function of the point and a, or None: then it is found by Newton's method.
        slope: φ′, needed for that.
    """

    function: Function
    closed: Callable[[Tensor, float], Tensor] | None = None
    slope: Function | None = None

    def __call__(self, p: Tensor) -> Tensor:
        """φ(p)."""
        return self.function(p)

    def prox(self, v: Tensor, step: float) -> Tensor:
        """prox_{ah}(v) for a = step: φ(p) with (1 − a) φ(p) + a p = v."""
        if step == 1:
            return self.function(v)
        if self.closed is not None:
            return self.closed(v, step)
        return self.function(self._argument(v, step))

    def slopes(self, p: Tensor) -> Tensor:
        """φ′(p), at a kink the one that autograd or the active selection picks."""
        with torch.enable_grad():
            point = p.detach().requires_grad_()
            return torch.autograd.grad(self.function(point).sum(), point)[0]

    def _argument(self, v: Tensor, step: float) -> Tensor:
        """The p with (1 − a) φ(p) + a p = v, by Newton's method in a bracket. The slope in p is between 1 and a."""
        assert self.slope is not None
        p, flat, steep = v, min(1.0, step), max(1.0, step)
        error = (1 - step) * self.function(p) + step * p - v
        far, near = p - error / flat, p - error / steep
        low, high = torch.minimum(far, near), torch.maximum(far, near)
        p = near
        for _ in range(NEWTON_STEPS):
            error = (1 - step) * self.function(p) + step * p - v
            low, high = torch.where(error <= 0, p, low), torch.where(error >= 0, p, high)
            guess = p - error / ((1 - step) * self.slope(p) + step)
            guess = torch.where((guess >= low) & (guess <= high), guess, (low + high) / 2)
            moved, p = (guess - p).abs(), guess
            if not bool((moved > 4 * torch.finfo(p.dtype).eps * (1 + p.abs())).any()):
                break
        return p


def _sigmoid_slope(p: Tensor) -> Tensor:
    s = torch.sigmoid(p)
    return s * (1 - s)


PROXIMAL: dict[str, ProximalActivation] = {
    "relu": ProximalActivation(torch.relu, lambda v, a: torch.relu(v)),
    "hardtanh": ProximalActivation(functional.hardtanh, lambda v, a: v.clamp(-1, 1)),
    "leaky_relu": ProximalActivation(
        lambda p: functional.leaky_relu(p, LEAK),
        lambda v, a: torch.where(v > 0, v, v * (LEAK / (LEAK + a * (1 - LEAK)))),
    ),
    "tanh": ProximalActivation(torch.tanh, slope=lambda p: 1 - torch.tanh(p).square()),
    "sigmoid": ProximalActivation(torch.sigmoid, slope=_sigmoid_slope),
    "softplus": ProximalActivation(functional.softplus, slope=torch.sigmoid),
    "elu": ProximalActivation(functional.elu, slope=lambda p: p.clamp(max=0).exp()),
}
"""The activations of models whose equilibrium is unique by monotonicity: component-wise, with slopes in [0, 1]."""


def proximal(name: str) -> ProximalActivation:
    """The activation of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in PROXIMAL:
        raise ValueError(
            f"activation={name!r}: the guarantee needs one of {', '.join(sorted(PROXIMAL))}, which are component-wise "
            "with slopes in [0, 1]"
        )
    return PROXIMAL[name]
