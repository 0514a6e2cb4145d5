"""Sobolev training: fit values and derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.func import jvp, vmap

from .method import GradientTrainer, Loss, Method
from .tangent import tangent

__all__ = ["Sobolev", "sobolev_loss"]

Map = Callable[[Tensor], Tensor]

FEW = 4
"""Up to so many directions are made parts of one equilibrium, which holds a state for each."""


def sobolev_loss(
    model: Map,
    inputs: Tensor,
    values: Tensor,
    gradients: Tensor | None = None,
    hessians: Tensor | None = None,
    *,
    weights: Sequence[float] = (1.0, 1.0, 1.0),
    directions: int | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Mean over the samples of Σⱼ weights[j] · ‖Dʲm(x) − Dʲf(x)‖² for the derivatives of f that are given.

    With ``directions``, the derivatives are compared along random directions v from the unit sphere: the first as
    <D(m − f), v>, the second as <<D²(m − f), v₁>, v₂> (Czarnecki et al. 2017, arXiv 1706.04859, section 2), times the
    number of inputs for each, so that the expectation is the full loss. Differentiable to whatever m depends on. First
    derivatives of a model with equilibria are those of ``tangent``, where there are few directions.

    Args:
        model: m, from (batch, inputs) to (batch, outputs), each sample on its own.
        inputs: x, of shape (batch, inputs).
        values: f(x), of shape (batch, outputs).
        gradients: Df(x), of shape (batch, outputs, inputs).
        hessians: D²f(x), of shape (batch, outputs, inputs, inputs).
        weights: Of the values, the first and the second derivatives.
        directions: How many directions each sample draws for each derivative; None compares all entries.
        generator: What they are drawn from.

    Raises:
        ValueError: If a shape does not fit, or directions is not positive.
    """
    if inputs.dim() != 2:
        raise ValueError(f"inputs has shape {tuple(inputs.shape)}, not (batch, inputs): flatten it with .flatten(1)")
    if directions is not None and directions < 1:
        raise ValueError(f"directions={directions} must be at least 1, or None for all entries")
    (n, d), shape = inputs.shape, tuple(values.shape)
    for name, given, order in (("gradients", gradients, 1), ("hessians", hessians, 2)):
        wanted = (n, *shape[1:], *[d] * order)
        if given is not None and tuple(given.shape) != wanted:
            raise ValueError(
                f"{name} has shape {tuple(given.shape)}, not {wanted}: (batch, outputs{', inputs' * order})"
            )
    outputs = model(inputs)
    if tuple(outputs.shape) != shape:
        raise ValueError(f"values has shape {shape}, and the model's outputs have {tuple(outputs.shape)}")
    loss: Tensor = weights[0] * (outputs - values).square().sum() / n
    if gradients is not None:
        v = _directions(inputs, directions, generator)
        error = _along(model, inputs, v) - torch.einsum("noi,kni->kno", gradients, v)
        loss = loss + weights[1] * _mean(error, d, directions)
    if hessians is not None:
        v, w = (_directions(inputs, directions, generator) for _ in range(2))
        if directions is None:  # all pairs
            v, w = v.repeat_interleave(d, 0), w.repeat(d, 1, 1)
        error = _along_two(model, inputs, v, w) - torch.einsum("noij,kni,knj->kno", hessians, v, w)
        loss = loss + weights[2] * _mean(error, d * d, directions)
    return loss


def _directions(inputs: Tensor, count: int | None, generator: Generator | None) -> Tensor:
    """Unit vectors, shape (count, batch, inputs): random ones, or the axes."""
    n, d = inputs.shape
    if count is None:
        return torch.eye(d, dtype=inputs.dtype, device=inputs.device)[:, None].expand(d, n, d)
    v = torch.randn(count, n, d, dtype=inputs.dtype, device=inputs.device, generator=generator)
    unit: Tensor = v / torch.linalg.vector_norm(v, dim=2, keepdim=True)
    return unit


def _along(model: Map, inputs: Tensor, v: Tensor) -> Tensor:
    """Dm(x) v for each v, shape (directions, batch, outputs)."""
    if len(v) <= FEW:
        return torch.stack(list(tangent(model, inputs, list(v))[1]))
    tangents: Tensor = vmap(lambda v: jvp(model, (inputs,), (v,))[1])(v)
    return tangents


def _along_two(model: Map, inputs: Tensor, v: Tensor, w: Tensor) -> Tensor:
    def second(v: Tensor, w: Tensor) -> Tensor:
        product: Tensor = jvp(lambda x: jvp(model, (x,), (v,))[1], (inputs,), (w,))[1]
        return product

    curvatures: Tensor = vmap(second)(v, w)
    return curvatures


def _mean(error: Tensor, entries: int, directions: int | None) -> Tensor:
    """The mean over the samples of the squared norm of a derivative, or its estimate from some directions."""
    total = error.square().sum() / error.shape[1]
    return total if directions is None else total * (entries / directions)


@dataclass(frozen=True, kw_only=True)
class Sobolev(Method):
    """Sobolev training (Czarnecki et al. 2017) of a classifier, by AdamW: labels are constant around a sample.

    The loss has ``weight`` times the mean of ‖Dm(x)‖² added, estimated along random directions: the derivative
    that is fitted is 0. For regression, with derivatives that are known, use ``sobolev_loss``.

    Attributes:
        weight: Of the derivative, positive.
        directions: Random directions a sample and step.
        seed: What they are drawn from.

    Raises:
        ValueError: If weight or directions is not positive.
    """

    weight: float = 1e-3
    directions: int = 1
    seed: int = 0

    lr: ClassVar[float] = 1e-2

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"Sobolev(weight={self.weight!r}): weight must be positive, e.g. 1e-3")
        if self.directions < 1:
            raise ValueError(f"Sobolev(directions={self.directions!r}): directions must be at least 1")

    def trainer(self, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float = 0.0) -> GradientTrainer:
        """Of any model of inputs (batch, ...) whose derivative in forward mode exists."""
        return _SobolevTrainer(self, model, loss, lr=lr, weight_decay=weight_decay)


class _SobolevTrainer(GradientTrainer):
    def __init__(self, rule: Sobolev, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float) -> None:
        super().__init__(model, loss, lr=lr, weight_decay=weight_decay)
        self.rule, self.generator = rule, torch.Generator().manual_seed(rule.seed)

    def losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs, loss, _ = super().losses(inputs, targets)
        v = _directions(inputs, self.rule.directions, self.generator)
        slopes = _mean(_along(self.model, inputs, v), inputs.shape[1], self.rule.directions)
        return outputs, loss, loss + self.rule.weight * slopes

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])
        super().load_state_dict({name: tensor for name, tensor in state.items() if name != "generator"})
