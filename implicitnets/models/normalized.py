"""Convolutions and norms of the cells: weight normalization, and group norms with a gain to start from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..constraints.base import make_picklable

__all__ = ["check_sizes", "convolution", "group_norm", "weight_norm"]


class _WeightNorm(nn.Module):
    """(g, v) -> g v / ‖v‖, a norm for each output; unlike PyTorch's own, it has derivatives of every order and mode."""

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return v * (g / self._norm(v).clamp_min(torch.finfo(v.dtype).tiny))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self._norm(weight).detach(), weight

    @staticmethod
    def _norm(v: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(v, dim=tuple(range(1, v.dim())), keepdim=True)
        return norm


def weight_norm(module: nn.Module, name: str = "weight") -> None:
    """Train ``module.name`` as lengths and directions of its rows (Salimans and Kingma 2016).

    The weight is computed once a solve, and the module can be pickled.
    """
    parametrize.register_parametrization(module, name, _WeightNorm())
    make_picklable(module)


def convolution(inputs: int, outputs: int, size: int = 3, *, stride: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """A convolution with weight norm and without bias, whose kernels have norm ``gain`` at first."""
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    with torch.no_grad():
        conv.weight *= gain / torch.linalg.vector_norm(conv.weight, dim=(1, 2, 3), keepdim=True)
    weight_norm(conv)
    return conv


def group_norm(groups: int, channels: int, gain: float = 1.0) -> nn.GroupNorm:
    """Group normalization (Wu and He 2018) that starts with outputs of standard deviation ``gain``."""
    norm = nn.GroupNorm(groups, channels)
    nn.init.constant_(norm.weight, gain)
    return norm


def check_sizes(owner: object, groups: int, **sizes: int) -> None:
    """Check that channels are positive, and multiples of the groups.

    Raises:
        ValueError: Naming the argument.
    """
    name = type(owner).__name__
    for key, size in {"groups": groups, **sizes}.items():
        if size < 1:
            raise ValueError(f"{name}({key}={size}): {key} must be at least 1")
    for key, size in sizes.items():
        if size % groups:
            raise ValueError(f"{name}({key}={size}, groups={groups}): {key} must be a multiple of groups")
