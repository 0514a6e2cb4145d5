"""Block-coordinate descent on the energy of lifted training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..method import Loss, Method, Trainer
from .cells import Cell
from .energy import LiftedEnergy, accelerate, curvature

__all__ = ["Lifted"]

HALVINGS = 30


@dataclass(frozen=True, kw_only=True)
class Lifted(Method):
    """Lifted training (El Ghaoui et al. 2021, on training; Gu, Askari and El Ghaoui 2020; Li, Fang and Lin 2019).

    Block-coordinate descent on E(X, Θ) = L(CX + DU + c, Y) + 1/n Σ λᵢ Fᵢ(X, AX + BU + b), with F the Fenchel-Young loss
    of the activation and X the states of the batch, which begin at the equilibrium:

    - X: steps of accelerated mirror descent (``LiftedEnergy.descend``);
    - C, D, c ← argmin L(CX + DU + c, Y) + ‖·  − before‖² / (2 lr), a ridge regression in closed form if the loss is
      quadratic, else a few such steps, each on a quadratic that lies above the loss;
    - A, B, b ← argmin 1/n Σ λᵢ Fᵢ(X, AX + BU + b) + ‖· − before‖² / (2 lr), which is convex, by accelerated projected
      gradients: the rows of A stay in the ℓ1 ball of the model's ``InfNorm``, so that it is well-posed at all times;
    - λᵢ ← λᵢ + growth · penalty, where the mean of Fᵢ is above rtol, in units of the mean of Φ*(X) over the states.

    No block raises the energy. There is no adjoint equation and no derivative of the activation: where X minimizes E,
    ∂E/∂Θ is the implicit gradient but for O(1/λ). A point where the gradient is 0 stays where it is.

    Attributes:
        penalty: The λ of all units at first, positive, in units of the loss.
        growth: What is added to λᵢ, in units of ``penalty``, 0 or more.
        rtol: Up to which divergence the λ of a unit stays as it is.
        state_steps: Steps in X.
        weight_steps: Steps in the weights.
        keep_states: Whether the states go on from where the last step left them: for full batches, which are the same
            ones in every step. Else they begin at the equilibrium.

    Raises:
        ValueError: If an option is out of range.
    """

    penalty: float = 1.0
    growth: float = 0.1
    rtol: float = 0.01
    state_steps: int = 5
    weight_steps: int = 5
    keep_states: bool = False

    lr: ClassVar[float] = 3.0

    def __post_init__(self) -> None:
        for name in ("penalty", "growth", "rtol"):
            if not getattr(self, name) >= 0 or (name == "penalty" and self.penalty == 0):
                wanted = "positive" if name == "penalty" else "at least 0"
                raise ValueError(f"Lifted({name}={getattr(self, name)!r}): {name} must be {wanted}")
        for name in ("state_steps", "weight_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"Lifted({name}={getattr(self, name)!r}): {name} must be at least 1")

    def trainer(self, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float = 0.0) -> Trainer:
        """Of an ``ImplicitModel``, or an ``nn.Sequential`` of linear layers, activations and such models.

        Raises:
            Unsupported: If the model is of another kind, with what it can train.
        """
        return _LiftedTrainer(self, model, loss, lr=lr, weight_decay=weight_decay)


class _LiftedTrainer(Trainer):
    def __init__(self, rule: Lifted, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float) -> None:
        super().__init__(model, lr)
        self.rule, self.loss, self.weight_decay = rule, loss, weight_decay
        self.energy = LiftedEnergy(model, loss)
        self.multipliers = [
            cell.theta().new_full((len(cell.parameters[0]) // cell.penalty.size,), rule.penalty)
            for cell in self.energy.cells
        ]
        self.pre: Tensor | None = None

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        inputs = inputs.flatten(1)
        pre, outputs = self.energy.start(inputs)
        with torch.no_grad():
            loss = self.loss(outputs, targets)
        if bool(loss.isfinite()):
            pre = pre if self.pre is None else self._kept(pre)
            if self.energy.cells:
                pre = self.energy.descend(pre, inputs, targets, self.multipliers, self.rule.state_steps)
            self.pre = pre if self.rule.keep_states else None
            self._learn(self.energy.states(pre, inputs), targets)
        return loss, outputs

    def _kept(self, pre: Tensor) -> Tensor:
        assert self.pre is not None
        if self.pre.shape != pre.shape:
            raise ValueError(
                f"keep_states=True is for one batch again and again, and after {len(self.pre)} samples came {len(pre)}"
            )
        return self.pre

    @torch.no_grad()
    def _learn(self, states: Sequence[Tensor], targets: Tensor) -> None:
        """Step with the weights, then with the multipliers."""
        cells, head = self.energy.cells, self.energy.head
        new = [
            fit_cell(cell, x, cell.columns(states), m, self.lr, self.rule.weight_steps)
            for cell, x, m in zip(cells, states[1:], self.multipliers, strict=True)
        ]
        new.append(fit_head(self.loss, head.columns(states), targets, head.theta(), self.lr, self.rule.weight_steps))
        for cell, theta in zip((*cells, head), new, strict=True):
            cell.assign(cell.project(theta - self.lr * self.weight_decay * cell.theta()))
        scale = sum(cell.penalty.conjugate(x).abs().mean() for cell, x in zip(cells, states[1:], strict=True))
        for i, F in enumerate(self.energy.divergences(states)):
            self.multipliers[i] += (
                self.rule.growth * self.rule.penalty * (F.mean(0) > self.rule.rtol * scale / len(cells))
            )

    def state_dict(self) -> dict[str, Tensor]:
        kept = {} if self.pre is None else {"states": self.pre}
        return {**{f"multipliers.{i}": m for i, m in enumerate(self.multipliers)}, **kept}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        own = [f"multipliers.{i}" for i in range(len(self.multipliers))]
        if sorted(set(state) - {"states"}) != sorted(own):
            raise ValueError(f"a trainer of {self.rule!r} for this model has {', '.join(own)}, not {', '.join(state)}")
        for m, name in zip(self.multipliers, own, strict=True):
            m.copy_(state[name])
        self.pre = state.get("states")


def fit_cell(cell: Cell, x: Tensor, columns: Tensor, multipliers: Tensor, lr: float, steps: int) -> Tensor:
    """The Θ in the constraint with the least mean of Σ λ F(x, SΘᵀ) + ‖Θ − Θₖ‖² / (2 lr), by projected gradients."""
    before = cell.project(cell.theta())
    gram = columns @ columns.T if len(columns) < columns.shape[1] else columns.T @ columns
    largest = torch.linalg.eigvalsh(gram)[-1] / len(columns)  # times λ: of the Hessian, since φ′ ≤ 1
    step = 1 / (cell.penalty.spread(multipliers)[:, None] * largest + 1 / lr)

    def move(theta: Tensor) -> Tensor:
        slope = cell.gradient(theta, x, columns, multipliers) + (theta - before) / lr
        return cell.project(theta - step * slope)

    return accelerate(move, before, steps)


def fit_head(loss: Loss, columns: Tensor, targets: Tensor, before: Tensor, lr: float, steps: int) -> Tensor:
    """The Θ with the least L(SΘᵀ, Y) + ‖Θ − Θₖ‖² / (2 lr), Θₖ being the one before, for a convex loss.

    Each step goes to the minimum of a quadratic that touches the energy and has everywhere the largest curvature of the
    loss, which is raised where the energy turns out to lie above. One step is exact for a loss that has one curvature,
    such as the squared error: a ridge regression.
    """
    n, theta = len(columns), before
    bend = curvature(loss, columns @ theta.T, targets)

    def energy(theta: Tensor) -> Tensor:
        return loss(columns @ theta.T, targets) + (theta - before).square().sum() / (2 * lr)

    for _ in range(steps):
        with torch.enable_grad():
            outputs = (columns @ theta.T).requires_grad_()
            d = torch.autograd.grad(loss(outputs, targets), outputs)[0]
        slope, value = d.T @ columns + (theta - before) / lr, energy(theta)
        for _ in range(HALVINGS):
            change = -_solve(slope, columns / n**0.5, bend, lr)
            if (
                energy(theta + change)
                <= value + (slope * change).sum() / 2 + torch.finfo(value.dtype).eps * value.abs()
            ):
                break
            bend = 2 * bend or 1 / lr
        else:
            return theta
        theta = theta + change
    return theta


def _solve(slope: Tensor, columns: Tensor, bend: float, lr: float) -> Tensor:
    """G (ℓSᵀS + I/lr)⁻¹, by the smaller of two systems."""
    n, size = columns.shape
    tau = bend * lr
    gram = columns @ columns.T if n < size else columns.T @ columns
    factor = torch.linalg.cholesky(tau * gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    if n < size:
        return lr * (slope - tau * torch.cholesky_solve(columns @ slope.T, factor).T @ columns)
    return lr * torch.cholesky_solve(slope.T, factor).T
