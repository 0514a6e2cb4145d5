"""Picard iteration, damped or not."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Iterative, require
from .loop import Iterate
from .packed import PackedMap

__all__ = ["Picard"]


@dataclass(frozen=True, kw_only=True)
class Picard(Iterative[None]):
    """z ← damping · z + (1 − damping) · f(z).

    Converges where f is a contraction; damped, also on many maps that are not. On the adjoint equation this is
    the Neumann series (damping 0) and the relaxation dynamics of the equilibrium F-adjoint.

    Attributes:
        damping: Share of the old iterate, in [0, 1). 0 is the plain iteration.

    Raises:
        ValueError: If damping is outside [0, 1).
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.damping < 1, self, "damping", self.damping, "in [0, 1)")

    def step(self, f: PackedMap, now: Iterate, state: None) -> Tensor:  # noqa: D102
        return now.fz if self.damping == 0 else now.z.lerp(now.fz, 1 - self.damping)
