"""The modules that a feed-forward implicit model is turned back into."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from scipy import sparse
from torch import Tensor, nn

from ...activations import Activation, Componentwise, MaxPool
from ..matrices import SparseMatrix

__all__ = ["Activate", "SkipLayers", "SparseLinear", "as_module", "dense_linear", "sparse_tensor"]

MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "hardtanh": nn.Hardtanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "identity": nn.Identity,
}


class Activate(nn.Module):
    """A value of ``activations`` as a module."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, z: Tensor) -> Tensor:
        """φ(z) for z of shape (batch, rows)."""
        return self.activation(z)

    def extra_repr(self) -> str:
        """The value."""
        return repr(self.activation)


class SparseLinear(nn.Module):
    """Wx + b with a fixed pattern of nonzeros in W."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
            self.weight = SparseMatrix((weight.shape[0], weight.shape[1]), weight._nnz()).to(weight)
        self.weight.indices, self.weight.values = weight.indices().clone(), nn.Parameter(weight.values().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, columns) -> (batch, rows)."""
        return self.weight.linear(x, self.bias)

    def extra_repr(self) -> str:
        """Sizes."""
        rows, columns = self.weight.shape
        return f"in_features={columns}, out_features={rows}, nonzeros={len(self.weight.values)}"


class SkipLayers(nn.Module):
    """Layers each of which sees the input and all layers before it.

    x₀ = u, xₖ = φₖ(Wₖ(x₀, ..., xₖ₋₁) + bₖ), and y = W(x₀, x₁, ...) + c after the last.

    Attributes:
        maps: The affine maps, the output's last.
        activations: The φₖ.
    """

    def __init__(self, maps: Iterable[nn.Module], activations: Iterable[nn.Module]) -> None:
        super().__init__()
        self.maps, self.activations = nn.ModuleList(maps), nn.ModuleList(activations)

    def forward(self, u: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, outputs)."""
        *hidden, output = self.maps
        for affine, phi in zip(hidden, self.activations, strict=True):
            u = torch.cat([u, phi(affine(u))], 1)
        y: Tensor = output(u)
        return y


def as_module(phi: Activation) -> nn.Module:
    """The activation as torch's own module where there is one."""
    if isinstance(phi, Componentwise) and phi.name in MODULES:
        return MODULES[phi.name]()
    if isinstance(phi, MaxPool):
        return nn.MaxPool1d(phi.size)  # which takes (batch, rows) for (channels, length)
    return Activate(phi)


def dense_linear(matrix: Any, bias: Tensor | None, like: Tensor) -> nn.Linear:
    """A ``Linear`` layer with these weights."""
    rows, columns = matrix.shape
    layer = nn.Linear(columns, rows, bias is not None, device="meta")
    layer.weight = nn.Parameter(torch.as_tensor(matrix.toarray()).to(like))
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def sparse_tensor(matrix: Any, like: Tensor) -> Tensor:
    """A SciPy matrix as a coalesced COO tensor, without the entries that are zero."""
    entries = sparse.csr_array(matrix)
    entries.sum_duplicates()
    entries.eliminate_zeros()
    row, column = (torch.as_tensor(axis).long() for axis in entries.tocoo().coords)
    values = torch.as_tensor(entries.data).to(like)
    place = torch.stack([row, column]).to(like.device)
    return torch.sparse_coo_tensor(place, values, entries.shape, is_coalesced=True, check_invariants=False)
