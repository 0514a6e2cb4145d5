"""What an activation is to an implicit model: a map of groups of rows to groups of states, and its Lipschitz facts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

__all__ = ["Activation", "require_norm"]


class Activation(ABC):
    """φ: pre-activations ``(..., rows)`` -> states ``(..., states)``, block by block. A value.

    The rows come in groups, each of which is mapped on its own to a group of states: one row to one state where φ is
    component-wise, k rows to one where it is a maximum over k.
    """

    @property
    @abstractmethod
    def homogeneous(self) -> bool:
        """Whether φ(tz) = tφ(z) for every t > 0."""

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        """φ(z)."""

    @abstractmethod
    def groups(self, rows: int) -> list[tuple[int, int, int]]:
        """The groups in order: ``(count, rows, states)`` stands for ``count`` groups of so many rows and states.

        Raises:
            ValueError: If φ can't act on so many rows.
        """

    @abstractmethod
    def lipschitz(self, p: float) -> float:
        """γ with ‖φ(z) − φ(z′)‖ₚ ≤ γ‖z − z′‖ₚ for all z, z′, where p is 1, 2 or ``math.inf``; inf if there is none."""

    @abstractmethod
    def slopes(self) -> tuple[float, float] | None:
        """The least and the largest slope where φ is component-wise and they are known; else None."""

    @abstractmethod
    def rows(self, states: int) -> int:
        """How many rows it takes for so many states.

        Raises:
            ValueError: If φ can't have so many states.
        """

    @abstractmethod
    def split(self, states: Sequence[int]) -> list[Activation]:
        """φ on consecutive parts with so many states each.

        Raises:
            ValueError: If a part would end inside a group, or there are other states.
        """

    @property
    def componentwise(self) -> bool:
        """Whether each state is a function of one row."""
        return False

    def states(self, rows: int) -> int:
        """How many states so many rows make.

        Raises:
            ValueError: If φ can't act on so many rows.
        """
        return sum(count * after for count, _, after in self.groups(rows))


def require_norm(p: float) -> None:
    """Refuse a norm whose constants are not known.

    Raises:
        ValueError: If p is not 1, 2 or infinity.
    """
    if p not in (1, 2, float("inf")):
        raise ValueError(f"p={p!r}: the norms are p=1, p=2 and p=math.inf")
