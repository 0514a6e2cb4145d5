"""The cells that are solved: z = f(z, x) for dense and convolutional f, with a known Lipschitz constant."""

import itertools
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch.nn import functional

__all__ = ["Case", "all_cases", "unit_matrix"]

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "affine": lambda z: z}


@dataclass(frozen=True)
class Case:
    """A cell and a batch of inputs."""

    cell: str
    family: str
    n: int
    """Entries of a sample's state."""
    batch: int
    contraction: float | None

    @property
    def name(self):
        return f"{self.cell}/{self.family}/n={self.n}/batch={self.batch}/contraction={self.contraction}"

    @property
    def weighs(self):
        """Whether its memory is measured: for one cell of each shape, as the others need the same."""
        return (self.cell, self.family, self.contraction) in {("tanh", "symmetric", 0.9), ("conv", "gaussian", 0.9)}

    def build(self, device, input_scale, seed):
        """The map f(z, x), and its input x; z is like x."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.n,) if self.cell in ACTIVATIONS else image(self.n)
        x = input_scale * torch.randn(self.batch, *shape, generator=generator)
        if self.cell in ACTIVATIONS:
            weight = self.contraction * unit_matrix(self.family, self.n, seed)
            return partial(dense, ACTIVATIONS[self.cell], weight.to(device)), x.to(device)
        first, second = unit_convolutions(self.n, seed).to(device)
        if self.cell == "conv":
            return partial(convolution, self.contraction * first), x.to(device)
        return partial(residual_block, first, second), x.to(device)


def dense(phi, weight, z, x):
    return phi(torch.addmm(x, z, weight))


def convolution(weight, z, x):
    return torch.relu(functional.conv2d(z, weight, padding=1) + x)


def residual_block(first, second, z, x):
    h = functional.conv2d(torch.relu(functional.conv2d(z, first, padding=1)), second, padding=1)
    return functional.group_norm(torch.relu(z + functional.group_norm(x + h, 4)), 4)


def image(n):
    """Channels, height and width of a state of n entries."""
    return n // 256, 16, 16


@lru_cache
def unit_matrix(family, n, seed):
    """A matrix with ‖W‖₂ = 1."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(n, n, generator=generator)
    if family == "gaussian":
        return normal / torch.linalg.matrix_norm(normal, 2)
    basis, _ = torch.linalg.qr(normal)
    eigenvalues = torch.rand(n, generator=generator) * 2 - 1
    return (basis * (eigenvalues / eigenvalues.abs().max())) @ basis.T


@lru_cache
def unit_convolutions(n, seed):
    """Two Gaussian 3 × 3 kernels, scaled by power iteration to norm 1 as operators on the padded image."""
    channels, height, width = image(n)
    generator = torch.Generator().manual_seed(seed)
    kernels = torch.randn(2, channels, channels, 3, 3, generator=generator)
    norms = []
    for kernel in kernels:
        v = torch.randn(1, channels, height, width, generator=generator)
        for _ in range(100):
            v = functional.conv2d(v / v.norm(), kernel, padding=1)
            v = functional.conv_transpose2d(v, kernel, padding=1)
        norms.append(v.norm().sqrt())
    return kernels / torch.stack(norms)[:, None, None, None, None]


def all_cases(*, quick):
    """The cases of the benchmark, the cheap ones first."""
    rho = (0.9,) if quick else (0.5, 0.9, 0.99)
    sizes, batches, images = ((64, 512), (1, 64), (4,)) if quick else ((64, 512, 2048), (1, 64, 512), (1, 16, 64))
    shapes = itertools.product(sizes, batches)
    dense_cells = itertools.product(("tanh", "relu"), ("gaussian", "symmetric"), rho)
    cases = [Case(cell, family, *shape, r) for shape, (cell, family, r) in itertools.product(shapes, dense_cells)]
    cases += [Case("affine", "symmetric", 512, batch, r) for batch in batches for r in rho]
    cases += [Case("conv", "gaussian", 8192, batch, r) for batch in images for r in rho]
    return cases + [Case("groupnorm", "gaussian", 8192, batch, None) for batch in images]
