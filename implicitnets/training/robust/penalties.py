"""Training for outputs that depend little on inputs or weights: Lipschitz penalties, sharpness-aware minimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...analysis.gains import Gains, gains, slopes, to_states
from ...models import AffineForm, NotAffine, affine
from ..method import GradientTrainer, Loss, Method, Unsupported
from .bounds import is_stable

__all__ = ["SAM", "Lipschitz", "lipschitz_bound"]

Norm = Literal["inf", 1, 2]
ORDERS = {"inf": float("inf"), 1: 1.0, 2: 2.0}


def lipschitz_bound(model: nn.Module, norm: Norm = 2, input_shape: tuple[int, ...] | None = None) -> Tensor:
    """A bound of ‖y(u) − y(v)‖ / ‖u − v‖ over all inputs, a scalar that is differentiable in the parameters.

    It is the norm of |C|(I − G)⁻¹κ|B| + |D| where the gains G, γ|A| with γ the Lipschitz constants of φ, have a
    spectral radius below 1 (El Ghaoui et al. 2021, section 4). For slopes from 0 to γ the diagonal is taken out: row i
    of G and κᵢ = γ are divided by 1 − γaᵢᵢ (Jafarpour et al. 2021). In the Euclidean norm, for slopes in [0, 1] and
    Λ(I − A) ≥ mΛ in symmetric parts, m > 0, it is ‖CΛ^(−1/2)‖‖Λ^(1/2)B‖/m + ‖D‖ (Pabbaraju, Winston and Kolter 2021).
    Where both hold it is the smaller one.

    Examples:
        >>> from implicitnets.models import MonotoneDEQ
        >>> model = nn.Sequential(MonotoneDEQ(8, 20, m=20.0), nn.Linear(20, 3))
        >>> bound = lipschitz_bound(model)
        >>> bound.backward()

    Args:
        model: A module with an affine form, see ``models.affine``.
        norm: "inf", 2 or 1, of inputs and outputs both.
        input_shape: Of one input, where the model does not say it.

    Raises:
        NotAffine: If the model has no affine form, or neither holds.
        ValueError: If the norm is none of those, or input_shape is needed.
    """
    if norm not in ORDERS:
        raise ValueError(f'norm={norm!r}: the norms are "inf", 2 and 1')
    form = affine(model, input_shape)
    bounds = [_monotone(form)] if norm == 2 else []
    gain = gains(form)
    if gain is not None and is_stable(gain):
        bounds.append(torch.linalg.matrix_norm(_sensitivity(form, gain), ORDERS[norm]))
    bounds = [bound for bound in bounds if bool(bound.isfinite())]
    if not bounds:
        raise NotAffine(
            f"no Lipschitz constant is known of this model in the norm {norm!r}: of an ImplicitModel with InfNorm, an "
            "IntervalMonotoneDEQ and a NonEuclideanDEQ there is one, with norm=2 of a MonotoneDEQ too"
        )
    smallest: Tensor = torch.stack(bounds).min()
    return smallest


def _sensitivity(form: AffineForm, gain: Gains) -> Tensor:
    moved = to_states(form, (gain.rows[:, None] * form.B.abs()).T).T
    states = torch.linalg.solve(torch.eye(form.states).to(moved) - gain.states, moved)
    outputs: Tensor = form.C.abs() @ states + form.D.abs()
    return outputs


def _monotone(form: AffineForm) -> Tensor:
    """Infinite where A is not monotone, or the slopes are not in [0, 1]."""
    rising = slopes(form)
    if rising is None or bool(((rising[0] < 0) | (rising[1] > 1)).any()):
        return form.A.new_tensor(float("inf"))
    root = form.A.new_ones(form.states) if form.weights is None else form.weights.sqrt()
    scaled = root[:, None] * form.A / root
    margin = 1 - torch.linalg.eigvalsh((scaled + scaled.T) / 2)[-1]
    C, B, D = (torch.linalg.matrix_norm(part, 2) for part in (form.C / root, root[:, None] * form.B, form.D))
    bound: Tensor = C * B / margin + D
    return bound if bool(margin > 0) else form.A.new_tensor(float("inf"))


@dataclass(frozen=True, kw_only=True)
class Lipschitz(Method):
    """The loss plus ``weight`` times ``lipschitz_bound``, by AdamW (Jafarpour et al. 2021, section 5).

    Attributes:
        weight: Of the bound, positive.
        norm: "inf", 2 or 1.

    Raises:
        ValueError: If an attribute is out of range.
    """

    weight: float = 1e-3
    norm: Norm = "inf"

    lr: ClassVar[float] = 1e-2

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"Lipschitz(weight={self.weight!r}): weight must be positive, e.g. 1e-3")
        if self.norm not in ORDERS:
            raise ValueError(f'Lipschitz(norm={self.norm!r}): the norms are "inf", 2 and 1')

    def trainer(self, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float = 0.0) -> GradientTrainer:
        """Of models that have such a bound.

        Raises:
            Unsupported: If that can be told without inputs, and it is not so.
        """
        try:
            lipschitz_bound(model, self.norm)
        except NotAffine as error:
            raise Unsupported(str(error)) from error
        except ValueError:  # the shape of an input is needed: the first step has it
            pass
        return _LipschitzTrainer(self, model, loss, lr=lr, weight_decay=weight_decay)


class _LipschitzTrainer(GradientTrainer):
    def __init__(self, rule: Lipschitz, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float) -> None:
        super().__init__(model, loss, lr=lr, weight_decay=weight_decay)
        self.rule = rule

    def losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs, loss, _ = super().losses(inputs, targets)
        bound = lipschitz_bound(self.model, self.rule.norm, tuple(inputs.shape[1:]))
        return outputs, loss, loss + self.rule.weight * bound


@dataclass(frozen=True, kw_only=True)
class SAM(Method):
    """Sharpness-aware minimization (Foret, Kleiner, Mobahi and Neyshabur 2021), by AdamW: flat minima.

    The gradient is taken not at the parameters θ but at θ + radius · g/‖g‖, g the gradient at θ: to first order where
    the loss is largest within the radius.

    Attributes:
        radius: Of the ball of parameters, positive.

    Raises:
        ValueError: If radius is not positive.
    """

    radius: float = 0.05

    lr: ClassVar[float] = 1e-2

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"SAM(radius={self.radius!r}): radius must be positive, e.g. 0.05")

    def trainer(self, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float = 0.0) -> GradientTrainer:
        """Of any model."""
        return _SharpnessTrainer(self, model, loss, lr=lr, weight_decay=weight_decay)


class _SharpnessTrainer(GradientTrainer):
    def __init__(self, rule: SAM, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float) -> None:
        super().__init__(model, loss, lr=lr, weight_decay=weight_decay, change=self._climb)
        self.rule = rule

    def losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.batch = inputs, targets
        return super().losses(inputs, targets)

    def _climb(self) -> None:
        """Replace the gradient by that where the loss is larger."""
        moved = [p for p in self.model.parameters() if p.grad is not None]
        gradient = [p.grad for p in moved]
        size = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradient]))
        scale = self.rule.radius / size.clamp_min(torch.finfo(size.dtype).tiny)
        with torch.no_grad():
            start = [p.clone() for p in moved]
            for p, g in zip(moved, gradient, strict=True):
                p.add_(scale * g)
        self.optimizer.zero_grad()
        super().losses(*self.batch)[2].backward()
        with torch.no_grad():
            for p, q in zip(moved, start, strict=True):
                p.copy_(q)
