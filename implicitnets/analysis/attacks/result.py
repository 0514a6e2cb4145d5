"""The record of an attack."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .methods import AttackMethod

__all__ = ["AttackResult"]


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackResult:
    """What an attack found, sample by sample; all tensors have a first axis of the batch.

    Attributes:
        inputs: Of the inputs tried, the ones of the least margins, shaped and of the dtype like those given. They are
            in the region.
        labels: The classes that are called right.
        before: Margins of the inputs given: the logit of the label less the largest other one.
        after: Margins of ``inputs``.
        success: Whether ``inputs`` are misclassified: their margins are negative, and their equilibria were found.
        unknown: Where nothing was found, but an equilibrium was not either: of the input given, or of one that looked
            adversarial.
        evaluations: How many inputs were tried.
        unconverged: For how many of these an equilibrium or its gradient was not found.
        methods: What was tried, in this order.
    """

    inputs: Tensor
    labels: Tensor
    before: Tensor
    after: Tensor
    success: Tensor
    unknown: Tensor
    evaluations: Tensor
    unconverged: Tensor
    methods: tuple[AttackMethod, ...]

    @property
    def accuracy(self) -> float:
        """The share of samples that are classified right after the attack, the unknown ones among them.

        No verifier can prove more of them robust.
        """
        return 1 - float(self.success.double().mean())

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        wrong, fooled, unknown = (int(m.sum()) for m in (self.before < 0, self.success, self.unknown))
        counts = f"{len(self)} samples: {wrong} wrong before, {fooled} after, {unknown} unknown"
        return f"AttackResult({counts}; {int(self.evaluations.sum())} inputs tried by {_names(self.methods)})"


def _names(methods: tuple[AttackMethod, ...]) -> str:
    return ", ".join(map(repr, methods)) or "nothing"
