"""The implicit model of El Ghaoui et al."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backward import Backward, Implicit
from ..constraints import Constraint, InfNorm
from ..solvers import Anderson, Solver
from .deq import Equilibrium
from .starts import Start

__all__ = ["ACTIVATIONS", "ImplicitModel"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": functional.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "elu": functional.elu,
    "hardtanh": functional.hardtanh,
}
"""Component-wise activations with slopes in [0, 1], so that ‖A‖∞ < 1 makes a model well-posed."""


class ImplicitModel(Equilibrium):
    """x = φ(Ax + Bu + b), y = Cx + Du + c (El Ghaoui, Gu, Travacca, Askari and Tsai 2021).

    Well-posed for every input if its constraint keeps ‖A‖∞ < 1.

    Example:
        >>> model = ImplicitModel(inputs=64, states=32, outputs=10)
        >>> model(torch.randn(5, 64)).shape
        torch.Size([5, 10])
        >>> bool(model.A.abs().sum(1).max() <= 0.95 + 1e-6)
        True

    Attributes:
        A: Hidden weights, (states, states), constrained.
        B: Input weights, (states, inputs).
        C: Output weights, (outputs, states).
        D: Weights from input to output, (outputs, inputs).
        b: State bias, (states,), or None.
        c: Output bias, (outputs,), or None.

    Args:
        inputs: Entries of an input u.
        states: Entries of the hidden state x.
        outputs: Entries of an output y.
        activation: φ: a name in ``ACTIVATIONS``, or a function of one tensor (which can't be saved).
        constraint: What keeps A well-posed, or None.
        bias: Whether there are b and c.
        solver: How the equilibrium is found.
        backward: How it is differentiated.
        start: Where the solver starts; None is zeros.

    Raises:
        ValueError: If a size is not positive or the activation unknown.
        TypeError: If solver, backward or constraint is not a value of its kind.
    """

    A: Tensor
    b: nn.Parameter | None
    c: nn.Parameter | None

    def __init__(
        self,
        inputs: int,
        states: int,
        outputs: int,
        *,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        constraint: Constraint | None = InfNorm(),
        bias: bool = True,
        solver: Solver = Anderson(),
        backward: Backward = Implicit(),
        start: Start | None = None,
    ) -> None:
        super().__init__(solver, backward, start=start)
        for name, size in (("inputs", inputs), ("states", states), ("outputs", outputs)):
            if size < 1:
                raise ValueError(f"ImplicitModel({name}={size}): {name} must be at least 1")
        if isinstance(activation, str) and activation not in ACTIVATIONS:
            raise ValueError(f"no activation is called {activation!r}. There are: {', '.join(sorted(ACTIVATIONS))}")
        if constraint is not None and not isinstance(constraint, Constraint):
            raise TypeError(
                f"constraint={constraint!r} is not a Constraint: write constraint=InfNorm(kappa=0.95) or None"
            )
        self.inputs, self.states, self.outputs = inputs, states, outputs
        self.activation, self.constraint, self.bias = activation, constraint, bias
        self.A = nn.Parameter(torch.empty(states, states))
        self.B = nn.Parameter(torch.empty(states, inputs))
        self.C = nn.Parameter(torch.empty(outputs, states))
        self.D = nn.Parameter(torch.empty(outputs, inputs))
        self.b = nn.Parameter(torch.zeros(states)) if bias else None
        self.c = nn.Parameter(torch.zeros(outputs)) if bias else None
        self._initialize()
        if constraint is not None:
            constraint.apply(self, "A")

    def _initialize(self) -> None:
        """Rows of A of absolute sum 1/2, so that every model starts as a contraction; the rest as in nn.Linear."""
        with torch.no_grad():
            self.A.uniform_(-1, 1)
            self.A /= 2 * self.A.abs().sum(1, keepdim=True)
            for weight in (self.B, self.C, self.D):
                weight.uniform_(-1, 1).mul_(weight.shape[1] ** -0.5)

    def forward(self, u: Tensor, z0: Tensor | None = None) -> Tensor:
        """Y of shape (batch, outputs) for u of shape (batch, inputs), starting from the state z0 or from zeros.

        Raises:
            ValueError: If u has another shape.

        Warns:
            ConvergenceWarning: If a sample did not converge.
        """
        return functional.linear(self.state(u, z0), self.C, self.c) + functional.linear(u, self.D)

    def state(self, u: Tensor, z0: Tensor | None = None) -> Tensor:
        """The hidden state x = φ(Ax + Bu + b), of shape (batch, states).

        Raises:
            ValueError: If u has another shape than (batch, inputs).
        """
        if u.dim() != 2 or u.shape[1] != self.inputs:
            raise ValueError(f"u has shape {tuple(u.shape)}, not (batch, {self.inputs}): flatten it with u.flatten(1)")
        phi = ACTIVATIONS[self.activation] if isinstance(self.activation, str) else self.activation
        matrix = self.A.T  # constrained once, not at every evaluation
        injection = functional.linear(u, self.B, self.b)
        state: Tensor = self.equilibrium(lambda x, bu: phi(torch.addmm(bu, x, matrix)), z0, injection)
        return state

    def _start(self, inputs: tuple[Any, ...]) -> Tensor:
        return torch.zeros_like(inputs[0])

    def extra_repr(self) -> str:
        """Sizes, activation and strategies."""
        sizes = f"inputs={self.inputs}, states={self.states}, outputs={self.outputs}"
        return f"{sizes}, activation={self.activation!r}, {super().extra_repr()}"
