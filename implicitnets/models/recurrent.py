"""Recurrent networks with an equilibrium at each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..activations import Activation, plain
from ..backward import Backward, Implicit
from ..constraints import Constraint, InfNorm
from ..solution import Solution
from ..solvers import Anderson, Solver
from .cells import hidden_weight
from .deq import Equilibrium
from .normalized import check_sizes
from .starts import Start

__all__ = ["ImplicitRNN"]


class ImplicitRNN(Equilibrium):
    """hₜ = φ(W hₜ + V hₜ₋₁ + U xₜ + b): a recurrent network whose hidden state is defined implicitly at each step.

    The implicit model of El Ghaoui, Gu, Travacca, Askari and Tsai (2021) with (xₜ, hₜ₋₁) for its input. With the
    default constraint, ‖W‖∞ < 1, there is one hₜ at each step, whatever the other weights (there, section 2). A solve
    starts from the state of the step before, which is often near, as in the RNNs of Kag, Zhang and Saligrama (2020),
    which evolve on an equilibrium manifold. The gradient goes back by implicit differentiation at each step.

    ``forward_solution`` is of the sequence: ``value`` (batch, length, states), and for each sample the largest residual
    and the worst status of all steps, so that no failure is passed over, and the sum of the solver's steps. Likewise
    ``backward_solution`` of the adjoint equations since the last call; its value is that of the last one taken.

    Examples:
        >>> model = ImplicitRNN(inputs=3, states=16)
        >>> model(torch.randn(5, 20, 3)).shape
        torch.Size([5, 20, 16])
        >>> model.forward_solution.steps.shape
        torch.Size([5])

    Attributes:
        W: Implicit weights, (states, states), constrained.
        V: Recurrent weights, (states, states).
        U: Input weights, (states, inputs).
        b: Bias, (states,).

    Args:
        inputs: Entries of an input xₜ.
        states: Entries of the hidden state hₜ.
        activation: φ: a name in ``ACTIVATIONS``, or a value such as ``Softmax(size=4)`` with as many states as rows.
        constraint: What keeps W well-posed, or None.
        solver: How the equilibrium of a step is found.
        backward: How it is differentiated.
        start: Where the solves start, for a state (batch, length, states); None is the state before.

    Raises:
        ValueError: If a size is not positive, the activation unknown, or the constraint not for it.
        TypeError: If solver, backward, start or constraint is not a value of its kind.
    """

    W: Tensor

    def __init__(
        self,
        inputs: int,
        states: int,
        *,
        activation: str | Activation = "tanh",
        constraint: Constraint | None = InfNorm(),
        solver: Solver = Anderson(),
        backward: Backward = Implicit(),
        start: Start | None = None,
    ) -> None:
        super().__init__(solver, backward, start=start)
        check_sizes(self, 1, inputs=inputs, states=states)
        self.inputs, self.states, self.activation, self.constraint = inputs, states, plain(activation), constraint
        self.phi = hidden_weight(self, "W", states, activation, constraint)
        self.V = nn.Parameter(torch.empty(states, states))
        self.U = nn.Parameter(torch.empty(states, inputs).uniform_(-1, 1) * inputs**-0.5)
        self.b = nn.Parameter(torch.zeros(states))
        nn.init.orthogonal_(self.V)

    def forward(self, x: Tensor, h0: Tensor | None = None, z0: Tensor | None = None) -> Tensor:
        """The states of all steps, (batch, length, states).

        Args:
            x: The sequence, (batch, length, inputs).
            h0: The state before it, (batch, states), for instance the last one of an earlier piece; else zeros.
            z0: Where to start the solves, (batch, length, states); else each starts at the state before.

        Raises:
            ValueError: If a shape is another, or there is no step.

        Warns:
            ConvergenceWarning: If a sample did not converge at a step, once for each such step.
        """
        h, starts = self._checked(x, h0, z0)
        injected = functional.linear(x, self.U, self.b)
        matrix, phi = self.W.T, self.phi  # constrained once, not at every evaluation
        if z0 is None and self.start is not None:
            starts = self.start.begin(torch.zeros_like(injected), (injected,))
        self.backward_solution = None
        records, states = [], []
        for t in range(x.shape[1]):
            u = torch.addmm(injected[:, t], h, self.V.T)
            h = self.equilibrium(lambda z, u: phi(torch.addmm(u, z, matrix)), h if starts is None else starts[:, t], u)
            assert self.forward_solution is not None
            records.append(self.forward_solution)
            states.append(h)
        self.forward_solution = _worst(records, torch.stack([record.value for record in records], 1))
        if z0 is None and self.start is not None:
            self.start.keep(self.forward_solution)
        return torch.stack(states, 1)

    def _checked(self, x: Tensor, h0: Tensor | None, z0: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The state before the sequence, and z0.

        Raises:
            ValueError: If a shape does not fit.
        """
        if x.dim() != 3 or x.shape[2] != self.inputs or not x.shape[1]:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, not (batch, length, {self.inputs}) with a length of at least 1: "
                "write x[:, None] for one step"
            )
        if h0 is not None and h0.shape != (len(x), self.states):
            raise ValueError(f"h0 has shape {tuple(h0.shape)}, not {(len(x), self.states)}: write h0=h[:, -1]")
        if z0 is not None and z0.shape != (*x.shape[:2], self.states):
            raise ValueError(f"z0 has shape {tuple(z0.shape)}, not {(*x.shape[:2], self.states)}: one state a step")
        return x.new_zeros(len(x), self.states) if h0 is None else h0, z0

    def _start(self, inputs: tuple[Any, ...]) -> Tensor:
        return torch.zeros_like(inputs[0])

    def _keep_backward(self, solution: Solution) -> None:
        before = self.backward_solution
        self.backward_solution = solution if before is None else _worst([before, solution], solution.value)

    def extra_repr(self) -> str:
        """Sizes, activation and strategies."""
        return f"inputs={self.inputs}, states={self.states}, activation={self.activation!r}, {super().extra_repr()}"


def _worst(records: Sequence[Solution], value: Any) -> Solution:
    """One record of several solves: per sample the largest residual and the worst status, and what all took."""
    traces = [record.trace for record in records if record.trace is not None]
    errors = [record.error for record in records if record.error is not None]
    return replace(
        records[0],
        value=value,
        residual=torch.stack([record.residual for record in records]).amax(0),
        steps=torch.stack([record.steps for record in records]).sum(0),
        status=torch.stack([record.status for record in records]).amax(0),
        evaluations=sum(record.evaluations for record in records),
        trace=torch.cat(traces) if traces else None,
        error=torch.stack(errors).amax(0) if errors else None,
    )
