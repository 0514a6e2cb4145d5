"""The equations of derivatives, w = Jᵀw + g and w = Jw + g, with J = ∂f/∂z of another problem.

They are fixed-point equations too, so their own derivatives lead to such equations again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.autograd.graph import get_gradient_edge

from ..solution import amended, warn_unconverged
from ..solvers import GMRES, Anderson, Dense, Fallback, Solver, SplitJacobian
from ..solvers.newton import solve_scaled
from .error import error_bound, estimate_error
from .frame import Frame
from .problems import Axes, Forward, Problem, Tensors, copies
from .sync import together
from .transforms import jvp, vjp

__all__ = ["Adjoint", "Linearization", "Tangent"]

SMALL, LITTLE = 64, 2**22
"""Up to this size of a state, and this many multiplications for all rows, a dense solve is faster (on the CPU)."""
COLUMNS = 64
"""So many columns of a matrix are computed at once, which bounds the memory."""


class _LinearProblem(Problem):
    """w = Mw + g with M made of J = ∂f/∂z of another problem; the operands are (z, θ, g)."""

    def __init__(self, of: Problem) -> None:
        self.of, self.rule, self.frame = of, of.rule, of.frame

    @property
    def root(self) -> Forward:
        return self.of.root

    def split(self, operands: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
        n = len(self.frame.layout.shapes)
        return operands[:n], operands[n : len(operands) - n], operands[len(operands) - n :]

    def mapped(self, size: int, axes: Axes, randomness: str, operands: Tensors) -> tuple[Problem, list[Tensor]]:
        (z, theta, g), (along_z, along_theta, along_g) = self.split(operands), self.split(axes)
        of, inner = self.of.mapped(size, along_theta, randomness, theta)
        return type(self)(of), [*copies(z, along_z, size), *inner, *copies(g, along_g, size)]


class Adjoint(_LinearProblem):
    """w = Jᵀw + g."""

    def solve(self, operands: Tensors) -> tuple[list[Tensor], Tensor]:  # noqa: D102
        z, theta, g = self.split(operands)
        return Linearization(self.of, z, theta).solve_adjoint(g)

    def apply(self, z: Tensors, operands: Tensors) -> list[Tensor]:  # noqa: D102
        point, theta, g = self.split(operands)
        return [a + b for a, b in zip(vjp(lambda *p: self.of.apply(p, theta), point, z), g, strict=True)]

    def factors(self, z: Tensors, operands: Tensors) -> SplitJacobian | None:  # noqa: D102
        point, theta, _ = self.split(operands)
        found = self.of.factors(point, theta)
        return None if found is None else found.T


class Tangent(_LinearProblem):
    """w = Jw + g."""

    def solve(self, operands: Tensors) -> tuple[list[Tensor], Tensor]:  # noqa: D102
        z, theta, g = self.split(operands)
        return Linearization(self.of, z, theta).solve_tangent(g)

    def apply(self, z: Tensors, operands: Tensors) -> list[Tensor]:  # noqa: D102
        point, theta, g = self.split(operands)
        product = jvp(lambda *p: self.of.apply(p, theta), point, z, like=point)
        return [a + b for a, b in zip(product, g, strict=True)]

    def factors(self, z: Tensors, operands: Tensors) -> SplitJacobian | None:  # noqa: D102
        point, theta, _ = self.split(operands)
        return self.of.factors(point, theta)


class Linearization:
    """f recorded once at plain (z, θ), for products with its Jacobians."""

    def __init__(self, problem: Problem, z: Tensors, theta: Tensors) -> None:
        self.problem = problem
        with torch.enable_grad():
            self.z = [t.detach().requires_grad_() for t in z]
            independent = all(t.is_leaf for t in theta)  # else one may be computed from another: cut them apart
            self.theta = list(theta) if independent else [t.detach().requires_grad_(t.requires_grad) for t in theta]
            self.out = problem.apply(self.z, self.theta)
        self.outputs = tuple(t for t in self.out if t.requires_grad)
        self._inputs = tuple(self.z)

    def solve_adjoint(self, g: Tensors) -> tuple[list[Tensor], Tensor]:
        """The w with w = Jᵀw + g, by the rule's solver, and the status of each sample."""
        return self._solve(
            _Linear(self.problem.frame, self._pull, partial(self._factors, transposed=True)), g, "gradient"
        )

    def solve_tangent(self, g: Tensors) -> tuple[list[Tensor], Tensor]:
        """The w with w = Jw + g, likewise. Jw comes from differentiating Jᵀu, which is linear in u."""
        with torch.enable_grad():
            u = [torch.zeros_like(t, requires_grad=True) for t in self.out]
            pulled: Sequence[Tensor] = [torch.zeros_like(t) for t in self.z]
            if self.outputs:
                options = {"create_graph": True, "materialize_grads": True}
                pulled = torch.autograd.grad(self.outputs, self.z, self._shown(u), **options)
        depends = [t.requires_grad for t in pulled]
        outputs = [t for t in pulled if t.requires_grad]

        def product(w: Tensors) -> Tensors:
            if not outputs:
                return [torch.zeros_like(t) for t in w]
            tangents = [v for v, there in zip(w, depends, strict=True) if there]
            return torch.autograd.grad(outputs, u, tangents, retain_graph=True, materialize_grads=True)

        return self._solve(_Linear(self.problem.frame, product, self._factors), g, "tangent")

    def _factors(self, *, transposed: bool = False) -> SplitJacobian | None:
        found = self.problem.factors(self.z, self.theta)
        return found if found is None or not transposed else found.T

    def gradients(self, w: Tensors, wanted: Sequence[bool]) -> list[Tensor | None]:
        """(∂f/∂θ)ᵀ w for the operands that are wanted. Frees what was recorded, as it goes."""
        targets = tuple(t for t, need in zip(self.theta, wanted, strict=True) if need)
        if not self.outputs or not targets:
            return [torch.zeros_like(t) if need else None for t, need in zip(self.theta, wanted, strict=True)]
        roots, shown = [get_gradient_edge(t) for t in self.outputs], self._shown(w)
        self.out, self.outputs = [], ()  # f(z), which the graph itself holds no longer than it needs
        grads = iter(_products(roots, shown, targets, keep=False))
        return [next(grads) if need else None for need in wanted]

    def _pull(self, w: Tensors) -> Tensors:
        """Jᵀw."""
        if not self.outputs:
            return [torch.zeros_like(t) for t in self.z]
        found = _products(self.outputs, self._shown(w), self._inputs, keep=True)
        return [torch.zeros_like(z) if t is None else t for z, t in zip(self.z, found, strict=True)]

    def _shown(self, cotangents: Tensors) -> tuple[Tensor, ...]:
        """Those of the outputs that depend on anything."""
        if len(self.outputs) == len(self.out):
            return tuple(cotangents)
        return tuple(c for t, c in zip(self.out, cotangents, strict=True) if t.requires_grad)

    def _solve(self, linear: _Linear, g: Tensors, what: str) -> tuple[list[Tensor], Tensor]:
        frame, rule, root = self.problem.frame, self.problem.rule, self.problem.root
        right = frame.pack(g)
        solver = root.equation.feasible(rule.solver or _fastest(right))
        found = solve_scaled(together(solver, frame.ranks), linear, right)
        match rule.contraction:
            case "unknown":
                found = amended(found, error=estimate_error(linear, found.value, right))
            case float() | int() as q:
                found = amended(found, error=error_bound(found, q))
        w = frame.unpack(found.value)
        if root.report is not None:
            root.report(frame.told(found, w))
        warn_unconverged(
            found,
            solver,
            what=f"{what} of a fixed point (residual of its linear equation, in units of the right-hand side)",
            remedies=f"{type(solver).remedies}, given as backward=Implicit(solver=...)",
        )
        return w, frame.per_sample(found.status)


def _products(roots: Sequence[Any], w: Tensors, targets: tuple[Tensor, ...], *, keep: bool) -> Sequence[Any]:
    """As ``torch.autograd.grad`` computes them, without its checks, which take a fifth of a small product."""
    run = Variable._execution_engine.run_backward
    return run(tuple(roots), w, keep, False, targets, allow_unreachable=True, accumulate_grad=False)


class _Linear:
    """A linear map of leaves, on matrices of rows."""

    def __init__(
        self, frame: Frame, product: Callable[[Tensors], Tensors], factors: Callable[[], SplitJacobian | None]
    ) -> None:
        self.frame, self.product, self.factors, self.plain = frame, product, factors, frame.plain

    def __call__(self, w: Tensor) -> Tensor:
        if self.plain:
            return self.product((w,))[0]
        return self.frame.pack(self.product(self.frame.unpack(w)))

    def matrix(self, like: Tensor) -> Tensor | None:
        """The matrix of each row, ``(rows, size, size)``, by mapping over its columns, where f can be mapped."""
        size = like.shape[1]
        units = torch.eye(size, dtype=like.dtype, device=like.device)[:, None].expand(size, *like.shape)
        try:
            return torch.vmap(self, chunk_size=COLUMNS)(units).permute(1, 2, 0)
        except RuntimeError:  # an operation without a rule for it: one column at a time will do
            return None


def _fastest(right: Tensor) -> Solver:
    """The default: see the attributes of ``Implicit``. Measured: benchmarks/adjoint.py."""
    rows, size = right.shape
    return Dense() if size <= SMALL and rows * size**3 <= LITTLE else Fallback(Anderson(), GMRES())
