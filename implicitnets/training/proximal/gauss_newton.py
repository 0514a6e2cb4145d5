"""The proximal step through a parametrization Θ(θ)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .layers import Layer
from .metric import Metric, conjugate_gradients

__all__ = ["gauss_newton", "metric_product"]


def metric_product(metrics: Sequence[Metric], matrix: Tensor) -> Tensor:
    """τ Θ Σ, where each group of rows of Θ has a Σ of its own."""
    parts = matrix.chunk(len(metrics), 0)
    return torch.cat([metric.curvature(part) for metric, part in zip(metrics, parts, strict=True)])


def gauss_newton(layer: Layer, metrics: Sequence[Metric], gradient: Sequence[Tensor], steps: int) -> list[Tensor]:
    """The v that conjugate gradients find for (I + τ J* (· Σ) J) v = g, with J the Jacobian of θ -> Θ.

    It is the proximal step with Θ(θ) linearized at θ, and stays within the parametrization. Pulling the direction of
    Θ back, J* (G P), would not do: that can be a direction of ascent. Here ⟨v, g⟩ > 0 after any number of steps.

    Args:
        layer: The layer; some of its weights are parametrized.
        metrics: I + τ Σ of each of its groups.
        gradient: g = J* G, for each of ``layer.leaves``.
        steps: Of conjugate gradients, from 0.

    Raises:
        RuntimeError: If a parametrization can't be differentiated twice.
    """
    with torch.enable_grad():
        leaves = [leaf.detach().to(g.dtype).requires_grad_() for leaf, g in zip(layer.leaves, gradient, strict=True)]
        values, rest = [], list(leaves)
        for weight in layer.weights:
            own, rest = rest[: len(weight.leaves)], rest[len(weight.leaves) :]
            values.append(weight.value(own))
        matrix = layer.matrix(values)
        cotangent = torch.zeros_like(matrix, requires_grad=True)
        pulled = torch.autograd.grad(matrix, leaves, cotangent, create_graph=True, allow_unused=True)
    used = [i for i, t in enumerate(pulled) if t is not None]
    outputs = [pulled[i] for i in used]
    if not all(t.requires_grad for t in outputs):
        raise RuntimeError("a parametrization's derivative has no derivative of its own, so it has no proximal step")

    def multiply(v: Tensor) -> Tensor:
        tangents = _like(leaves, v)
        # Jv is the derivative of J*u, which is linear in u.
        (jv,) = torch.autograd.grad(outputs, cotangent, [tangents[i] for i in used], retain_graph=True)
        back = torch.autograd.grad(
            matrix, leaves, metric_product(metrics, jv), retain_graph=True, materialize_grads=True
        )
        return v + torch.cat([t.flatten() for t in back])[None]

    right = torch.cat([g.flatten() for g in gradient])[None]
    return _like(leaves, conjugate_gradients(multiply, right, steps))


def _like(leaves: Sequence[Tensor], flat: Tensor) -> list[Tensor]:
    pieces = flat[0].split([leaf.numel() for leaf in leaves])
    return [piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)]
