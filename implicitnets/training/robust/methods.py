"""Training for the worst input near each sample: the largest loss there, bounded or found."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...analysis import PGD, attack
from ...models import NotAffine, affine
from ...solution import ConvergenceWarning
from ..method import GradientTrainer, Loss, Method, Unsupported
from .bounds import RELAXATIONS, Relaxation, certified_loss, contracted

__all__ = ["Adversarial", "Certified", "Robust"]

Norm = Literal["inf", 1, 2]


@dataclass(frozen=True, kw_only=True)
class Robust(Method):
    """What the methods share: a mixture of the loss and of the worst loss within a radius, by AdamW.

    The loss has weight 1 at first and ``natural`` after ``ramp`` steps, the worst one the rest, and the radius grows
    from 0, all in a line (Gowal et al. 2018, arXiv 1810.12715).

    Attributes:
        radius: Of the region around each sample, at the end.
        norm: "inf", 2 or 1.
        domain: The least and the largest value that an entry of an input can have, such as (0.0, 1.0) for pixels, or
            None.
        natural: The weight of the loss itself at the end, in [0, 1].
        ramp: In so many steps; 0 begins at the end.

    Raises:
        ValueError: If an attribute is out of range.
    """

    radius: float = 0.1
    norm: Norm = "inf"
    domain: tuple[float, float] | None = None
    natural: float = 0.5
    ramp: int = 1000

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not 0 <= self.radius < float("inf"):
            raise ValueError(f"{name}(radius={self.radius!r}): radius must be at least 0 and finite, e.g. 0.1")
        if self.norm not in ("inf", 1, 2):
            raise ValueError(f'{name}(norm={self.norm!r}): the norms are "inf", 2 and 1')
        if not 0 <= self.natural <= 1:
            raise ValueError(f"{name}(natural={self.natural!r}): natural is a weight from 0 to 1, e.g. 0.5")
        if self.ramp < 0:
            raise ValueError(f"{name}(ramp={self.ramp!r}): ramp must be at least 0 steps")

    @abstractmethod
    def worst(self, model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, radius: float) -> Tensor:
        """The worst loss within a radius of the inputs, differentiable."""

    def trainer(self, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float = 0.0) -> GradientTrainer:  # noqa: D102
        return _RobustTrainer(self, model, loss, lr=lr, weight_decay=weight_decay)


class _RobustTrainer(GradientTrainer):
    def __init__(self, rule: Robust, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float) -> None:
        super().__init__(model, loss, lr=lr, weight_decay=weight_decay)
        self.rule, self.steps = rule, 0

    def losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rule = self.rule
        share = min(1.0, self.steps / rule.ramp) if rule.ramp else 1.0
        outputs, loss, _ = super().losses(inputs, targets)
        weight = (1 - rule.natural) * share
        if weight == 0:
            return outputs, loss, loss
        worst = rule.worst(self.model, self.loss, inputs, targets, share * rule.radius)
        return outputs, loss, (1 - weight) * loss + weight * worst

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        before = super().step(inputs, targets)
        self.steps += 1
        return before

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.steps = int(state["steps"])
        super().load_state_dict({name: tensor for name, tensor in state.items() if name != "steps"})


@dataclass(frozen=True, kw_only=True)
class Certified(Robust):
    """The loss and its ``certified_loss``: trained so that robustness can be proved, by bounds of the equilibrium.

    Attributes:
        bounds: "interval" (Wei and Kolter 2022), or "linear", which is tighter, for ReLUs, and takes about three times
            as long.

    Raises:
        ValueError: If an attribute is out of range.
    """

    bounds: Relaxation = "interval"

    lr: ClassVar[float] = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bounds not in RELAXATIONS:
            raise ValueError(f"Certified(bounds={self.bounds!r}): bounds is 'interval' or 'linear'")

    def trainer(self, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float = 0.0) -> GradientTrainer:
        """Of models with an affine form whose interval bounds have an equilibrium.

        Raises:
            Unsupported: If that can be told without inputs, and it is not so.
        """
        try:
            contracted(affine(model))
        except NotAffine as error:
            raise Unsupported(str(error)) from error
        except ValueError:  # the shape of an input is needed: the first step has it
            pass
        return super().trainer(model, loss, lr=lr, weight_decay=weight_decay)

    def worst(self, model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, radius: float) -> Tensor:  # noqa: D102
        return certified_loss(
            model, inputs, targets, radius, norm=self.norm, domain=self.domain, bounds=self.bounds, loss=loss
        )


@dataclass(frozen=True, kw_only=True)
class Adversarial(Robust):
    """The loss and that of adversarial inputs, found by ``PGD`` with exact implicit gradients (Madry et al. 2018).

    The search for a sample ends once it is misclassified. It needs no affine form, and proves nothing.

    Attributes:
        steps: Gradient steps to each adversarial input.

    Raises:
        ValueError: If an attribute is out of range.
    """

    steps: int = 5

    lr: ClassVar[float] = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"Adversarial(steps={self.steps!r}): steps must be at least 1")

    def worst(self, model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, radius: float) -> Tensor:  # noqa: D102
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # such inputs are not taken
            found = attack(
                model,
                inputs,
                targets,
                radius=radius,
                norm=self.norm,
                domain=self.domain,
                method=PGD(steps=self.steps, restarts=1, loss="ce"),
                dtype=inputs.dtype,
            )
        return loss(model(found.inputs), targets)
