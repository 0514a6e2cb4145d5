"""Proximal stochastic gradient descent."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ...prox import Prox, Step
from .base import Group, Proximal

__all__ = ["ProxSGD"]


class ProxSGD(Proximal, torch.optim.SGD):
    """Proximal stochastic gradient descent: θ ← prox(θ − lr m, lr/D), with m as in ``torch.optim.SGD``.

    D is the number (1 − momentum)/(1 − dampening), so that every penalty has a closed form here. It is not 1, since
    with momentum m is a sum: where the gradient g rests, m = g/D. The gradient of a penalized loss does not vanish at a
    minimum, and 0 ∈ g + ∂R(θ) holds there only with the step lr/D. This is the algorithm of Yun, Lozano and Yang
    (2021), where m is an average, with learning rate lr/D.

    Examples:
        >>> from implicitnets import prox
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, -0.1]))
        >>> optimizer = ProxSGD([weight], lr=0.1, penalty=prox.L1(2.0))
        >>> (weight.square().sum() / 2).backward()
        >>> optimizer.step()
        >>> weight.tolist() == [2.5, 0.0]
        True

    Args:
        params: As for every optimizer; a group's own ``"penalty"`` takes the place of ``penalty``. ``penalize`` makes
            groups by name.
        lr: The learning rate.
        penalty: R, of each tensor by itself, or None.
        momentum: Of the sum of gradients, below 1.
        dampening: As in ``torch.optim.SGD``.
        weight_decay: Times θ is added to the gradient.
        nesterov: Whether m looks ahead.
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
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum!r} must be at least 0 and below 1: the weight of the past")
        if not 0 <= dampening < 1:
            raise ValueError(f"dampening={dampening!r} must be at least 0 and below 1: what is taken off a gradient")
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize, foreach=foreach)
        self._default(penalty)

    def _steps(self, p: Tensor, group: Group) -> Step:
        momentum = group["momentum"]
        return float(group["lr"]) * (1 - group["dampening"]) / (1 - momentum) if momentum else float(group["lr"])
