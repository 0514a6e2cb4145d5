"""The map φ(Wz + c) that tells its parts to solvers by splitting."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ..pytree import leaves, rebuild
from ..solvers import Operator, SplitJacobian, Splitting
from .proximal import proximal

__all__ = ["LinearPart", "SplitMap", "rows"]


class LinearPart(Protocol):
    """W as a differentiable map of states, and as solvers see it."""

    def __call__(self, z: Any, c: Any) -> Any:
        """Wz + c."""
        ...

    def operator(self, like: Any) -> Operator:
        """W on matrices with states ``like`` this in their rows, without derivatives."""
        ...


class SplitMap:
    """The map (z, c) -> φ(Wz + c), which solvers by splitting can take apart.

    Examples:
        >>> from implicitnets.fixed_point import fixed_point
        >>> from implicitnets.models.operators import dense
        >>> from implicitnets.solvers import PeacemanRachford
        >>> W = torch.tensor([[-1.0, 3.0], [-3.0, 0.5]])  # no contraction, but I − W ≥ I/2
        >>> f = SplitMap(dense(W, margin=0.5), "relu")
        >>> c = torch.tensor([[1.0, 2.0]])
        >>> z = fixed_point(f, torch.zeros(1, 2), c, solver=PeacemanRachford()).value
        >>> torch.allclose(z, torch.relu(z @ W.T + c), atol=1e-3)
        True

    Args:
        linear: W, such as ``dense(W, margin=m)``.
        activation: φ, by name.

    Raises:
        ValueError: If there is no such activation.
    """

    def __init__(self, linear: LinearPart, activation: str) -> None:
        self.linear, self.activation = linear, proximal(activation)
        self._operator: Operator | None = None

    def __call__(self, z: Any, c: Any) -> Any:
        """φ(Wz + c), of the structure and shapes of z."""
        return rebuild(self.activation, self.linear(z, c))

    def operator(self, like: Any) -> Operator:
        """W for solvers; its factorizations are kept as long as this map is."""
        if self._operator is None:
            self._operator = self.linear.operator(like)
        return self._operator

    def splitting(self, c: Any) -> Splitting:
        """The parts."""
        return Splitting(self.operator(c), self.activation, rows(c))

    def jacobian(self, z: Tensor, c: Any) -> SplitJacobian:
        """The factors D and W of the Jacobian at the rows of z."""
        with torch.no_grad():
            at = self.operator(c)(z) + rows(c)
        return SplitJacobian(self.operator(c), self.activation.slopes(at))


def rows(state: Any) -> Tensor:
    """A state as solvers see it, detached: one row a sample, at least float32."""
    flat = [t.detach().flatten(1) for t in leaves(state)]
    whole = flat[0] if len(flat) == 1 else torch.cat(flat, 1)
    return whole.to(torch.promote_types(whole.dtype, torch.float32))
