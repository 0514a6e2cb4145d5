"""ProxProp as a value, and as a transform of gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ..method import GradientTrainer, Loss, Method, Unsupported
from .handle import ProxPropHandle
from .sweep import Sweep, sweep

__all__ = ["ProxProp", "proxprop"]


@dataclass(frozen=True, kw_only=True)
class ProxProp(Method):
    """Proximal backpropagation: gradients in the metric of each layer's inputs (Frerix et al., ICLR 2018).

    A layer h = Θs with inputs S (n rows s = (inputs, 1), one for each sample, or each of its positions) moves to

        Θ⁺ = argmin ½ ‖SΘ⁺ᵀ − (H − t Δ)‖² + (n / 2τ) ‖Θ⁺ − Θ‖²,   H = SΘᵀ,  Δ = ∂L/∂H,  t = n · lr / τ,

    which is Θ⁺ = Θ − lr V with V = G (I + τ SᵀS/n)⁻¹ and the gradient G = ΔᵀS (their equation 11 and proposition 2).
    V is a direction of descent for every τ (proposition 4), and zero where G is (proposition 3). τ → 0 is gradient
    descent, τ → ∞ takes the inputs' second moments out. τ does not depend on the size of the batch: theirs is τ/n.

    In an implicit model S holds the inputs of the layer at the equilibrium, one row for each sample, and Δ is the
    cotangent that the model's ``backward`` finds: exact for ``Implicit()``, of one sweep for ``Unroll(steps=1)``.
    Of an ``ImplicitModel``, Θ = [A B b] has s = (x, u, 1). Linear and convolution layers and the parameters of
    ``ImplicitModel``, ``MonotoneDEQ`` and their like get proximal steps; all others keep their gradients.

    Parametrized weights Θ(θ) get v with (I + τ J* (· SᵀS/n) J) v = J* G, where J is the Jacobian of θ -> Θ, by
    conjugate gradients: a direction of descent after any number of steps.

    Examples:
        >>> import torch
        >>> from implicitnets.models import ImplicitModel
        >>> model = ImplicitModel(inputs=64, states=32, outputs=10)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> handle = ProxProp(tau=10).attach(model)
        >>> model(torch.rand(20, 64)).square().mean().backward()  # .grad holds V
        >>> optimizer.step()
        >>> handle.remove()

    Attributes:
        tau: τ, not negative.
        method: "dual" (a Cholesky factor of size n), "primal" (of size q, the width of s), "auto" (the cheaper of
            these two), or "cg" (``cg_steps`` of conjugate gradients from 0, each row on its own). "auto" and "cg" take
            parametrized weights.
        cg_steps: Steps of conjugate gradients.
        ema: Share of the past in a running average of SᵀS/n over the batches; 0 for that of the batch alone.
        head: Whether the last layer gets a proximal step too ("prox") or, as in the paper, its gradient ("explicit").
            It is the last linear or convolution layer of the model that is not a part of an equilibrium, and has none
            after it; of an ``ImplicitModel``, it is (C, D, c).
        optimizer: What a ``trainer`` takes its steps with: "adamw", or "sgd" with Nesterov's momentum of 0.9.

    Raises:
        ValueError: If an option is out of range, or method is "dual" with a running average.
    """

    tau: float = 10.0
    method: Literal["auto", "dual", "primal", "cg"] = "auto"
    cg_steps: int = 3
    ema: float = 0.0
    head: Literal["explicit", "prox"] = "explicit"
    optimizer: Literal["adamw", "sgd"] = "adamw"

    def __post_init__(self) -> None:
        if not 0 <= self.tau < math.inf:
            raise ValueError(f"ProxProp(tau={self.tau!r}): tau can't be negative or infinite; 10 is a good start")
        if self.method not in ("auto", "dual", "primal", "cg"):
            raise ValueError(f"ProxProp(method={self.method!r}): method must be 'auto', 'dual', 'primal' or 'cg'")
        if self.cg_steps < 1:
            raise ValueError(f"ProxProp(cg_steps={self.cg_steps!r}): cg_steps must be at least 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ProxProp(ema={self.ema!r}): ema must be in [0, 1), for instance 0.95")
        if self.ema and self.method == "dual":
            raise ValueError("ProxProp(method='dual', ema=...): an average has no rows: write method='auto'")
        if self.head not in ("explicit", "prox"):
            raise ValueError(f"ProxProp(head={self.head!r}): head must be 'explicit' or 'prox'")
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"ProxProp(optimizer={self.optimizer!r}): optimizer must be 'adamw' or 'sgd'")

    def attach(self, model: nn.Module) -> ProxPropHandle:
        """From now on ``loss.backward()`` leaves V in ``.grad``, until the handle's ``remove()``.

        It composes with any optimizer, clipping, schedule and accumulation of gradients, since V is linear in G and is
        added to what ``.grad`` holds. Layers whose weights are used without calling them keep their gradients, with a
        warning.

        Raises:
            TypeError: If model is not a module, or wrapped for several processes.
            ValueError: If nothing in it gets a proximal step, two layers share a parameter, or ``method`` is "dual" or
                "primal" and a weight is parametrized.
        """
        return self._handle(model).attach()

    def _handle(self, model: nn.Module) -> ProxPropHandle:
        options = {"tau": self.tau, "method": self.method, "cg_steps": self.cg_steps, "ema": self.ema}
        return ProxPropHandle(model, head=self.head == "prox", **options)  # type: ignore[arg-type]

    def sweep(self, model: nn.Sequential, loss: Loss, inputs: Tensor, targets: Tensor, *, lr: float) -> Sweep:
        """One step of the paper's own algorithm 1, with its auxiliary variables, on a feed-forward network.

        With layers zₗ = Θₗ(aₗ₋₁), aₗ = σₗ(zₗ) up to the last, out = Θ(a), the penalty energy is

            E = L(Θ(a)) + Σ (γ/2) ‖σₗ(zₗ) − aₗ‖² + (ρ/2) ‖Θₗ(aₗ₋₁) − zₗ‖²,   γ = ρ = 1/t.

        Backward, activations and pre-activations take explicit gradient steps on E (equations 8-10), each Θₗ is the
        minimizer of its proximal problem (11), and the last Θ takes a gradient step of size lr. The parameters are
        those that ``attach`` and plain gradient descent give, here on the way by which the paper derives them. With
        ``tau=0`` the steps of the Θₗ are explicit as well, and it is gradient descent (proposition 1).

        Args:
            model: Linear and convolution layers, and any modules without parameters between them.
            loss: The loss, a mean over the batch.
            inputs: A batch.
            targets: What the loss takes beside the outputs.
            lr: The learning rate.

        Returns:
            The loss before the step, and the auxiliary variables.

        Raises:
            Unsupported: If the model is not such a sequence.
        """
        return sweep(self.tau, self.head == "prox", model, loss, inputs, targets, lr)

    def trainer(self, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float = 0.0) -> GradientTrainer:
        """An optimizer on the proximal directions; the model has hooks within a step only.

        Raises:
            Unsupported: If the model can't be attached to.
        """
        try:
            handle = self._handle(model)
        except ValueError as error:
            raise Unsupported(str(error)) from error
        return _Trainer(model, loss, lr=lr, weight_decay=weight_decay, optimizer=self.optimizer, handle=handle)


class _Trainer(GradientTrainer):
    """An optimizer on the directions of a handle."""

    def __init__(self, model: nn.Module, loss: Loss, *, handle: ProxPropHandle, **options: Any) -> None:
        super().__init__(model, loss, **options)
        self.handle = handle

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with self.handle:
            return super().step(inputs, targets)

    def state_dict(self) -> dict[str, Tensor]:
        averages = {f"average.{name}": tensor for name, tensor in self.handle.state_dict().items()}
        return {**super().state_dict(), **averages}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        averages = {k.removeprefix("average."): v for k, v in state.items() if k.startswith("average.")}
        self.handle.load_state_dict(averages)
        super().load_state_dict({k: v for k, v in state.items() if not k.startswith("average.")})


def proxprop(
    model: nn.Module,
    *,
    tau: float = 10.0,
    method: Literal["auto", "dual", "primal", "cg"] = "auto",
    cg_steps: int = 3,
    ema: float = 0.0,
    head: Literal["explicit", "prox"] = "explicit",
) -> ProxPropHandle:
    """``ProxProp(...).attach(model)``: from now on ``backward()`` leaves proximal directions in ``.grad``.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> x = torch.randn(5, 8)
        >>> with proxprop(net, tau=10) as handle:
        ...     net(x).square().mean().backward()
        >>> handle.weights, handle.solves
        (['0.weight', '0.bias'], 1)

    Args:
        model: The model.
        tau: τ, not negative; see ``ProxProp`` for this and what follows.
        method: The form in which systems are solved.
        cg_steps: Steps of conjugate gradients.
        ema: Share of the past in a running average over the batches.
        head: What the last layer gets.

    Returns:
        The handle, which removes the hooks by ``remove()`` or as a context manager.

    Raises:
        TypeError: If the model is not a module, or wrapped for several processes.
        ValueError: As ``ProxProp`` and ``ProxProp.attach``.
    """
    return ProxProp(tau=tau, method=method, cg_steps=cg_steps, ema=ema, head=head).attach(model)
