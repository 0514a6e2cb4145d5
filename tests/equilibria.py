"""What the capability table ranges over: small float64 cells, and layers that solve them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from problems import matrix, normal
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree

from implicitnets import DEQ, Backward, Implicit, fixed_point
from implicitnets.solvers import GMRES, Anderson, BiCGSTAB, Broyden, Dense, Newton, Solver

F64 = torch.float64
STEPS = 30
"""Enough for all digits: every cell below contracts by about 4."""


@dataclass(frozen=True)
class Cell:
    """A contraction z -> f(z, w, x), of a weight w that all samples share and an input x of each."""

    f: Callable[[Any, Tensor, Tensor], Any]
    w: Tensor
    x: Tensor
    start: Callable[[Tensor], Any] = torch.zeros_like
    smooth: bool = True

    def to(self, dtype: torch.dtype) -> Cell:
        return replace(self, w=self.w.to(dtype), x=self.x.to(dtype))


def tanh() -> Cell:
    return Cell(lambda z, w, x: torch.tanh(z @ w.T + x), matrix(3, 0.4, F64), normal(2, 3, dtype=F64))


def relu_layer(z: Tensor, w: Tensor, x: Tensor) -> Tensor:
    return torch.relu(z @ w.T + x)


def relu() -> Cell:
    """Every pre-activation is far from zero, in the solution and around it."""
    x = torch.tensor([[1.0, -1.2, 0.8], [-0.9, 1.1, 1.3]], dtype=F64)
    return Cell(relu_layer, matrix(3, 0.3, F64), x)


def relu_kink() -> Cell:
    """The pre-activation of the first unit is 0 exactly, at the solution and at every iterate."""
    w, x = matrix(3, 0.4, F64), torch.tensor([[0.0, 1.2, -1.3], [0.0, 1.1, 1.3]], dtype=F64)
    w[0] = 0
    return Cell(relu_layer, w, x, smooth=False)


def convolution() -> Cell:
    def f(z: Tensor, w: Tensor, x: Tensor) -> Tensor:
        return functional.softplus(functional.conv2d(z, w, padding=1) + x) / 2

    return Cell(f, 0.15 * normal(1, 1, 3, 3, dtype=F64), normal(2, 1, 2, 2, dtype=F64, seed=2))


def attention() -> Cell:
    """One head over two tokens."""

    def f(z: Tensor, w: Tensor, x: Tensor) -> Tensor:
        query, key, value = z @ w[0], z @ w[1], z @ w[2]
        return torch.softmax(query @ key.transpose(-1, -2) / 2**0.5, -1) @ value + x

    return Cell(f, 0.15 * normal(3, 2, 2, dtype=F64), normal(2, 2, 2, dtype=F64, seed=2))


def tree() -> Cell:
    """A dict of a vector and a matrix, coupled."""

    def f(z: dict[str, Tensor], w: Tensor, x: Tensor) -> dict[str, Tensor]:
        p, q = z["p"], z["q"]
        return {"p": torch.tanh(p @ w + 0.1 * q.sum(1) + x), "q": 0.2 * q + 0.2 * (p * x)[:, None]}

    def start(x: Tensor) -> dict[str, Tensor]:
        return {"p": torch.zeros_like(x), "q": x.new_zeros(x.shape[0], 1, x.shape[1])}

    return Cell(f, matrix(2, 0.3, F64), normal(2, 2, dtype=F64), start)


CELLS: dict[str, Cell] = {
    "dense tanh": tanh(),
    "ReLU": relu(),
    "ReLU at kinks": relu_kink(),
    "convolution": convolution(),
    "attention": attention(),
    "pytree": tree(),
}


class Module(nn.Module):
    """A cell with its weight as a parameter."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.f, self.initial_state = cell.f, cell.start
        self.w = nn.Parameter(cell.w.clone())

    def forward(self, z: Any, x: Tensor) -> Any:
        return self.f(z, self.w, x)


class Layer:
    """A way to solve z = f(z, *inputs) differentiably; this one applies f many times."""

    def solve(self, f: Callable[..., Any], z0: Any, *inputs: Any) -> Any:
        z = z0
        for _ in range(STEPS):
            z = f(z, *inputs)
        return z

    def model(self, module: Module) -> nn.Module:
        """x -> the equilibrium of the module."""
        return Model(self, module)

    def loose(self) -> Layer:
        """The same for numbers of two or three digits."""
        return self


class Model(nn.Module):
    def __init__(self, layer: Any, cell: Module) -> None:
        super().__init__()
        self.layer, self.cell = layer, cell

    def forward(self, x: Tensor) -> Any:
        return self.layer.solve(self.cell, self.cell.initial_state(x), x)


class Ours(Layer):
    def __init__(self, solver: Solver, backward: Backward) -> None:
        self.solver, self.backward = solver, backward

    def solve(self, f: Callable[..., Any], z0: Any, *inputs: Any) -> Any:
        return fixed_point(f, z0, *inputs, solver=self.solver, backward=self.backward).value

    def model(self, module: Module) -> nn.Module:
        return DEQ(module, solver=self.solver, backward=self.backward)

    def loose(self) -> Layer:
        loose = {"rtol": 1e-2, "atol": 1e-3}
        assert isinstance(self.backward, Implicit)
        return Ours(replace(self.solver, **loose), Implicit(solver=replace(self.backward.solver, **loose)))


class TorchDEQ(Layer, nn.Module):
    """TorchDEQ, asked for as much as it can give. A dict goes in as the list of tensors that it takes instead."""

    def __init__(self, tolerance: float = 1e-15, **how: Any) -> None:
        from torchdeq import get_deq  # noqa: PLC0415  (need not be installed)

        super().__init__()
        self.how = how
        options = {"solver": "fixed_point_iter", "tol": tolerance, "stop_mode": "rel", "max_iter": 3 * STEPS}
        self.deq = get_deq(**how, **{f"{side}_{key}": value for side in "fb" for key, value in options.items()})

    def solve(self, f: Callable[..., Any], z0: Any, *inputs: Any) -> Any:
        if isinstance(z0, Tensor):
            return self.deq(lambda z: f(z, *inputs), z0)[0][-1]
        start, spec = _pytree.tree_flatten(z0)

        def of_list(*z: Tensor) -> list[Tensor]:
            return _pytree.tree_leaves(f(_pytree.tree_unflatten(list(z), spec), *inputs))

        return _pytree.tree_unflatten(self.deq(of_list, start)[0][-1], spec)

    def loose(self) -> Layer:
        return TorchDEQ(1e-2, **self.how)


UNROLLED = Layer()
TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14}
FORWARDS: dict[str, Solver] = {
    "Anderson": Anderson(**TIGHT),
    "Newton": Newton(**TIGHT),
    "Broyden": Broyden(**TIGHT),
}
ADJOINTS: dict[str, Solver] = {
    "GMRES": GMRES(**TIGHT),
    "Dense": Dense(**TIGHT),
    "Anderson": Anderson(**TIGHT),
    "BiCGSTAB": BiCGSTAB(**TIGHT),
}
OURS: dict[str, Layer] = {
    f"{forward}, Implicit({adjoint})": Ours(FORWARDS[forward], Implicit(solver=ADJOINTS[adjoint]))
    for forward in FORWARDS
    for adjoint in ADJOINTS
}


def theirs() -> dict[str, Layer]:
    """TorchDEQ's two implicit differentiations."""
    return {"ift": TorchDEQ(ift=True), "hook_ift": TorchDEQ(hook_ift=True)}
