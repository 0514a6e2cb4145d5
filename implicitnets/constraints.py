"""Constraints that keep a model well-posed by construction, as parametrizations of its weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import values

__all__ = ["Constraint", "InfNorm", "inf_norm", "parse"]


@dataclass(frozen=True, kw_only=True)
class Constraint(ABC):
    """A differentiable map from any matrix to one that satisfies the constraint. A value."""

    @abstractmethod
    def __call__(self, weight: Tensor) -> Tensor:
        """The constrained matrix."""

    def apply(self, module: nn.Module, name: str) -> None:
        """Constrain ``module.name`` from now on; the free matrix behind it is what is trained.

        Unlike other parametrized modules, the module can still be pickled.
        """
        parametrize.register_parametrization(module, name, _Constrained(self))
        make_picklable(module)


class _Constrained(nn.Module):
    """A constraint as ``torch.nn.utils.parametrize`` wants it."""

    def __init__(self, constraint: Constraint) -> None:
        super().__init__()
        self.constraint = constraint

    def forward(self, weight: Tensor) -> Tensor:
        return self.constraint(weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def extra_repr(self) -> str:
        return repr(self.constraint)


def make_picklable(module: nn.Module) -> None:
    """Let a parametrized module be pickled, which PyTorch does not."""
    setattr(type(module), "__reduce_ex__", _reduce)  # noqa: B010  (a class that parametrize made for this module)


def _reduce(module: nn.Module, protocol: object) -> tuple[object, ...]:
    """Pickle a parametrized module as its plain class, the free tensors, and what is to be registered again."""
    lists = {name: list(entry) for name, entry in module.parametrizations.items()}  # type: ignore[operator,union-attr]
    originals = {name: _originals(entry) for name, entry in module.parametrizations.items()}  # type: ignore[operator,union-attr]
    state = {
        **vars(module),
        "_modules": {k: v for k, v in module._modules.items() if k != "parametrizations"},
    }
    return _restore, (type(module).__mro__[1], state, originals, lists)


def _originals(entry: Any) -> list[Tensor]:
    """The free tensors of a parametrization: one, or several where its ``right_inverse`` returns several."""
    names = ["original"] if entry.is_tensor else [f"original{i}" for i in range(entry.ntensors)]
    return [getattr(entry, name) for name in names]


def _restore(
    cls: type[nn.Module],
    state: dict[str, object],
    originals: dict[str, list[Tensor]],
    lists: dict[str, list[nn.Module]],
) -> nn.Module:
    module = cls.__new__(cls)
    vars(module).update(state)
    for name, tensors in originals.items():
        alone = len(tensors) == 1
        weight = tensors[0] if alone else nn.Parameter(lists[name][0](*tensors).detach())
        if isinstance(weight, nn.Parameter):
            module.register_parameter(name, weight)
        else:
            module.register_buffer(name, weight)
        for parametrization in lists[name]:
            parametrize.register_parametrization(module, name, parametrization, unsafe=True)
        if not alone:  # bit for bit, not as worked out from the weight
            for i, tensor in enumerate(tensors):
                setattr(module.parametrizations[name], f"original{i}", tensor)  # type: ignore[index]
    make_picklable(module)
    return module


@dataclass(frozen=True, kw_only=True)
class InfNorm(Constraint):
    """‖A‖∞ ≤ kappa: the absolute values in each row sum to at most kappa.

    With kappa < 1, x = φ(Ax + b) has one solution for every b and every component-wise non-expansive φ, and the
    Picard iteration converges to it (El Ghaoui et al. 2021, section 2). Both methods leave rows within the bound
    as they are, and both are differentiable, zero rows included.

    Attributes:
        kappa: The bound, positive.
        method: "project": each row goes to the nearest point of the ℓ1 ball, which makes exact zeros (Duchi et al.
            2008); "rescale": it is multiplied by a number, and keeps its direction.

    Raises:
        ValueError: If kappa is not positive or the method is unknown.
    """

    kappa: float = 0.95
    method: str = "project"

    def __post_init__(self) -> None:
        if not self.kappa > 0:
            raise ValueError(f"InfNorm(kappa={self.kappa!r}): kappa must be positive, and below 1 for well-posedness")
        if self.method not in ("project", "rescale"):
            raise ValueError(f"InfNorm(method={self.method!r}): method must be 'project' or 'rescale'")

    def __call__(self, weight: Tensor) -> Tensor:
        """The constrained matrix, of the shape of ``weight``, whose last axis runs along a row."""
        size = weight.abs()
        norm = size.sum(-1, keepdim=True)
        if self.method == "rescale":
            return weight / (norm / self.kappa).clamp_min(1)
        threshold = self._threshold(size)
        shrunk = weight.sign() * (size - threshold).clamp_min(0)
        return torch.where(norm > self.kappa, shrunk, weight)

    def _threshold(self, size: Tensor) -> Tensor:
        """The t of each row with Σ max(|aᵢ| − t, 0) = kappa, for rows outside the ball."""
        ordered = size.sort(-1, descending=True).values
        excess = ordered.cumsum(-1) - self.kappa
        count = torch.arange(1, size.shape[-1] + 1, device=size.device)
        last = (ordered * count > excess).sum(-1, keepdim=True).clamp_min(1)  # entries that stay nonzero
        return excess.gather(-1, last - 1) / last


def inf_norm(module: nn.Module, name: str, kappa: float = 0.95, *, method: str = "project") -> nn.Module:
    """Keep ‖module.name‖∞ ≤ kappa, by ``InfNorm``; returns the module.

    Example:
        >>> layer = inf_norm(torch.nn.Linear(8, 8), "weight", 0.9)
        >>> bool(layer.weight.abs().sum(1).max() <= 0.9 + 1e-6)
        True

    Raises:
        ValueError: If kappa is not positive or the method is unknown.
    """
    InfNorm(kappa=kappa, method=method).apply(module, name)
    return module


def parse(text: str) -> Constraint:
    """Read a constraint from its ``repr``: ``"InfNorm(kappa=0.9)"``.

    Raises:
        ValueError: If the text can't be read or names no constraint.
        TypeError: If an option does not exist.
    """
    constraint: Constraint = values.parse(text, {"InfNorm": InfNorm}, what="constraint")
    return constraint
