"""What a proximal step needs to know of a layer: its weights as one matrix Θ, and its inputs as the rows of one S."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...models import UniqueEquilibrium
from .metric import Metric, working
from .weights import HiddenWeights, Weight

__all__ = ["LAYERS", "ConvLayer", "HiddenLayer", "Layer", "LinearLayer", "OutputLayer", "StateLayer"]

LARGE = 2**24
"""Patches of convolutions are summed up in portions of at most so many entries."""


class Layer(ABC):
    """An affine map h = Θs: its weights stand side by side in Θ, of shape (m, q), and s is of length q.

    Attributes:
        module: The module that has the weights.
        weights: Those that are trained, in the order of their columns in Θ.
        groups: Into so many equal parts the rows of Θ fall, each with inputs of its own.
    """

    names: ClassVar[tuple[str, ...]]
    groups: int = 1

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        present = [Weight(module, name) for name in self.names if getattr(module, name) is not None]
        self.weights = [weight for weight in present if weight.leaves]

    @property
    def leaves(self) -> list[nn.Parameter]:
        """The parameters behind Θ."""
        return [leaf for weight in self.weights for leaf in weight.leaves]

    @property
    def plain(self) -> bool:
        """Whether no weight is parametrized."""
        return all(weight.plain for weight in self.weights)

    @abstractmethod
    def pieces(self, *inputs: Tensor) -> list[dict[str, Tensor]]:
        """For each group what each weight but the biases is multiplied with, one row for each sample or position."""

    def rows(self, *inputs: Tensor) -> list[Tensor]:
        """S of each group, of shape (n, q), in float32 at least; samples that are not finite are zero."""
        return [self._joined(pieces) for pieces in self.pieces(*inputs)]

    def _joined(self, pieces: Mapping[str, Tensor]) -> Tensor:
        any_piece = next(iter(pieces.values()))
        ones = any_piece.new_ones(len(any_piece), 1)
        rows = torch.cat([pieces.get(weight.name, ones) for weight in self.weights], 1)
        rows = rows.to(working(rows.dtype))
        return torch.where(rows.isfinite().all(1, keepdim=True), rows, 0)

    def metrics(self, records: Sequence[tuple[Tensor, ...]], tau: float) -> list[Metric]:
        """The metric of each group, with the rows of all records."""
        rows = [torch.cat(group) for group in zip(*(self.rows(*inputs) for inputs in records), strict=True)]
        return [Metric(tau, rows=s) for s in rows]

    def matrix(self, parts: Sequence[Tensor]) -> Tensor:
        """The weights, or what is shaped like them, as one matrix (m, q)."""
        return torch.cat([part.reshape(part.shape[0], -1) for part in parts], 1)

    def parts(self, matrix: Tensor) -> list[Tensor]:
        """The way back from ``matrix``."""
        shapes = [weight.shape for weight in self.weights]
        columns = matrix.split([shape[1:].numel() for shape in shapes], 1)
        return [part.reshape(shape) for part, shape in zip(columns, shapes, strict=True)]


class LinearLayer(Layer):
    """nn.Linear: s = (x, 1)."""

    names = ("weight", "bias")

    def pieces(self, *inputs: Tensor) -> list[dict[str, Tensor]]:  # noqa: D102
        (x,) = inputs
        return [{"weight": x.reshape(-1, x.shape[-1])}]


class ConvLayer(Layer):
    """nn.Conv1d and nn.Conv2d: s = (a patch, 1), at each position of each sample."""

    names = ("weight", "bias")
    module: nn.Conv1d | nn.Conv2d

    def __init__(self, module: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(module)
        self.groups = module.groups

    def pieces(self, *inputs: Tensor) -> list[dict[str, Tensor]]:  # noqa: D102
        conv, (x,) = self.module, inputs
        dims = len(conv.kernel_size)
        x = x if x.dim() == dims + 2 else x[None]
        x = functional.pad(
            x,
            conv._reversed_padding_repeated_twice,
            mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode,
        )
        kernel, stride, dilation = (
            (*[1] * (2 - dims), *size) for size in (conv.kernel_size, conv.stride, conv.dilation)
        )
        x = x if dims == 2 else x[:, :, None]
        patches = functional.unfold(x, kernel, dilation=dilation, stride=stride)  # (samples, groups · width, positions)
        return [{"weight": part.transpose(1, 2).flatten(0, 1)} for part in patches.chunk(self.groups, 1)]

    def metrics(self, records: Sequence[tuple[Tensor, ...]], tau: float) -> list[Metric]:  # noqa: D102
        width = self.module.weight[0].numel() + 1
        (largest,) = max(records, key=lambda record: record[0].numel())
        entries = largest.numel() * self.module.kernel_size[0] * self.module.kernel_size[-1]
        if entries <= LARGE or entries < self.groups * width**2:
            return super().metrics(records, tau)
        portion = max(1, len(largest) * LARGE // entries)
        sums, n = [torch.zeros((), dtype=torch.float64, device=largest.device)] * self.groups, 0
        for x in (part for (inputs,) in records for part in inputs.split(portion)):
            rows = self.rows(x)
            sums = [total + (s.T @ s).double() for total, s in zip(sums, rows, strict=True)]
            n += len(rows[0])
        return [Metric(tau, sigma=(total / n).to(working(largest.dtype))) for total in sums]


class StateLayer(Layer):
    """The state of an ImplicitModel: Θ = [A B b], s = (x, u, 1) at the equilibrium x of the input u."""

    names: ClassVar[tuple[str, ...]] = ("A", "B", "b")

    def pieces(self, *inputs: Tensor) -> list[dict[str, Tensor]]:  # noqa: D102
        return [dict(zip(self.names, inputs, strict=False))]


class OutputLayer(StateLayer):
    """The output of an ImplicitModel: Θ = [C D c], of the same s."""

    names = ("C", "D", "c")


class HiddenLayer(Layer):
    """The state of a ``UniqueEquilibrium``: Θ = [W U b], made of its parameters as a whole, s = (z, u, 1)."""

    def __init__(self, module: UniqueEquilibrium) -> None:
        self.module = module
        whole = HiddenWeights(module, "W")
        self.weights = [whole] if whole.leaves else []

    def pieces(self, *inputs: Tensor) -> list[dict[str, Tensor]]:  # noqa: D102
        z, u = inputs
        return [{"W": torch.cat([z, u, z.new_ones(len(z), int(self.module.b is not None))], 1)}]


LAYERS: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: LinearLayer,
    nn.Conv1d: ConvLayer,
    nn.Conv2d: ConvLayer,
}
"""What is known of which module."""
