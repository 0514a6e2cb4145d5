"""The model under attack: a copy whose equilibria are found, and differentiated, as exactly as its dtype allows."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...backward import Backward, Implicit
from ...models import Equilibrium, Start
from ...solution import ConvergenceWarning, Solution
from ...solvers import GMRES, Anderson, Fallback, Newton, Solver

__all__ = ["Gradient", "Settled", "Victim", "margins"]

Gradient = str | Backward
"""How attacks differentiate: "exact", "model" for the model's own settings, or a ``Backward`` at the exact solution."""


class Watch(Start):
    """Starts where the model would by itself, and notes which samples each solve converged for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def begin(self, z0: Any, inputs: tuple[Any, ...]) -> Any:
        """There."""
        return z0

    def keep(self, solution: Solution) -> None:
        """Note it."""
        self.seen.append(solution.converged)


def settled(model: nn.Module, dtype: torch.dtype, gradient: Gradient = "exact") -> nn.Module:
    """A copy in eval mode, of that dtype and without trainable parameters, whose solves are exact.

    The model's own solver begins, so that of several equilibria the same one is found; what it leaves over is for
    others. "model" leaves solvers and backwards as they are.

    Raises:
        ValueError: If gradient is a text that says neither.
        TypeError: If it is no ``Backward`` either.
    """
    if isinstance(gradient, str) and gradient not in ("exact", "model"):
        raise ValueError(f'gradient={gradient!r}: gradient must be "exact", "model", or a Backward: Unroll() is JFB')
    if not isinstance(gradient, str | Backward):
        raise TypeError(f'gradient={gradient!r}: gradient must be "exact", "model", or a Backward such as Unroll()')
    twin = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
    for module in twin.modules():
        if not isinstance(module, Equilibrium) or module.solver is None:  # None is back-substitution, which is exact
            continue
        module.start = Watch()
        if gradient != "model":
            module.solver = _exact_solver(module.solver, dtype)
            module.backward = gradient if isinstance(gradient, Backward) else _exact_backward(dtype)
    return twin


def _tolerance(dtype: torch.dtype) -> dict[str, Any]:
    rtol = torch.finfo(dtype).eps ** (2 / 3)
    return {"rtol": rtol, "atol": rtol / 100}


def _exact_solver(own: Solver, dtype: torch.dtype) -> Solver:
    tight = _tolerance(dtype)
    first = own.solvers if isinstance(own, Fallback) else (own,)
    return Fallback(*first, Anderson(max_steps=200), Newton(max_steps=50), **tight)


def _exact_backward(dtype: torch.dtype) -> Backward:
    tight = _tolerance(dtype)
    return Implicit(solver=Fallback(Anderson(max_steps=100), GMRES(max_steps=1000, restart=100), **tight))


class Settled(nn.Module):
    """A ``settled`` copy that also tells what was found; see there.

    Attributes:
        module: The copy.
        shape: Shape of one input.
        dtype: That of the copy.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, gradient: Gradient) -> None:
        super().__init__()
        self.module, self.shape, self.dtype = settled(model, dtype, gradient), shape, dtype

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of inputs, (batch, inputs), and for which of them all equilibria were found, (batch,).

        Raises:
            ValueError: If what the model returns are no logits.
        """
        equilibria = self._equilibria()
        for equilibrium in equilibria:
            equilibrium.forward_solution = equilibrium.backward_solution = None
            if isinstance(equilibrium.start, Watch):
                equilibrium.start.seen.clear()
        with quiet():
            logits: Tensor = self.module(u.unflatten(1, self.shape))
        if logits.dim() != 2 or len(logits) != len(u) or logits.shape[1] < 2:
            raise ValueError(
                f"the model returns shape {tuple(logits.shape)} for {len(u)} inputs: attacks need logits, "
                "(batch, classes), of at least two classes"
            )
        found = torch.isfinite(logits.detach()).all(1)
        for equilibrium in equilibria:
            seen = list(equilibrium.start.seen) if isinstance(equilibrium.start, Watch) else []
            if not seen and equilibrium.forward_solution is not None:
                seen = [equilibrium.forward_solution.converged]
            found &= _agreed(seen, u)
        return logits, found

    def gradient_found(self, u: Tensor) -> Tensor:
        """For which inputs the gradient was found that was taken last, (batch,)."""
        records = [equilibrium.backward_solution for equilibrium in self._equilibria()]
        return _agreed([record.converged for record in records if record is not None], u)

    def _equilibria(self) -> list[Equilibrium]:
        return [part for part in self.module.modules() if isinstance(part, Equilibrium)]


class Victim:
    """What attacks ask of a model, their inputs flattened.

    Args:
        model: The classifier, from a batch to logits of shape (batch, classes). It is copied.
        shape: Shape of one input.
        dtype: That of the copy.
        gradient: How it is differentiated.
    """

    def __init__(
        self, model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, gradient: Gradient = "exact"
    ) -> None:
        self.judge = Settled(model, shape, dtype, "exact")
        self.guide = self.judge if gradient == "exact" else Settled(model, shape, dtype, gradient)

    @torch.no_grad()
    def logits(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The exact model's logits, and for which samples all its equilibria were found, without derivatives."""
        logits, found = self.judge(u)
        return logits, found

    def gradient(self, u: Tensor, labels: Tensor, loss: str | Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The exact logits, for which samples they were found, the gradient of the loss, and for which it was found."""
        with torch.enable_grad(), quiet():
            u = u.detach().requires_grad_()
            logits, found = self.guide(u)
            g = torch.zeros_like(u)
            if logits.requires_grad:
                value = objective(logits, labels, loss).sum()
                (g,) = torch.autograd.grad(value, u, allow_unused=True, materialize_grads=True)
        solved = found & self.guide.gradient_found(u)
        if self.guide is not self.judge:
            logits, found = self.logits(u.detach())
        return logits.detach(), found, torch.where(torch.isfinite(g), g, 0), solved


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The logit of the label less the largest of the others, (batch,)."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.amax(1)


def objective(logits: Tensor, labels: Tensor, loss: str | Tensor) -> Tensor:
    """What attacks make large, (batch,): −margin, the cross entropy for "ce", a class's lead where a class is given."""
    if isinstance(loss, str):
        return cross_entropy(logits, labels, reduction="none") if loss == "ce" else -margins(logits, labels)
    pair = logits.gather(1, torch.stack((loss, labels), 1))
    return pair[:, 0] - pair[:, 1]


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of what did not converge, which is counted instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _agreed(records: Sequence[Tensor], u: Tensor) -> Tensor:
    """Which samples all records call converged; a record of another batch is several for each, or of all at once."""
    agreed = torch.ones(len(u), dtype=torch.bool, device=u.device)
    for converged in records:
        several = len(u) > 0 and len(converged) % len(u) == 0
        agreed &= converged.view(len(u), -1).all(1) if several else converged.all()
    return agreed
