"""Structures of the matrix A of an implicit model, as values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import values
from ..activations import Activation
from ..constraints import Constraint
from .matrices import BlockDiagonalMatrix, LowRankMatrix, Matrix, SparseMatrix, TriangularMatrix

__all__ = ["BlockDiagonal", "Full", "LowRank", "Sparse", "Structure", "Triangular", "parse"]


@dataclass(frozen=True, kw_only=True)
class Structure(ABC):
    """Which entries of A are free, and how x = φ(Ax + v) is solved. A value."""

    scopes: ClassVar[tuple[str, ...]] = ("rows",)
    """The scopes of constraints that can be kept."""

    @abstractmethod
    def build(self, states: int, phi: Activation, constraint: Constraint | None) -> Matrix | None:
        """The matrix of a model with so many states, not yet drawn; None if it is a plain parameter.

        Raises:
            ValueError: If the structure does not fit the states or the activation.
        """

    @property
    def direct(self) -> bool:
        """Whether the equilibrium is found in one pass, without a solver, and whatever the weights."""
        return False


@dataclass(frozen=True, kw_only=True)
class Full(Structure):
    """Every entry is free."""

    scopes: ClassVar[tuple[str, ...]] = ("rows", "blocks", "whole")

    def build(self, states: int, phi: Activation, constraint: Constraint | None) -> None:  # noqa: D102
        return None


@dataclass(frozen=True, kw_only=True)
class LowRank(Structure):
    """A = diag(d) + LRᵀ with L and R of ``rank`` columns: (2 rank + 1) parameters a state.

    Attributes:
        rank: Columns of L and R.

    Raises:
        ValueError: If the rank is not positive.
    """

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LowRank(rank={self.rank!r}): rank must be at least 1")

    def build(self, states: int, phi: Activation, constraint: Constraint | None) -> Matrix:  # noqa: D102
        if phi.rows(states) != states:
            raise ValueError(f"LowRank needs as many rows as states, and {phi!r} has {phi.rows(states)} for {states}")
        return LowRankMatrix(states, self.rank, constraint)


@dataclass(frozen=True, kw_only=True)
class _Sized(Structure):
    """A structure with consecutive blocks of states.

    Attributes:
        sizes: States in each block.

    Raises:
        ValueError: If there is none, or one is not positive.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"{type(self).__name__}(sizes={self.sizes!r}): sizes must be at least 1, one or more")

    def shapes(self, states: int, phi: Activation) -> list[tuple[int, int]]:
        """Rows and states of each block.

        Raises:
            ValueError: If the sizes do not add up to the states, or a block ends inside a group of the activation.
        """
        if sum(self.sizes) != states:
            raise ValueError(
                f"{type(self).__name__}(sizes={self.sizes!r}): they add up to {sum(self.sizes)} states, "
                f"and the model has {states}"
            )
        parts = phi.split(self.sizes)
        return [(part.rows(size), size) for part, size in zip(parts, self.sizes, strict=True)]


@dataclass(frozen=True, kw_only=True)
class BlockDiagonal(_Sized):
    """Blocks of states that do not see each other.

    Attributes:
        sizes: States in each block.
    """

    scopes: ClassVar[tuple[str, ...]] = ("rows", "blocks")

    def build(self, states: int, phi: Activation, constraint: Constraint | None) -> Matrix:  # noqa: D102
        return BlockDiagonalMatrix(self.shapes(states, phi), constraint)


@dataclass(frozen=True, kw_only=True)
class Sparse(Structure):
    """A fixed pattern of nonzeros, drawn at random when the model is made and kept as a buffer.

    Attributes:
        nonzeros: How many there are.

    Raises:
        ValueError: If it is negative.
    """

    nonzeros: int

    def __post_init__(self) -> None:
        if self.nonzeros < 0:
            raise ValueError(f"Sparse(nonzeros={self.nonzeros!r}): nonzeros can't be negative")

    def build(self, states: int, phi: Activation, constraint: Constraint | None) -> Matrix:  # noqa: D102
        return SparseMatrix((phi.rows(states), states), self.nonzeros, constraint)


@dataclass(frozen=True, kw_only=True)
class Triangular(_Sized):
    """Strictly upper block-triangular, a feed-forward network whose *last* layer is the first block.

    Well-posed whatever the weights. Without a solver the equilibrium is found by back-substitution, in one pass
    through the blocks that plain autograd differentiates.

    Attributes:
        sizes: States in each block, the last layer first.
        nonzeros: How many nonzeros there are in a fixed random pattern, or None for full blocks.

    Raises:
        ValueError: If a size is not positive, or nonzeros negative.
    """

    nonzeros: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nonzeros is not None and self.nonzeros < 0:
            raise ValueError(f"Triangular(nonzeros={self.nonzeros!r}): nonzeros can't be negative")

    @property
    def direct(self) -> bool:  # noqa: D102
        return True

    def build(self, states: int, phi: Activation, constraint: Constraint | None) -> Matrix:  # noqa: D102
        shapes = self.shapes(states, phi)
        if self.nonzeros is None:
            return TriangularMatrix(shapes, constraint)
        return SparseMatrix((phi.rows(states), states), self.nonzeros, constraint, shapes)


def parse(text: str) -> Structure:
    """Read a structure from its ``repr``: ``"LowRank(rank=5)"``.

    Raises:
        ValueError: If the text can't be read or names no structure.
        TypeError: If an option does not exist.
    """
    classes: dict[str, type[Any]] = {c.__name__: c for c in (Full, LowRank, BlockDiagonal, Sparse, Triangular)}
    structure: Structure = values.parse(text, classes, what="structure")
    return structure
