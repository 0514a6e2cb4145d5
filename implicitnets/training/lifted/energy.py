"""The energy of lifted training: states are variables, and a penalty pulls them to what the layers make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..fenchel_young import FenchelYoung
from ..method import Loss, Unsupported
from .cells import CAN, lift

__all__ = ["LiftedEnergy", "accelerate", "curvature"]

POWER_STEPS, MARGIN, TRIALS = 10, 1.25, 20


class LiftedEnergy:
    """E(X, Θ) = L(outputs, targets) + 1/n Σ λ F(X, H), H being the pre-activations that the states X give.

    For an implicit model H = AX + BU + b and the outputs are CX + DU + c (El Ghaoui et al. 2021, on training); for a
    feed-forward network H of a layer is affine in the states of the layer before it (Gu, Askari and El Ghaoui 2020; Li,
    Fang and Lin 2019). F is the Fenchel-Young loss of the activation. Where X = φ(H), E is the loss of the model. In Θ
    it is convex if the loss is; in X it is the sum of the convex Φ* and a smooth function, which need not be convex.

    Attributes:
        cells: What has states, from the first to the last.
        head: The affine map from states to outputs.

    Args:
        model: An ``ImplicitModel``, or an ``nn.Sequential`` of linear layers, activations and such models.
        loss: L, the mean over the batch.

    Raises:
        Unsupported: If the model is another one.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        found = lift(model)
        if not found or found[-1].penalty != FenchelYoung("identity"):
            raise Unsupported(f"{CAN}, and this one ends otherwise")
        self.cells, self.head, self.loss = found[:-1], found[-1], loss
        self.sizes = [len(cell.parameters[0]) for cell in self.cells]

    @torch.no_grad()
    def start(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The pre-activations of all states at the equilibrium, side by side, and the outputs."""
        states, pre = [inputs], []
        for cell in self.cells:
            if cell.model is not None:  # of the columns of an equilibrium, its own states are a part
                states.append(cell.model.state(states[-1]))
            pre.append(cell.columns(states) @ cell.theta().T)
            if cell.model is None:
                states.append(cell.penalty.apply(pre[-1]))
        return torch.cat([*pre, inputs[:, :0]], 1), self.head.columns(states) @ self.head.theta().T

    def states(self, pre: Tensor, inputs: Tensor) -> list[Tensor]:
        """The inputs, and the states φ(P) of each cell."""
        parts = pre.split(self.sizes, 1) if self.sizes else ()
        return [inputs, *(cell.penalty.apply(p) for cell, p in zip(self.cells, parts, strict=True))]

    def divergences(self, states: Sequence[Tensor]) -> list[Tensor]:
        """F of each cell, (batch, units)."""
        return [
            cell.penalty(x, cell.columns(states) @ cell.theta().T)
            for cell, x in zip(self.cells, states[1:], strict=True)
        ]

    @torch.no_grad()
    def value(self, states: Sequence[Tensor], targets: Tensor, multipliers: Sequence[Tensor]) -> Tensor:
        """E, a scalar, for one λ per unit of each cell."""
        loss = self.loss(self.head.columns(states) @ self.head.theta().T, targets)
        parts = [(F @ m).mean() for F, m in zip(self.divergences(states), multipliers, strict=True)]
        return loss + sum(parts)

    def descend(
        self, pre: Tensor, inputs: Tensor, targets: Tensor, multipliers: Sequence[Tensor], steps: int
    ) -> Tensor:
        """Lower the energy in the states X = φ(P), by accelerated mirror descent with the kernel λΦ*.

        P ← P − (P + ∇g(X)/λ)/M, with g the energy without Φ*: a step that stays in the domain and needs neither φ⁻¹
        nor φ′. By Theorem 1 of Bauschke, Bolte and Teboulle (2017) it does not raise the energy if
        M λ Φ* − E is convex; as Φ* is 1-strongly convex and φ′ ≤ 1, it is enough that M is the largest eigenvalue of
        Λ⁻¹((I − A)ᵀΛ(I − A) + ℓCᵀC), with ℓ the largest curvature of the loss. For M = 1 and no loss, it is h ← Ax + b
        where x is an equilibrium.

        Args:
            pre: P, of shape (batch, states of all cells).
            inputs: U.
            targets: Y.
            multipliers: λ of each cell, one per unit, positive.
            steps: How many.

        Returns:
            A P of no higher energy.
        """
        thetas = [cell.theta() for cell in (*self.cells, self.head)]
        states = self.states(pre, inputs)
        weight = torch.cat([cell.penalty.spread(m) for cell, m in zip(self.cells, multipliers, strict=True)])
        before = self.value(states, targets, multipliers)
        outputs = self.head.columns(states) @ thetas[-1].T
        smooth = self._smoothness(thetas, weight, inputs[:1], curvature(self.loss, outputs, targets))

        def move(p: Tensor) -> Tensor:
            return p - (p + self._slope(p, inputs, targets, multipliers, thetas) / weight) / smooth

        slack = torch.finfo(pre.dtype).eps * self._size(states, multipliers)
        for _ in range(TRIALS):
            lower = accelerate(move, pre, steps)
            if self.value(self.states(lower, inputs), targets, multipliers) <= before + slack:
                return lower
            smooth *= 2  # the curvature of the loss is not the same everywhere
        return pre

    def _slope(
        self, pre: Tensor, inputs: Tensor, targets: Tensor, multipliers: Sequence[Tensor], thetas: Sequence[Tensor]
    ) -> Tensor:
        """The gradient of n g in the states φ(P)."""
        states = [t.detach().requires_grad_() for t in self.states(pre, inputs)[1:]]
        known = [inputs, *states]
        total = self.loss(self.head.columns(known) @ thetas[-1].T, targets) * len(inputs)
        for cell, x, m, theta in zip(self.cells, states, multipliers, thetas, strict=False):
            h = cell.columns(known) @ theta.T
            total = total + (cell.penalty.potential(h) @ m).sum() - ((x * h) @ cell.penalty.spread(m)).sum()
        return torch.cat(torch.autograd.grad(total, states), 1)

    @torch.no_grad()
    def _size(self, states: Sequence[Tensor], multipliers: Sequence[Tensor]) -> Tensor:
        """Of the numbers that the energy is a difference of."""
        parts = zip(self.cells, states[1:], multipliers, strict=True)
        return sum(((cell.penalty.conjugate(x).abs() @ m).mean() for cell, x, m in parts), states[0].new_zeros(()))

    def _smoothness(self, thetas: Sequence[Tensor], weight: Tensor, inputs: Tensor, bend: float) -> float:
        """M, by the power method, with a margin."""
        zero, size = torch.zeros_like(inputs), 1.0
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(1, len(weight), generator=generator).to(weight)
        for _ in range(POWER_STEPS):
            v = (v / torch.linalg.vector_norm(v)).requires_grad_()
            states = [zero, *v.split(self.sizes, 1)]
            linear = [cell.columns(states, 0.0) @ t.T for cell, t in zip((*self.cells, self.head), thetas, strict=True)]
            gap = v - torch.cat(linear[:-1], 1)
            half = ((gap.square() @ weight).sum() + bend * linear[-1].square().sum()) / 2
            v = torch.autograd.grad(half, v)[0] / weight
            size = float(torch.linalg.vector_norm(v))
        return MARGIN * size


def accelerate(move: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> Tensor:
    """Nesterov's momentum on a step of descent whose rows are problems of their own.

    A row starts anew where the step points against the momentum (O'Donoghue and Candès 2015, section 3.2).
    """
    previous, age = x, x.new_zeros(len(x), 1)
    for _ in range(steps):
        y = x + age / (age + 3) * (x - previous)
        previous, x = x, move(y)
        against = ((y - x) * (x - previous)).sum(1, keepdim=True) > 0
        age = torch.where(against, 0, age + 1)
    return x


@torch.enable_grad()
def curvature(loss: Loss, outputs: Tensor, targets: Tensor) -> float:
    """The largest eigenvalue of the Hessian of n L in a sample's outputs, over all samples, by the power method."""
    leaf = outputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf, targets), leaf, create_graph=True)
    if not slope.requires_grad:
        return 0.0
    v = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
    size = outputs.new_zeros(len(outputs), 1)
    for _ in range(POWER_STEPS // 2):
        v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
        v = torch.autograd.grad(slope, leaf, v, retain_graph=True)[0] * len(outputs)
        size = torch.linalg.vector_norm(v, dim=1)
    return float(size.max())
