"""The table of fixed-point problems with known solutions, and the table of solvers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from implicitnets.solvers import (
    GMRES,
    Anderson,
    BiCGSTAB,
    Broyden,
    Dense,
    Fallback,
    Newton,
    Picard,
    SciPy,
    Solver,
    TorchDEQ,
)

DTYPES = [torch.float32, torch.float64]


@dataclass
class Problem:
    """A map, a start, its fixed point (None: it has none), and what is known of it."""

    f: Callable[[Any], Any]
    z0: Any
    solution: Any
    kind: frozenset[str] = frozenset()  # affine, contraction, slow
    gain: float = 10.0  # bound of ‖z − z*‖ / ‖f(z) − z‖


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix(n: int, norm: float, dtype: torch.dtype, seed: int = 0) -> Tensor:
    w = torch.randn(n, n, generator=generator(seed), dtype=torch.float64)
    return (w * (norm / torch.linalg.matrix_norm(w, 2))).to(dtype)


def normal(*shape: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def monotone(n: int, scale: float, dtype: torch.dtype, seed: int = 0, m: float = 0.5) -> Tensor:
    """W = (1 − m) I − AᵀA + B − Bᵀ, for which z = relu(Wz + x) has one solution (Winston and Kolter 2020)."""
    a, b = (torch.randn(n, n, generator=generator(seed + i), dtype=torch.float64) * scale / n**0.5 for i in (0, 100))
    return ((1 - m) * torch.eye(n, dtype=torch.float64) - a.T @ a + b - b.T).to(dtype)


def affine(dtype: torch.dtype, batch: int = 5) -> Problem:
    a, b = matrix(6, 0.7, dtype), normal(batch, 6, dtype=dtype)
    solution = torch.linalg.solve(torch.eye(6, dtype=dtype) - a, b.T).T
    return Problem(lambda z: z @ a.T + b, torch.zeros_like(b), solution, frozenset({"affine", "contraction"}))


def zero_row(dtype: torch.dtype) -> Problem:
    a, b = matrix(6, 0.7, dtype), normal(4, 6, dtype=dtype)
    b[2] = 0
    solution = torch.linalg.solve(torch.eye(6, dtype=dtype) - a, b.T).T
    return Problem(lambda z: z @ a.T + b, torch.zeros_like(b), solution, frozenset({"affine", "contraction"}))


def slow(dtype: torch.dtype) -> Problem:
    """Spectral radius 0.99, eigenvalues in [−0.5, 0.99]."""
    q, _ = torch.linalg.qr(normal(12, 12, dtype=torch.float64))
    a = ((q * torch.linspace(-0.5, 0.99, 12, dtype=torch.float64)) @ q.T).to(dtype)
    b = normal(4, 12, dtype=dtype)
    solution = torch.linalg.solve((torch.eye(12, dtype=dtype) - a).double(), b.T.double()).T.to(dtype)
    return Problem(lambda z: z @ a.T + b, torch.zeros_like(b), solution, frozenset({"affine", "slow"}), gain=200)


def cosine(dtype: torch.dtype) -> Problem:
    z0 = torch.linspace(-1, 1, 5, dtype=dtype)[:, None]
    return Problem(torch.cos, z0, torch.full_like(z0, 0.7390851332151607), frozenset({"contraction"}))


def kepler(dtype: torch.dtype) -> Problem:
    """E = M + e sin E, with M chosen for a known E."""
    e, anomaly = torch.linspace(0.05, 0.8, 7, dtype=dtype)[:, None], torch.linspace(0.3, 3, 7, dtype=dtype)[:, None]
    mean = anomaly - e * anomaly.sin()
    return Problem(lambda z: mean + e * z.sin(), mean, anomaly, frozenset({"contraction"}))


def tanh_layer(dtype: torch.dtype) -> Problem:
    w, solution = matrix(6, 0.9, dtype), normal(5, 6, dtype=dtype).tanh() * 0.9
    x = solution.atanh() - solution @ w.T
    return Problem(lambda z: torch.tanh(z @ w.T + x), torch.zeros_like(x), solution, frozenset({"contraction"}))


def relu_kink(dtype: torch.dtype) -> Problem:
    """The first unit sits at its kink in the solution, the second below it."""
    w, pre = matrix(6, 0.8, dtype), normal(5, 6, dtype=dtype).abs() + 0.1
    pre[:, 0], pre[:, 1] = 0, -pre[:, 1]
    solution = pre.relu()
    x = pre - solution @ w.T
    return Problem(lambda z: torch.relu(z @ w.T + x), torch.zeros_like(x), solution, frozenset({"contraction"}))


def monotone_layer(dtype: torch.dtype) -> Problem:
    w, pre = monotone(6, 1.5, dtype), normal(5, 6, dtype=dtype)
    assert torch.linalg.matrix_norm(w, 2) > 1
    solution = pre.relu()
    x = pre - solution @ w.T
    return Problem(lambda z: torch.relu(z @ w.T + x), torch.zeros_like(x), solution)


def tree(dtype: torch.dtype) -> Problem:
    """A dict of a vector and a tuple of an image, coupled."""
    a, b, c = matrix(3, 0.6, dtype), normal(4, 3, dtype=dtype), normal(4, 2, 2, dtype=dtype, seed=2)

    def f(z: dict[str, Any]) -> dict[str, Any]:
        vector, (image,) = z["vector"], z["image"]
        return {"vector": vector @ a.T + 0.1 * image.sum((1, 2))[:, None] + b, "image": (0.5 * image + c,)}

    image = c / 0.5
    right = (b + 0.1 * image.sum((1, 2))[:, None]).T
    vector = torch.linalg.solve(torch.eye(3, dtype=dtype) - a, right).T
    z0 = {"vector": torch.zeros_like(b), "image": (torch.zeros_like(c),)}
    kind = frozenset({"affine", "contraction"})
    return Problem(f, z0, {"vector": vector, "image": (image,)}, kind)


def no_fixed_point(dtype: torch.dtype) -> Problem:
    return Problem(lambda z: z + 1, torch.zeros(3, 2, dtype=dtype), None)


def diverges(dtype: torch.dtype) -> Problem:
    return Problem(lambda z: z + 1 + z**2, torch.zeros(3, 2, dtype=dtype), None)


PROBLEMS: dict[str, Callable[[torch.dtype], Problem]] = {
    "affine": affine,
    "one": lambda dtype: affine(dtype, batch=1),
    "none": lambda dtype: affine(dtype, batch=0),
    "zero_row": zero_row,
    "slow": slow,
    "cosine": cosine,
    "kepler": kepler,
    "tanh": tanh_layer,
    "relu_kink": relu_kink,
    "monotone": monotone_layer,
    "tree": tree,
    "no_fixed_point": no_fixed_point,
    "diverges": diverges,
}


@dataclass
class Entry:
    """A solver, what it promises to solve, and whether its samples go their own ways."""

    solver: Solver
    solves: Callable[[frozenset[str]], bool]
    own_way: bool = True
    loosen: float = 1.0  # how much looser than the table's its tolerance has to be
    exclude: frozenset[str] = field(default_factory=frozenset)

    def at(self, dtype: torch.dtype) -> Solver:
        rtol = (1e-5 if dtype == torch.float32 else 1e-9) * self.loosen
        return replace(self.solver, rtol=min(rtol, 1e-3), atol=rtol / 100)


def anything(kind: frozenset[str]) -> bool:
    return True


def contractions(kind: frozenset[str]) -> bool:
    return "contraction" in kind


def affine_maps(kind: frozenset[str]) -> bool:
    return "affine" in kind


SOLVERS: dict[str, Entry] = {
    "picard": Entry(Picard(max_steps=400), contractions),
    "picard-damped": Entry(Picard(damping=0.5, max_steps=6000), lambda kind: kind != frozenset()),
    "anderson": Entry(Anderson(max_steps=300), anything),
    "anderson-1": Entry(Anderson(memory=1, max_steps=1000), contractions),
    "anderson-damped": Entry(Anderson(damping=0.3, max_steps=300), anything),
    "broyden": Entry(Broyden(max_steps=300), anything),
    "newton": Entry(Newton(), anything),
    "newton-dense": Entry(Newton(linear=Dense()), anything),
    "newton-bicgstab": Entry(Newton(linear=BiCGSTAB(rtol=1e-3)), anything),
    "fallback": Entry(Fallback(Picard(), Newton()), anything),
    "fallback-of-three": Entry(Fallback(Picard(max_steps=3), Anderson(max_steps=5), Newton(), max_steps=80), anything),
    "gmres": Entry(GMRES(), affine_maps),
    "gmres-short": Entry(GMRES(restart=4, max_steps=500), affine_maps),
    "bicgstab": Entry(BiCGSTAB(), affine_maps),
    "dense": Entry(Dense(), affine_maps),
    "torchdeq-anderson": Entry(TorchDEQ("anderson", max_steps=300), contractions, own_way=False, loosen=1e3),
    "torchdeq-broyden": Entry(TorchDEQ("broyden", max_steps=300), contractions, own_way=False, loosen=100),
    "torchdeq-picard": Entry(TorchDEQ("fixed_point_iter", max_steps=400), contractions, own_way=False, loosen=2),
    "scipy-hybr": Entry(SciPy("hybr", max_steps=200), anything),
    "scipy-krylov": Entry(SciPy("krylov", max_steps=200), contractions),
}
