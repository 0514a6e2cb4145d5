"""Weights as functions of the parameters that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from ...models.matrices import Matrix, SparseMatrix

__all__ = ["HiddenWeights", "Weight"]


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight of a module: a parameter, or made of parameters by a parametrization or a structured matrix.

    Attributes:
        module: Whose it is.
        name: The attribute.
    """

    module: nn.Module
    name: str

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        value: Tensor = getattr(self.module, self.name)
        return value.shape

    @property
    def plain(self) -> bool:
        """Whether it is a parameter itself."""
        return self._maker is None

    @property
    def leaves(self) -> list[nn.Parameter]:
        """The parameters that it is made of and that are trained."""
        if self._maker is None:
            value = getattr(self.module, self.name)
            return [value] if isinstance(value, nn.Parameter) and value.requires_grad else []
        return [p for p in self._maker.parameters() if p.requires_grad]

    @property
    def _maker(self) -> nn.Module | None:
        """The module whose call gives the weight, if it is made."""
        if parametrize.is_parametrized(self.module, self.name):
            chain: nn.Module = self.module.parametrizations[self.name]  # type: ignore[index,assignment]
            return chain
        parts = self.module._modules.get(f"{self.name}_parts")
        return _Structured(parts) if isinstance(parts, Matrix) else None

    def value(self, leaves: Sequence[Tensor]) -> Tensor:
        """The weight as a function of its leaves."""
        maker = self._maker
        if maker is None:
            return leaves[0]
        names = [name for name, p in maker.named_parameters() if p.requires_grad]
        own = {name: buffer.clone() for name, buffer in maker.named_buffers()}  # which power iterations change
        value: Tensor = functional_call(maker, {**own, **dict(zip(names, leaves, strict=True))}, ())
        return value


class _Structured(nn.Module):
    """A structured matrix as a module that returns it."""

    def __init__(self, parts: Matrix) -> None:
        super().__init__()
        self.parts = parts

    def forward(self) -> Tensor:
        if not isinstance(self.parts, SparseMatrix):
            return self.parts.tensor()
        values = self.parts.used()  # since the derivatives of sparse tensors have no derivatives
        return values.new_zeros(self.parts.shape).index_put(tuple(self.parts.indices), values)


class HiddenWeights(Weight):
    """[W U b] of a ``UniqueEquilibrium``, of all its parameters."""

    @property
    def shape(self) -> torch.Size:  # noqa: D102
        shape: torch.Size = self._maker().shape
        return shape

    @property
    def _maker(self) -> nn.Module:
        return _SideBySide(self.module)


class _SideBySide(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        model: Any = self.model
        return torch.cat([model.W, model.U, *([] if model.b is None else [model.b[:, None]])], 1)
