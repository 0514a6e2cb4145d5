"""Finite differences that understand kinks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .watching import Event, watch

__all__ = ["DirectionalCheck", "directional_check"]


@dataclass(frozen=True, kw_only=True)
class DirectionalCheck:
    """One-sided directional derivatives by finite differences, and by differentiation.

    Attributes:
        left: (f(z) − f(z − hv)) / h.
        right: (f(z + hv) − f(z)) / h.
        left_derivative: Jv, with the element J of the pieces that are active at z − hv.
        right_derivative: Jv, with the J of the pieces that are active at z + hv.
        error: The relative error of each sample, the larger of both sides'.
        passed: Whether it is within tolerance, for each sample.
    """

    left: Tensor
    right: Tensor
    left_derivative: Tensor
    right_derivative: Tensor
    error: Tensor
    passed: Tensor


def directional_check(
    f: Callable[..., Tensor], z: Tensor, v: Tensor, *inputs: Any, step: float | None = None, rtol: float | None = None
) -> DirectionalCheck:
    """Compare both one-sided derivatives of f at z along v with Jv for the elements J that should attain them.

    Where f has no kink, this is the usual finite-difference check, twice. At a kink, f'(z; v) = Jv with an element J of
    the B-subdifferential: that of the pieces just ahead. A kink that lies within the step but not at z makes the
    difference a mean of two derivatives, so anything between the two passes. J is differentiated in reverse mode.

    Args:
        f: The map, from a tensor to a tensor, each batch first.
        z: Where.
        v: The direction, shaped like z.
        inputs: Further arguments of f.
        step: h, in units of max(1, |z|) / |v| for each sample, maximum norms; √ε by default.
        rtol: Tolerance relative to the derivatives; ⁴√ε by default.

    Raises:
        ValueError: If v is not shaped like z, or has no batch axis.
        NotImplementedError: If f has an operation that has kinks which can't be told.
    """
    if v.shape != z.shape or z.dim() == 0:
        raise ValueError(f"v of shape {tuple(v.shape)} must be shaped like z, {tuple(z.shape)}, with the batch first")
    eps = torch.finfo(z.dtype).eps
    step, rtol = eps**0.5 if step is None else step, eps**0.25 if rtol is None else rtol
    z, v = z.detach(), v.detach()
    length, size = (t.abs().reshape(len(t), -1).amax(1) for t in (v, z))
    h = step * size.clamp_min(1) / torch.where(length > 0, length, 1.0)
    sides, error, passed = {}, torch.zeros_like(h), torch.ones_like(h, dtype=torch.bool)
    for sign in (-1, 1):
        side = _Side.at(f, z, v, inputs, sign * h)
        sides[sign] = side
        floor = 10 * eps * _norm(side.value) / h
        error = torch.maximum(error, side.excess / torch.where(side.scale > 0, side.scale, 1.0))
        passed &= side.excess <= rtol * side.scale + floor
    return DirectionalCheck(
        left=sides[-1].difference,
        right=sides[1].difference,
        left_derivative=sides[-1].derivative,
        right_derivative=sides[1].derivative,
        error=error,
        passed=passed,
    )


@dataclass
class _Side:
    """What is ahead of z in one direction."""

    value: Tensor
    difference: Tensor
    derivative: Tensor
    excess: Tensor  # of each sample: by how much the difference is not between the derivatives
    scale: Tensor

    @classmethod
    def at(cls, f: Callable[..., Tensor], z: Tensor, v: Tensor, inputs: tuple[Any, ...], h: Tensor) -> _Side:
        h = h.reshape(-1, *(1,) * (z.dim() - 1))
        with torch.no_grad():
            value, here = watch(f, z, *inputs)
            ahead, there = watch(f, torch.addcmul(z, h, v), *inputs)
        difference = (ahead - value) / h.reshape(-1, *(1,) * (value.dim() - 1))
        derivative = _product(f, z, v, inputs, [event.pieces for event in there])
        entered = _product(f, z, v, inputs, [_entered(a, b) for a, b in zip(here, there, strict=True)])
        low, high = torch.minimum(derivative, entered), torch.maximum(derivative, entered)
        excess = _norm((low - difference).clamp_min(0) + (difference - high).clamp_min(0))
        return cls(value, difference, derivative, excess, _norm(difference) + _norm(derivative))


def _entered(here: Event, there: Event) -> Tensor:
    """The pieces right after z: those at z, and where two of them meet, the one ahead."""
    if here.kind == "hinge":
        return torch.where(here.pieces == 0, there.pieces, here.pieces)
    if here.kind == "extreme":
        return torch.where(here.gap == 0, there.pieces, here.pieces)
    return torch.where((here.gap == 0).any(-1, keepdim=True), there.pieces, here.pieces)


def _product(f: Callable[..., Tensor], z: Tensor, v: Tensor, inputs: tuple[Any, ...], pieces: list[Tensor]) -> Tensor:
    """Jv by differentiating the vector-Jacobian product, which is linear."""
    with torch.enable_grad():
        point = z.clone().requires_grad_()
        out = watch(f, point, *inputs, pieces=pieces)[0]
        if not out.requires_grad:
            return torch.zeros_like(out)
        u = torch.zeros_like(out, requires_grad=True)
        (vjp,) = torch.autograd.grad(out, point, u, create_graph=True, materialize_grads=True)
        if not vjp.requires_grad:
            return torch.zeros_like(out)
        product: Tensor = torch.autograd.grad(vjp, u, v, materialize_grads=True)[0]
        return product


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1)
    return norm
