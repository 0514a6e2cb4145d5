"""Semi-implicit backpropagation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .descent import minimize
from .method import Loss, Method, Trainer
from .proximal import Metric
from .stages import Layer, Trace, chain, pull, run

__all__ = ["SemiImplicit"]


@dataclass(frozen=True, kw_only=True)
class SemiImplicit(Method):
    """Semi-implicit backpropagation (Liu and Zhang 2020, arXiv 2002.03516).

    From the last layer to the first, with F the activations, d the error of each sample and n samples:

    - F ← F − lr · d, an explicit step of the neurons;
    - Θ ← argmin 1/(2n) ‖φ(Θ) − F‖² + 1/(2 tau) ‖Θ − Θₖ‖², a proximal step of the parameters, through the activation;
    - d ← Wᵀ(σ′ ⊙ d) with the new weights: the neurons' error is propagated semi-implicitly.

    The step is solved exactly where a layer has no activation, else by nonlinear conjugate gradients (Fletcher and
    Reeves) with Armijo's rule. The authors take the weights first, then the biases; here they are one Θ. Their λ = 1 is
    tau = n here, which makes tau independent of the size of the batch.

    For an equilibrium z = f(z, x) the error is the solution of the adjoint equation, u = Jᵀu + d, f(·, x) is held
    at the z that was found while its parameters step towards z − lr · u, and what goes on to x is (∂f/∂x)ᵀu with the
    old weights: with new ones it would belong to another equilibrium. In each of these steps a point where the
    gradient is 0 stays where it is.

    Attributes:
        tau: Step size of the proximal step, positive; small ones make it a gradient step of size lr · tau.
        inner_steps: Conjugate gradient steps.

    Raises:
        ValueError: If an option is out of range.
    """

    tau: float = 100.0
    inner_steps: int = 5

    lr: ClassVar[float] = 0.1

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise ValueError(f"SemiImplicit(tau={self.tau!r}): tau must be positive, e.g. 100")
        if self.inner_steps < 1:
            raise ValueError(f"SemiImplicit(inner_steps={self.inner_steps!r}): inner_steps must be at least 1")

    def trainer(self, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float = 0.0) -> Trainer:
        """Of an ``nn.Sequential`` of linear layers, activations and equilibria, or of an ``ImplicitModel``.

        Raises:
            Unsupported: If the model is of another kind.
        """
        return _SemiImplicitTrainer(self, model, loss, lr=lr, weight_decay=weight_decay)


class _SemiImplicitTrainer(Trainer):
    def __init__(self, rule: SemiImplicit, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float) -> None:
        super().__init__(model, lr)
        self.rule, self.loss, self.weight_decay, self.stages = rule, loss, weight_decay, chain(model)

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
        """Step with the parameters of a stage; the cotangent of its input."""
        stage, x = trace.stage, trace.x
        below, _ = trace.pull(d)
        y_star = d * stage.slope(stage.affine(x)) if isinstance(stage, Layer) else d  # with the old weights
        before = [p.detach().clone() for p in stage.parameters]
        change = self.lr * stage.pulled(d)
        columns = stage.columns(x.detach()) if isinstance(stage, Layer) and stage.activation is None else None
        if columns is not None:
            gradient = change.T @ columns / len(columns)
            _add(stage.parameters, -self.rule.tau * Metric(self.rule.tau, rows=columns).solve(gradient))
        else:
            minimize(self._energy(trace, trace.y.detach() - change, before), stage.parameters, self.rule.inner_steps)
        with torch.no_grad():
            for p, q in zip(stage.parameters, before, strict=True):
                p.sub_(q, alpha=self.lr * self.weight_decay)
        return pull(stage.affine(x), x, [], y_star)[0] if isinstance(stage, Layer) else below

    def _energy(self, trace: Trace, target: Tensor, before: Sequence[Tensor]) -> Callable[[], Tensor]:
        """1/(2n) ‖φ(Θ) − F‖² + 1/(2 tau) ‖Θ − Θₖ‖² as a function of the parameters as they are."""
        stage, x, y = trace.stage, trace.x.detach(), trace.y.detach()

        def energy() -> Tensor:
            far = torch.stack([(p - q).square().sum() for p, q in zip(stage.parameters, before, strict=True)]).sum()
            return (stage.local(x, y) - target).square().sum() / (2 * len(x)) + far / (2 * self.rule.tau)

        return energy


@torch.no_grad()
def _add(parameters: Sequence[Tensor], change: Tensor) -> None:
    """Add the columns of ``change`` to the parameters: matrices, and at the end perhaps a bias."""
    widths = [p.shape[1] if p.dim() > 1 else 1 for p in parameters]
    for p, part in zip(parameters, change.split(widths, 1), strict=True):
        p.add_(part.reshape(p.shape))
