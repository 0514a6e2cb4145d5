"""Dense models whose equilibrium is unique because I − W is strongly monotone."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..activations import as_activation
from ..backward import Backward, Implicit
from ..solvers import Anderson, Fallback, Operator, PeacemanRachford, Solver
from .affine import AffineForm
from .deq import Equilibrium
from .operators import DenseLinear, DenseOperator
from .proximal import proximal
from .split import SplitMap
from .starts import Start

__all__ = ["IntervalMonotoneDEQ", "MonotoneDEQ", "UniqueEquilibrium"]


class UniqueEquilibrium(Equilibrium):
    """z = φ(Wz + Uu + b) with a W that has one solution whatever its parameters: what such dense models share.

    Attributes:
        U: Input weights, (states, inputs).
        b: Bias, (states,), or None.
    """

    b: nn.Parameter | None

    def __init__(
        self,
        inputs: int,
        states: int,
        *,
        activation: str,
        bias: bool,
        solver: Solver,
        backward: Backward,
        start: Start | None,
    ) -> None:
        super().__init__(solver, backward, start=start)
        for name, size in (("inputs", inputs), ("states", states)):
            if size < 1:
                raise ValueError(f"{type(self).__name__}({name}={size}): {name} must be at least 1")
        proximal(activation)
        self.inputs, self.states, self.activation, self.bias = inputs, states, activation, bias
        self.U = nn.Parameter(torch.empty(states, inputs).uniform_(-1, 1) * inputs**-0.5)
        self.b = nn.Parameter(torch.zeros(states)) if bias else None

    @property
    @abstractmethod
    def W(self) -> Tensor:
        """Hidden weights, (states, states), computed from the parameters."""

    @abstractmethod
    def _operator(self, W: Tensor) -> Operator:
        """A plain W as solvers by splitting see it."""

    def forward(self, u: Tensor, z0: Tensor | None = None) -> Tensor:
        """The equilibrium z, (batch, states), for u of shape (batch, inputs), found from z0 or from zeros.

        Raises:
            ValueError: If u has another shape.

        Warns:
            ConvergenceWarning: If a sample did not converge.
        """
        if u.dim() != 2 or u.shape[1] != self.inputs:
            raise ValueError(f"u has shape {tuple(u.shape)}, not (batch, {self.inputs}): flatten it with u.flatten(1)")
        f = SplitMap(DenseLinear(self.W, self._operator), self.activation)
        z: Tensor = self.equilibrium(f, z0, functional.linear(u, self.U, self.b))
        return z

    def affine(self, input_shape: tuple[int, ...] | None = None) -> AffineForm:  # noqa: D102
        W, b, like = self.W, self.b, self.U.detach()
        eye = torch.eye(self.states, dtype=W.dtype, device=W.device)
        return AffineForm(
            A=W,
            B=self.U,
            C=eye,
            D=torch.zeros_like(like),
            b=like.new_zeros(self.states) if b is None else b,
            c=like.new_zeros(self.states),
            activation=as_activation(self.activation),
        )

    def _start(self, inputs: tuple[Any, ...]) -> Tensor:
        return torch.zeros_like(inputs[0])

    def extra_repr(self) -> str:
        """Sizes, activation and strategies."""
        sizes = f"inputs={self.inputs}, states={self.states}, activation={self.activation!r}"
        return f"{sizes}, {super().extra_repr()}"


class MonotoneDEQ(UniqueEquilibrium):
    """z = φ(Wz + Uu + b) with W = (1 − m) I − AᵀA + B − Bᵀ (Winston and Kolter 2020).

    Then I − W ≥ mI in the sense of symmetric parts (proposition 1), and the equilibrium is the zero of a strongly
    monotone operator (theorem 1): there is exactly one for every value of the parameters and every u, and
    ‖z(u) − z(v)‖₂ ≤ ‖U‖₂ / m · ‖u − v‖₂ (Pabbaraju, Winston and Kolter 2021, theorem 1).
    Every W with I − W ≥ mI is of this form.

    Examples:
        >>> model = MonotoneDEQ(inputs=64, states=32, m=0.5)
        >>> model(torch.randn(5, 64)).shape
        torch.Size([5, 32])
        >>> I = torch.eye(32)
        >>> bool(torch.linalg.eigvalsh(I - (model.W + model.W.T) / 2).min() >= 0.5 - 1e-5)
        True

    Attributes:
        A: Free, (states, states).
        B: Free, (states, states).
        U: Input weights, (states, inputs).
        b: Bias, (states,), or None.

    Args:
        inputs: Entries of an input u.
        states: Entries of a state z.
        m: The margin of monotonicity, positive.
        activation: φ: a name in ``PROXIMAL``.
        bias: Whether there is b.
        solver: How the equilibrium is found. The default takes fewer evaluations than ``Anderson`` where W is far from
            a contraction, as it is after training.
        backward: How it is differentiated.
        start: Where the solver starts; None is zeros.

    Raises:
        ValueError: If a size or m is not positive, or the activation unknown.
        TypeError: If solver, backward or start is not a value of its kind.
    """

    def __init__(
        self,
        inputs: int,
        states: int,
        *,
        m: float = 1.0,
        activation: str = "relu",
        bias: bool = True,
        solver: Solver = PeacemanRachford(max_steps=200),
        backward: Backward = Implicit(solver=PeacemanRachford(max_steps=200)),
        start: Start | None = None,
    ) -> None:
        super().__init__(
            inputs, states, activation=activation, bias=bias, solver=solver, backward=backward, start=start
        )
        if not m > 0:
            raise ValueError(f"MonotoneDEQ(m={m!r}): m must be positive, e.g. 1.0")
        self.m = m
        self.A = nn.Parameter(torch.randn(states, states) * 0.35 * states**-0.5)
        self.B = nn.Parameter(torch.randn(states, states) * 0.15 * states**-0.5)

    @property
    def W(self) -> Tensor:  # noqa: D102
        identity = torch.eye(self.states, dtype=self.A.dtype, device=self.A.device)
        return (1 - self.m) * identity - self.A.T @ self.A + self.B - self.B.T

    def _operator(self, W: Tensor) -> Operator:
        return DenseOperator(W, self.m)

    def extra_repr(self) -> str:
        """Sizes, m, activation and strategies."""
        return f"m={self.m}, {super().extra_repr()}"


class IntervalMonotoneDEQ(UniqueEquilibrium):
    """z = φ(Wz + Uu + b) with W = QMQ, whose equilibrium on boxes of inputs is unique too (Wei and Kolter 2022).

    Q = diag(q)^(−1/2) with q = (|M|1 + |M|ᵀ1) / (2 (1 − m)), for a free M. Then (1 − m) I ≥ sym |W|, the matrix of
    absolute values, since (1 − m) diag(q) − sym |M| is diagonally dominant. So not only I − W ≥ mI, but the bounds of
    all z(u) for lower ≤ u ≤ upper that interval arithmetic gives are themselves the only fixed point of a monotone map.

    Attributes:
        M: Free, (states, states).
        U: Input weights, (states, inputs).
        b: Bias, (states,), or None.

    Args:
        inputs: Entries of an input u.
        states: Entries of a state z.
        m: The margin of monotonicity, in (0, 1).
        activation: φ: a name in ``PROXIMAL``.
        bias: Whether there is b.
        solver: How the equilibrium is found.
        backward: How it is differentiated.
        start: Where the solver starts; None is zeros.

    Raises:
        ValueError: If a size is not positive, m not in (0, 1), or the activation unknown.
        TypeError: If solver, backward or start is not a value of its kind.
    """

    def __init__(
        self,
        inputs: int,
        states: int,
        *,
        m: float = 0.5,
        activation: str = "relu",
        bias: bool = True,
        solver: Solver = Fallback(Anderson(), PeacemanRachford(max_steps=200)),
        backward: Backward = Implicit(),
        start: Start | None = None,
    ) -> None:
        super().__init__(
            inputs, states, activation=activation, bias=bias, solver=solver, backward=backward, start=start
        )
        if not 0 < m < 1:
            raise ValueError(f"IntervalMonotoneDEQ(m={m!r}): m must be between 0 and 1, e.g. 0.5")
        self.m = m
        self.M = nn.Parameter(torch.randn(states, states) * states**-0.5)

    @property
    def W(self) -> Tensor:  # noqa: D102
        size = self.M.abs()
        q = (size.sum(0) + size.sum(1)) / (2 * (1 - self.m))
        scale = q.clamp_min(torch.finfo(q.dtype).tiny ** 0.5).rsqrt()  # where q is 0, so are row and column
        return scale[:, None] * self.M * scale

    def _operator(self, W: Tensor) -> Operator:
        return DenseOperator(W, self.m)

    def extra_repr(self) -> str:
        """Sizes, m, activation and strategies."""
        return f"m={self.m}, {super().extra_repr()}"
