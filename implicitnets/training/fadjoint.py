"""Learning by the equilibrium F-adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..backward import Implicit
from ..solvers import Picard
from .method import Loss, Method, Trainer, Unsupported
from .stages import Dense, Layer, State, Trace, chain, pull, run

__all__ = ["FAdjoint", "FAdjointVariables", "FPropagation"]


@dataclass(frozen=True)
class FAdjointVariables:
    """X*ˡ and Y*ˡ of a network, l = 0 ... L and l = 1 ... L; a row for each sample.

    Attributes:
        X: Those of the activations, shapes (batch, width).
        Y: Those of the pre-activations.
    """

    X: tuple[Tensor, ...]
    Y: tuple[Tensor, ...]

    def gradients(self, propagation: FPropagation) -> list[Tensor]:
        """∂J/∂Wˡ = Y*ˡᵀ Xˡ⁻¹, summed over the batch, for the layers in order."""
        return [y.T @ x for y, x in zip(self.Y, propagation.X, strict=False)]


@dataclass(frozen=True)
class FPropagation:
    """The F-propagation of a network, Yˡ = Wˡ Xˡ⁻¹ + bˡ and Xˡ = σ(Yˡ) (Boughammoura 2023, arXiv 2304.13820).

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> F = FPropagation.of(net, torch.randn(5, 4))
        >>> len(F.X), len(F.Y), F.X[-1].shape
        (3, 2, torch.Size([5, 2]))

    Attributes:
        layers: The layers.
        X: Activations X⁰ (the input) to Xᴸ (the output), shapes (batch, width).
        Y: Pre-activations Y¹ to Yᴸ.
    """

    layers: tuple[Dense, ...]
    X: tuple[Tensor, ...]
    Y: tuple[Tensor, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, network: nn.Module, inputs: Tensor) -> FPropagation:
        """Propagate inputs of shape (batch, ...) through an ``nn.Sequential`` of linear layers and activations.

        Raises:
            Unsupported: If the network is of another kind.
        """
        layers = [stage for stage in chain(network) if isinstance(stage, Dense)]
        if len(layers) < len(chain(network)):
            raise Unsupported("F-propagation is of feed-forward networks; an equilibrium has its adjoint equation")
        X, Y = [inputs.flatten(1)], []
        for layer in layers:
            Y.append(layer.affine(X[-1]))
            X.append(Y[-1] if layer.activation is None else layer.activation(Y[-1]))
        return cls(tuple(layers), tuple(X), tuple(Y))

    def adjoint(self, seed: Tensor) -> FAdjointVariables:
        """The F-adjoint from X*ᴸ = seed: Y*ˡ = X*ˡ ⊙ σ′(Yˡ) and X*ˡ⁻¹ = Wˡᵀ Y*ˡ. This is backpropagation."""
        return self.relaxed(seed, tau=1.0, steps=1)

    def relaxed(self, seed: Tensor, *, tau: float, steps: int) -> FAdjointVariables:
        """What is reached by relaxing X*ˡ ← X*ˡ + τ (Wˡ⁺¹ᵀ Y*ˡ⁺¹ − X*ˡ) from X*ˡ = Xˡ, layer by layer from the top.

        At the top it relaxes to the seed. After k steps (1 − τ)ᵏ of the distance to the F-adjoint is left.
        """
        goal, X, Y = seed, [], []
        for layer, x, y in zip(reversed(self.layers), reversed(self.X), reversed(self.Y), strict=False):
            X.append(relax(x, goal, tau, steps))
            Y.append(X[-1] * layer.slope(y))
            goal = Y[-1] @ layer.linear.weight
        X.append(goal)
        return FAdjointVariables(tuple(reversed(X)), tuple(reversed(Y)))


def relax(start: Tensor, goal: Tensor, tau: float, steps: int) -> Tensor:
    """Where forward Euler of dX/dt = goal − X arrives in ``steps`` steps of length ``tau``."""
    return goal + (1 - tau) ** steps * (start - goal)


@dataclass(frozen=True, kw_only=True)
class FAdjoint(Method):
    """Learning by the equilibrium F-adjoint (Boughammoura 2024, arXiv 2407.11049).

    From the top down, X* of each layer is relaxed (``FPropagation.relaxed``); then Wˡ ← Wˡ − lr · Y*ˡ Xˡ⁻¹ᵀ at once,
    with the mean over the batch. With ``local``, the layers below see the new Wˡ, else the old one, which is gradient
    descent once the relaxation has converged. For an equilibrium, the F-adjoint equation X* = g + Wᵀ(σ′(Y) ⊙ X*) is
    the adjoint equation of implicit differentiation, and the relaxation is the damped Picard iteration on it, ended
    where a relative residual of 1e-2 is reached. Its weights are those of one equation: they change after that.

    Attributes:
        tau: Length of an Euler step, in (0, 1]; the papers' is 0.1, which takes five times as many.
        steps: Euler steps; for an equilibrium the most that are taken.
        local: Whether the layers below a layer see its new weights.
        published: Compute what the published local script does: there, σ′ of the output layer is taken a second
            time, at the pre-activations that were overwritten by Y*ᴸ; with a sigmoid that multiplies Y*ᴸ by about 1/4.

    Raises:
        ValueError: If an option is out of range.
    """

    tau: float = 0.5
    steps: int = 100
    local: bool = True
    published: bool = False

    lr: ClassVar[float] = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise ValueError(f"FAdjoint(tau={self.tau!r}): tau must be in (0, 1], e.g. 0.5")
        if self.steps < 1:
            raise ValueError(f"FAdjoint(steps={self.steps!r}): steps must be at least 1")

    def trainer(self, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float = 0.0) -> Trainer:
        """Of an ``nn.Sequential`` of linear layers, activations and equilibria, or of an ``ImplicitModel``.

        Raises:
            Unsupported: If the model is of another kind, or ``published`` is asked for where the output is not that of
                a layer with an activation.
        """
        stages = chain(model)
        if self.published and not (isinstance(stages[-1], Dense) and stages[-1].activation is not None):
            raise Unsupported("published=True is about an output layer with an activation, and this model has none")
        return _FAdjointTrainer(self, model, loss, lr=lr, weight_decay=weight_decay)


class _FAdjointTrainer(Trainer):
    def __init__(self, rule: FAdjoint, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float) -> None:
        super().__init__(model, lr)
        self.rule, self.loss, self.weight_decay = rule, loss, weight_decay
        self.stages = chain(model)
        for stage in self.stages:
            if isinstance(stage, State):
                backward = stage.model.backward
                assert isinstance(backward, Implicit)
                relaxation = Picard(damping=1 - rule.tau, max_steps=rule.steps, rtol=1e-2)
                stage.model.backward = replace(backward, solver=relaxation)

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        traces = run(self.stages, inputs)
        outputs = traces[-1].y.detach().requires_grad_()
        loss = self.loss(outputs, targets)
        if bool(loss.isfinite()):
            d = torch.autograd.grad(loss, outputs)[0] * len(inputs)  # of each sample's own loss
            for trace in reversed(traces):
                d = self._learn(trace, d)
        return loss.detach(), outputs.detach()

    def _learn(self, trace: Trace, d: Tensor) -> Tensor:
        """Change the weights of a stage; the cotangent of its input."""
        stage, rule = trace.stage, self.rule
        if not isinstance(stage, Layer):
            goal, changes = trace.pull(d)
            self._descend(stage.parameters, changes, len(d))
            return goal
        y = stage.affine(trace.x)
        y_star = relax(trace.y.detach(), d, rule.tau, rule.steps) * stage.slope(y)
        if rule.published and stage is self.stages[-1]:
            y_star = y_star * stage.slope(y_star)
        goal, changes = pull(y, trace.x, stage.parameters, y_star)
        self._descend(stage.parameters, changes, len(d))
        return pull(stage.affine(trace.x), trace.x, [], y_star)[0] if rule.local else goal

    @torch.no_grad()
    def _descend(self, parameters: Sequence[Tensor], changes: Sequence[Tensor], samples: int) -> None:
        for p, change in zip(parameters, changes, strict=True):
            p.mul_(1 - self.lr * self.weight_decay).sub_(change, alpha=self.lr / samples)
