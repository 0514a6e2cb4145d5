"""ProxProp as its paper has it: a penalty energy, and one backward sweep over its variables (algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..method import Loss, Unsupported
from .layers import LAYERS, Layer, LinearLayer

__all__ = ["Sweep", "sweep"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The auxiliary variables of a step, each a list over the layers up to the last.

    The halves are after their explicit steps, which are taken with t = 1: all is linear in t.

    Attributes:
        loss: The loss before the step.
        z: Pre-activations zₗ.
        a: Activations aₗ.
        z_half: Pre-activations after the sweep.
        a_half: Activations after the sweep.
    """

    loss: Tensor
    z: list[Tensor]
    a: list[Tensor]
    z_half: list[Tensor]
    a_half: list[Tensor]


class _Stage:
    """z = Θ(input), a = σ(z), and the derivatives of both."""

    def __init__(self, layer: Layer, sigma: nn.Sequential, source: Tensor) -> None:
        self.layer = layer
        with torch.enable_grad():
            self._source = source.detach().requires_grad_()
            self._z = layer.module(self._source)
            self._cut = self._z.detach().requires_grad_()
            self._a = sigma(self._cut)
        self.source, self.z, self.a = self._source.detach(), self._z.detach(), self._a.detach()

    def before_sigma(self, d: Tensor) -> Tensor:
        """σ′(z)ᵀ d."""
        pulled: Tensor = torch.autograd.grad(self._a, self._cut, d)[0]
        return pulled

    def before_layer(self, d: Tensor) -> Tensor:
        """The gradient of ½ ‖Θ(·) − z + d‖² at the input."""
        pulled: Tensor = torch.autograd.grad(self._z, self._source, d)[0]
        return pulled

    def move(self, d: Tensor, tau: float, lr: float) -> None:
        """Θ⁺ = argmin ½ ‖Θ⁺(input) − (z − t d)‖² + (n/2τ) ‖Θ⁺ − Θ‖², t = n lr/τ; for τ = 0, Θ⁺ = Θ − lr dᵀS."""
        if not self.layer.weights:
            return
        rows = d.flatten(2).movedim(1, -1).flatten(0, 1) if self.z.dim() > 2 and self.positions else d.flatten(0, -2)
        changes = []
        for s, block in zip(self.layer.rows(self.source), rows.chunk(self.layer.groups, 1), strict=True):
            n, part = len(s), block.to(s.dtype)
            if tau == 0:
                changes.append(-lr * part.T @ s)
                continue
            ridge = math.sqrt(n / tau) * torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
            target = torch.cat([-(n * lr / tau) * part, part.new_zeros(s.shape[1], part.shape[1])])
            changes.append(torch.linalg.lstsq(torch.cat([s, ridge]), target).solution.T)
        with torch.no_grad():
            for weight, change in zip(self.layer.weights, self.layer.parts(torch.cat(changes)), strict=True):
                weight.leaves[0].add_(change.to(weight.leaves[0].dtype))

    @property
    def positions(self) -> bool:
        """Whether the layer works at positions of an image, behind its channels."""
        return not isinstance(self.layer, LinearLayer)


def sweep(
    tau: float, prox_head: bool, model: nn.Sequential, loss: Loss, inputs: Tensor, targets: Tensor, lr: float
) -> Sweep:
    """One step of algorithm 1; see ``ProxProp.sweep``.

    Raises:
        Unsupported: If the model is not a sequence of layers and of modules without parameters.
    """
    before, blocks = _blocks(model)
    stages: list[_Stage] = []
    for layer, sigma in blocks:
        stages.append(_Stage(layer, sigma, stages[-1].a if stages else before(inputs)))
    with torch.enable_grad():
        out = stages[-1].a.requires_grad_()
        value = loss(out, targets)
    a_half = [out.detach() - torch.autograd.grad(value, out)[0]]
    z_half = []
    for stage in reversed(stages):
        z_half.append(stage.z - stage.before_sigma(stage.a.detach() - a_half[-1]))  # (9)
        a_half.append(stage.source - stage.before_layer(stage.z - z_half[-1]))  # (10), and (8) after the last layer
    z_half.reverse()
    for stage, half in zip(stages, z_half, strict=True):
        stage.move(stage.z - half, tau if stage is not stages[-1] or prox_head else 0.0, lr)  # (11) and (12)
    hidden = stages[:-1]
    return Sweep(
        loss=value.detach(),
        z=[stage.z for stage in hidden],
        a=[stage.a for stage in hidden],
        z_half=z_half[:-1],
        a_half=a_half[-2:0:-1],
    )


def _blocks(model: nn.Sequential) -> tuple[nn.Sequential, list[tuple[Layer, nn.Sequential]]]:
    """What comes before the first layer, and each layer with what comes after it.

    Raises:
        Unsupported: If it is not such a sequence.
    """
    if not isinstance(model, nn.Sequential):
        raise Unsupported(f"a sweep goes through an nn.Sequential, not {type(model).__name__}: use ProxProp.attach")
    before, blocks = nn.Sequential(), list[tuple[Layer, nn.Sequential]]()
    for module in _flat(model):
        if kind := LAYERS.get(type(module)):
            blocks.append((kind(module), nn.Sequential()))
        elif next(module.parameters(), None) is None:
            (blocks[-1][1] if blocks else before).append(module)
        else:
            raise Unsupported(f"a sweep has no step for the parameters of {type(module).__name__}: use ProxProp.attach")
    if not blocks:
        raise Unsupported("there is no linear or convolution layer in the model")
    return before, blocks


def _flat(model: nn.Sequential) -> Iterator[nn.Module]:
    for module in model:
        if isinstance(module, nn.Sequential):
            yield from _flat(module)
        else:
            yield module
