"""Implicit stochastic gradient descent, and the proximal step in the space of states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..models import Equilibrium, Start
from ..pytree import leaves
from ..solution import Solution
from .descent import minimize
from .method import Loss, Method, Trainer, Unsupported

__all__ = ["ImplicitSGD"]


@dataclass(frozen=True, kw_only=True)
class ImplicitSGD(Method):
    """θ ← argmin L(θ) + ‖θ − θₖ‖² / (2 lr) + states · ‖z(θ) − z(θₖ)‖² / (2 lr), L being the loss of the batch.

    Without the last term this is implicit stochastic gradient descent, θ ← θₖ − lr ∇L(θ) with the gradient at the new
    point (Li, Chen and Huang 2023, arXiv 2303.01767, for networks that solve differential equations). The last term,
    with the mean over the batch and z the equilibria of the model, is the proximal step in the space of what the model
    computes, in which Lin, Li, Osher and Montúfar take their Wasserstein proximal steps.

    The minimum is approached by some iterations from θₖ; within a step an equilibrium starts where it was last.

    Attributes:
        inner: "lbfgs" (with a strong Wolfe line search) or "cg" (nonlinear conjugate gradients with Armijo's rule).
        inner_steps: Iterations of it.
        states: Weight of the distance of the states, 0 or more.

    Raises:
        ValueError: If an option is out of range.
    """

    inner: Literal["lbfgs", "cg"] = "lbfgs"
    inner_steps: int = 5
    states: float = 0.0

    lr: ClassVar[float] = 0.5

    def __post_init__(self) -> None:
        if self.inner not in ("lbfgs", "cg"):
            raise ValueError(f"ImplicitSGD(inner={self.inner!r}): inner must be 'lbfgs' or 'cg'")
        if self.inner_steps < 1:
            raise ValueError(f"ImplicitSGD(inner_steps={self.inner_steps!r}): inner_steps must be at least 1")
        if not self.states >= 0:
            raise ValueError(f"ImplicitSGD(states={self.states!r}): states must be at least 0")

    def trainer(self, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float = 0.0) -> Trainer:
        """Of any model whose outputs are the same each time that it is called on the same inputs.

        Raises:
            Unsupported: If ``states`` is positive and there is no equilibrium in the model.
        """
        if self.states > 0 and not _equilibria(model):
            raise Unsupported(f"states={self.states} weighs the states of equilibria, and this model has none")
        return _ImplicitTrainer(self, model, loss, lr=lr, weight_decay=weight_decay)


class _ImplicitTrainer(Trainer):
    def __init__(self, rule: ImplicitSGD, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float) -> None:
        super().__init__(model, lr)
        self.rule, self.loss, self.weight_decay = rule, loss, weight_decay
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.equilibria = _equilibria(model)

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with ExitStack() as stack:
            watches = [stack.enter_context(_watched(m)) for m in self.equilibria]
            with torch.no_grad():
                outputs = self.model(inputs)
                loss = self.loss(outputs, targets)
            if bool(loss.isfinite()):
                self._approach(self._energy(inputs, targets, watches))
        return loss, outputs

    def _energy(self, inputs: Tensor, targets: Tensor, watches: Sequence[_Watch]) -> Callable[[], Tensor]:
        """The loss and the distances from what is now, as a function of the parameters as they are."""
        self.before = [p.detach().clone() for p in self.parameters]
        states = [z.detach() for watch in watches for z in leaves(watch.state)]

        def energy() -> Tensor:
            loss = self.loss(self.model(inputs), targets)
            far = torch.stack([(p - q).square().sum() for p, q in zip(self.parameters, self.before, strict=True)]).sum()
            if self.rule.states > 0:
                now = [z for watch in watches for z in leaves(watch.state)]
                moved = torch.stack([(z - q).square().sum() for z, q in zip(now, states, strict=True)]).sum()
                far = far + self.rule.states * moved / len(inputs)
            return loss + far / (2 * self.lr)

        return energy

    def _approach(self, energy: Callable[[], Tensor]) -> None:
        if self.rule.inner == "cg":
            minimize(energy, self.parameters, self.rule.inner_steps)
        else:
            inner = torch.optim.LBFGS(
                self.parameters, max_iter=self.rule.inner_steps, line_search_fn="strong_wolfe", history_size=10
            )

            def closure() -> Tensor:
                inner.zero_grad()
                value = energy()
                value.backward()
                return value

            inner.step(closure)
            inner.zero_grad()
        with torch.no_grad():
            for p, q in zip(self.parameters, self.before, strict=True):
                p.sub_(q, alpha=self.lr * self.weight_decay)


def _equilibria(model: nn.Module) -> list[Equilibrium]:
    """Those that are solved for; a triangular A needs no solver, and has no start."""
    return [m for m in model.modules() if isinstance(m, Equilibrium) and m.solver is not None]


class _Previous(Start):
    """Where the last solve ended."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Any = None

    def begin(self, z0: Any, inputs: tuple[Any, ...]) -> Any:
        shapes = [t.shape for t in leaves(z0)]
        return self.last if self.last is not None and [t.shape for t in leaves(self.last)] == shapes else z0

    def keep(self, solution: Solution) -> None:
        self.last = solution.value


@dataclass
class _Watch:
    """The state of the last solve, differentiable."""

    state: Any = None


@contextmanager
def _watched(model: Equilibrium) -> Iterator[_Watch]:
    """Within this block a model starts where it was last, and its states are seen.

    Yields:
        The state of its last solve.
    """
    watch, solve, start = _Watch(), model.equilibrium, model.start

    def equilibrium(f: Any, z0: Any, *inputs: Any) -> Any:
        watch.state = solve(f, z0, *inputs)
        return watch.state

    model.start, model.__dict__["equilibrium"] = _Previous(), equilibrium
    try:
        yield watch
    finally:
        model.start = start
        del model.__dict__["equilibrium"]
