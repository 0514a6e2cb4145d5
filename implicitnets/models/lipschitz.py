"""The model with a prescribed Lipschitz constant of Revay, Wang and Manchester."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backward import Backward, Implicit
from ..backward.transforms import plain
from ..solvers import Operator, PeacemanRachford, Solver
from .affine import AffineForm
from .monotone import UniqueEquilibrium
from .operators import DenseOperator
from .starts import Start

__all__ = ["LipschitzDEQ"]


class LipschitzDEQ(UniqueEquilibrium):
    """z = φ(Wz + Uu + b), y = Cz + c, with ‖y(u) − y(v)‖₂ ≤ γ ‖u − v‖₂ (Revay, Wang and Manchester 2020).

    With Λ = diag(exp d) and free A and B,

        W = (1 − m) I − Λ^(−1/2) (AᵀA + B − Bᵀ) Λ^(1/2) − Λ⁻¹ (CᵀC + Λ U Uᵀ Λ) / 2γ,

    so that 2Λ − ΛW − WᵀΛ − (CᵀC + Λ U Uᵀ Λ) / γ = 2mΛ + 2 Λ^(1/2) AᵀA Λ^(1/2) is positive definite. (That is their
    direct parametrization; with the roots of Λ beside it, A is of the same size whatever Λ is.) For differences Δ
    between two inputs, slopes in [0, 1] mean ΔzᵀΛ(WΔz + UΔu − Δz) ≥ 0, hence ½ ΔzᵀSΔz ≤ ΔzᵀΛUΔu with
    S = 2Λ − ΛW − WᵀΛ; the right side is at most ‖UᵀΛΔz‖² / 2γ + γ ‖Δu‖² / 2, and what is left is ‖CΔz‖² ≤ γ² ‖Δu‖².

    Without the term in γ (``lipschitz=None``), S > 0 alone says that there is exactly one equilibrium (their condition
    of well-posedness): for a larger set of W than that of ``MonotoneDEQ``, which is Λ = I.

    Examples:
        >>> model = LipschitzDEQ(inputs=64, states=32, outputs=10, lipschitz=2.0)
        >>> u, v = torch.randn(2, 5, 64)
        >>> bool((torch.linalg.vector_norm(model(u) - model(v), dim=1) <= 2 * (u - v).norm(dim=1)).all())
        True

    Attributes:
        A: Free, (states, states).
        B: Free, (states, states).
        C: Output weights, (outputs, states), or None: then y = z.
        U: Input weights, (states, inputs).
        b: Bias of the state, (states,), or None.
        c: Bias of the output, (outputs,), or None.
        d: Logarithm of the diagonal of Λ, (states,).

    Args:
        inputs: Entries of an input u.
        states: Entries of a state z.
        outputs: Entries of an output y. None returns the state, for which the bound then holds.
        lipschitz: γ, positive, or None for no bound.
        m: The margin of monotonicity in the norm of Λ, positive.
        activation: φ: a name in ``PROXIMAL``.
        bias: Whether there are b and c.
        solver: How the equilibrium is found.
        backward: How it is differentiated.
        start: Where the solver starts; None is zeros.

    Raises:
        ValueError: If a size, lipschitz or m is not positive, or the activation unknown.
        TypeError: If solver, backward or start is not a value of its kind.
    """

    c: nn.Parameter | None
    C: nn.Parameter | None

    def __init__(
        self,
        inputs: int,
        states: int,
        outputs: int | None = None,
        *,
        lipschitz: float | None = 1.0,
        m: float = 0.1,
        activation: str = "relu",
        bias: bool = True,
        solver: Solver = PeacemanRachford(max_steps=200),
        backward: Backward = Implicit(solver=PeacemanRachford(max_steps=200)),
        start: Start | None = None,
    ) -> None:
        super().__init__(
            inputs, states, activation=activation, bias=bias, solver=solver, backward=backward, start=start
        )
        if outputs is not None and outputs < 1:
            raise ValueError(f"LipschitzDEQ(outputs={outputs}): outputs must be at least 1, or None for the state")
        for name, value in (("lipschitz", 1.0 if lipschitz is None else lipschitz), ("m", m)):
            if not value > 0:
                raise ValueError(f"LipschitzDEQ({name}={value!r}): {name} must be positive")
        self.outputs, self.lipschitz, self.m = outputs, lipschitz, m
        self.A = nn.Parameter(torch.randn(states, states) * 0.35 * states**-0.5)
        self.B = nn.Parameter(torch.randn(states, states) * 0.15 * states**-0.5)
        self.C = None if outputs is None else nn.Parameter(torch.empty(outputs, states).uniform_(-1, 1))
        self.c = nn.Parameter(torch.zeros(outputs)) if bias and outputs is not None else None
        self.d = nn.Parameter(torch.zeros(states))
        self._initialize()

    def _initialize(self) -> None:
        """Each term in γ is at most I/4, so that the model starts as a contraction, with ‖C‖‖U‖ = γ/2."""
        with torch.no_grad():
            if self.lipschitz is None:
                if self.C is not None:
                    self.C.mul_(self.states**-0.5)
                return
            size = self.lipschitz / 2
            if self.C is None:
                self.d.fill_(-math.log(size))
            else:
                size = math.sqrt(size)
                self.C.mul_(size / torch.linalg.matrix_norm(self.C, 2))
            self.U.mul_(size / torch.linalg.matrix_norm(self.U, 2))

    @property
    def W(self) -> Tensor:  # noqa: D102
        root = (self.d / 2).exp()
        free = self.A.T @ self.A + self.B - self.B.T
        identity = torch.eye(self.states, dtype=free.dtype, device=free.device)
        if self.lipschitz is not None:
            C, U = (identity if self.C is None else self.C) / root, root[:, None] * self.U
            free = free + (C.T @ C + U @ U.T) / (2 * self.lipschitz)
        return (1 - self.m) * identity - free * root / root[:, None]

    def _operator(self, W: Tensor) -> Operator:
        return DenseOperator(W, self.m, weights=plain(self.d).exp().to(W.dtype))

    def affine(self, input_shape: tuple[int, ...] | None = None) -> AffineForm:  # noqa: D102
        form = replace(super().affine(input_shape), weights=self.d.exp())
        if self.C is None:
            return form
        return form.then(self.C, self.C.new_zeros(len(self.C)) if self.c is None else self.c)

    def forward(self, u: Tensor, z0: Tensor | None = None) -> Tensor:
        """The output y, (batch, outputs), or the state where there are none, for u of shape (batch, inputs).

        Raises:
            ValueError: If u has another shape.

        Warns:
            ConvergenceWarning: If a sample did not converge.
        """
        z = super().forward(u, z0)
        return z if self.C is None else functional.linear(z, self.C, self.c)

    def extra_repr(self) -> str:
        """Sizes, γ, m, activation and strategies."""
        return f"outputs={self.outputs}, lipschitz={self.lipschitz}, m={self.m}, {super().extra_repr()}"
