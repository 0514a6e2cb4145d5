"""What a map z = φ(Wz + c) tells of itself to be solved by operator splitting, and what follows for its Jacobian."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Factored", "Operator", "Separable", "SplitJacobian", "Splittable", "Splitting"]


class Operator(Protocol):
    """A linear map W on matrices ``(rows, size)``, the same in each row, with I − W strongly monotone in some norm."""

    def __call__(self, u: Tensor) -> Tensor:
        """Wu."""
        ...

    def resolvent(self, v: Tensor, step: float) -> Tensor:
        """(I + step · (I − W))⁻¹ v, from one factorization for each step."""
        ...

    @property
    def T(self) -> Operator:
        """Wᵀ."""
        ...

    @property
    def forward_step(self) -> float:
        """A step with which v -> v − step · (I − W) v is a contraction."""
        ...

    @property
    def reflected_step(self) -> float:
        """A step with which the Peaceman-Rachford iteration converges, and fast."""
        ...


class Proximal(Protocol):
    """An activation as the proximal operator of a convex function h: φ = prox_h."""

    def prox(self, v: Tensor, step: float) -> Tensor:
        """The u that minimizes ½‖u − v‖² + step · h(u)."""
        ...


@dataclass(frozen=True)
class Splitting:
    """u = φ(Wu + c) taken apart, on matrices of rows; here u is the state z itself.

    Attributes:
        operator: W.
        activation: φ, as a proximal operator.
        injection: c.
    """

    operator: Operator
    activation: Proximal
    injection: Tensor

    def forward(self, u: Tensor) -> Tensor:
        """Wu + c."""
        return self.operator(u) + self.injection

    def enter(self, z: Tensor) -> Tensor:
        """The u that belongs to a state z of the map."""
        return z

    def leave(self, u: Tensor) -> Tensor:
        """The state z of the map that belongs to u."""
        return u


@runtime_checkable
class Factored(Protocol):
    """A linear map that may be such a Jacobian."""

    def factors(self) -> SplitJacobian | None:
        """Its factors, or None if it has none."""
        ...


@runtime_checkable
class Splittable(Protocol):
    """A map of this kind; what it tells are plain tensors, without derivatives."""

    def splitting(self) -> Splitting | None:
        """The parts; None if it can't be taken apart after all."""
        ...


@dataclass(frozen=True)
class Slopes:
    """The activation v -> Dv, D diagonal in [0, 1]: the proximal operator of ½ Σ (1/Dᵢ − 1) uᵢ²."""

    slopes: Tensor

    def prox(self, v: Tensor, step: float) -> Tensor:
        """The step of theorem 3 of Winston and Kolter; 0 where Dᵢ is."""
        return self.slopes / (self.slopes + step * (1 - self.slopes)) * v


@dataclass(frozen=True)
class SplitJacobian:
    """J = DW, the Jacobian of z -> φ(Wz + c), or its transpose WᵀD.

    Attributes:
        operator: W.
        slopes: The diagonal of D for each row, (rows, size), in [0, 1].
        transposed: Whether it is WᵀD.
    """

    operator: Operator
    slopes: Tensor
    transposed: bool = False

    @property
    def T(self) -> SplitJacobian:
        """The transpose."""
        return replace(self, transposed=not self.transposed)

    def splitting(self, g: Tensor) -> Splitting:
        """Of w = Jw + g, which is again an equation of the kind u = D(Wu + c)."""
        if self.transposed:
            return _Adjoint(self.operator.T, Slopes(self.slopes), g)
        return _Tangent(self.operator, Slopes(self.slopes), self.operator(g), g)


@runtime_checkable
class Separable(Protocol):
    """A map f(z, *inputs) = φ(Wz + c), c depending on the inputs, that tells its parts to solvers which split it."""

    def splitting(self, *inputs: Any) -> Splitting:
        """The parts, for plain inputs, without derivatives."""
        ...

    def jacobian(self, z: Tensor, *inputs: Any) -> SplitJacobian:
        """The factors of ∂f/∂z at the states in the rows of z, likewise."""
        ...


class _Adjoint(Splitting):
    """w = WᵀDw + g, by u = Dw: u = D(Wᵀu + g)."""

    def enter(self, z: Tensor) -> Tensor:
        return self.activation.prox(z, 1.0)

    def leave(self, u: Tensor) -> Tensor:
        return self.forward(u)


@dataclass(frozen=True)
class _Tangent(Splitting):
    """w = DWw + g, by u = w − g: u = D(Wu + Wg)."""

    offset: Tensor

    def enter(self, z: Tensor) -> Tensor:
        return z - self.offset

    def leave(self, u: Tensor) -> Tensor:
        return u + self.offset
