"""Adam and AdamW with a penalty."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ...prox import Prox, Step
from .base import Group, Proximal

__all__ = ["ProxAdam", "ProxAdamW"]


class _Adaptive(Proximal):
    """D = √v̂ + eps, with the average v̂ of squared gradients."""

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        penalty: Prox | None,
        **options: Any,
    ) -> None:
        plain: Any = super().__init__  # of Adam or AdamW
        plain(params, lr, betas, eps, weight_decay, **options)
        self._default(penalty)

    def _steps(self, p: Tensor, group: Group) -> Step:
        state = self.state[p]
        squares = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        correction = 1 - group["betas"][1] ** float(state["step"])
        metric = (squares.sqrt() / correction**0.5).add_(group["eps"])
        steps: Tensor = float(group["lr"]) / metric
        return steps


class ProxAdam(_Adaptive, torch.optim.Adam):
    """Adam with a penalty: θ ← prox(θ − lr m̂/D, lr/D), D = √v̂ + eps (ProxGen; Yun, Lozano and Yang 2021).

    Each coordinate has its own step, and so its own threshold. At rest 0 ∈ m̂ + ∂R(θ), as it must be for L + R. With
    the scalar step lr in the map it would be 0 ∈ m̂ + D ∂R(θ): coordinates with small gradients would hardly be
    penalized.

    Args:
        params: As for every optimizer; a group's own ``"penalty"`` takes the place of ``penalty``. ``penalize`` makes
            groups by name.
        lr: The learning rate.
        penalty: R, of each tensor by itself, or None.
        betas: Of the averages of gradients and of their squares.
        eps: Added to √v̂. The ratio of the largest and smallest step is at most 1 + max √v̂ / eps: it bounds the work
            of ``prox.Nuclear``, which alone has neither a closed form nor a one-dimensional equation.
        weight_decay: Times θ is added to the gradient, as in ``torch.optim.Adam``.
        amsgrad: Whether D never falls.
        maximize: Whether the loss is maximized, with −R.
        foreach: Whether the tensors of a group are taken together, which is faster and takes more memory; None leaves
            it to PyTorch for its step, and does so for the maps of single coordinates.

    Raises:
        TypeError: If a penalty is not a ``Prox``, or a parameter is complex; at a step, if a gradient is sparse.
        ValueError: If a penalty is not for a parameter of this shape, or an option has a bad value.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        penalty: Prox | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        options = {"amsgrad": amsgrad, "maximize": maximize, "foreach": foreach}
        super().__init__(params, lr, betas, eps, weight_decay, penalty, **options)


class ProxAdamW(_Adaptive, torch.optim.AdamW):
    """``ProxAdam`` with decoupled weight decay: θ shrinks by 1 − lr · weight_decay before the step.

    Args:
        params: As for ``ProxAdam``, as are all others but one.
        lr: The learning rate.
        penalty: R, of each tensor by itself, or None.
        betas: Of the averages of gradients and of their squares.
        eps: Added to √v̂.
        weight_decay: As in ``torch.optim.AdamW``, by default 0.01 as there.
        amsgrad: Whether D never falls.
        maximize: Whether the loss is maximized, with −R.
        foreach: Whether the tensors of a group are taken together, which is faster and takes more memory; None leaves
            it to PyTorch for its step, and does so for the maps of single coordinates.

    Raises:
        TypeError: If a penalty is not a ``Prox``, or a parameter is complex; at a step, if a gradient is sparse.
        ValueError: If a penalty is not for a parameter of this shape, or an option has a bad value.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        penalty: Prox | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        options = {"amsgrad": amsgrad, "maximize": maximize, "foreach": foreach}
        super().__init__(params, lr, betas, eps, weight_decay, penalty, **options)
