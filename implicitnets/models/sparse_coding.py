"""Sparse coding: the Lasso, and its kin, as a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backward import Backward, Implicit
from ..constraints import Constraint
from ..linalg import invert_definite
from ..solvers import Picard, Solver
from .deq import Equilibrium
from .starts import Start

__all__ = ["SparseCoding", "UnitColumns"]

RHO = 0.3
"""The step of the splitting. The code does not depend on it, the number of steps little from 0.1 to 1."""


@dataclass(frozen=True, kw_only=True)
class UnitColumns(Constraint):
    """Columns of Euclidean norm 1: each is divided by its norm. A zero column stays, and learns as it is."""

    def __call__(self, weight: Tensor) -> Tensor:
        """The constrained matrix."""
        norm = torch.linalg.vector_norm(weight, dim=0)
        return weight / torch.where(norm > 0, norm, 1.0)


class SparseCoding(Equilibrium):
    """The code z of x in a dictionary D: argmin_z ½‖Dz − x‖² + Σᵢ λᵢ|zᵢ| + ½ ridge ‖z‖², the Lasso or elastic net.

    The cell is soft-thresholding, S(v, t) = relu(v − t) − relu(−v − t), and what is equal at the equilibrium is what
    z = S(v, λ/ρ) and (DᵀD + (ridge + ρ) I)⁻¹ (Dᵀx + ρ (2z − v)) have to say: Douglas and Rachford's splitting, or ADMM
    (Boyd et al. 2011, section 6.4), on the state v. Its z solves z = S(z − τ (Dᵀ(Dz − x) + ridge z), τλ) as well, the
    equation of ISTA and of LISTA (Gregor and LeCun 2010), whose iterations get stuck: see the guide.
    The network is as deep as each sample needs.

    A solution exists for every D, and Picard's iteration converges to one. With ridge > 0 it is a contraction, and
    there is but one code, whatever D is. With ridge = 0 the code is unique, and has a derivative, where the columns of
    D_E have full rank, E = {i: |dᵢᵀ(x − Dz)| = λᵢ} (Tibshirani 2013, lemma 2; Bolte et al. 2021): so it is for almost
    every D. At a kink, where an atom is just entering the code, the derivative is the element of the Clarke Jacobian
    that ``Implicit(selection=...)`` says: ``Left()`` leaves the atom out and ``Right()`` takes it in.

    Examples:
        >>> layer = SparseCoding(inputs=64, atoms=128, penalty=0.2)
        >>> x = torch.randn(5, 64)
        >>> z = layer(x)
        >>> z.shape, bool((z == 0).float().mean() > 0.3)
        (torch.Size([5, 128]), True)
        >>> layer.decode(z).shape
        torch.Size([5, 64])

    Attributes:
        D: The dictionary, (inputs, atoms), its columns of norm 1.
        log_penalty: log λ, of shape (), or (atoms,) with ``per_atom``. To keep λ fixed: ``requires_grad_(False)``.

    Args:
        inputs: Entries of a signal x.
        atoms: Columns of the dictionary.
        penalty: λ at the start.
        ridge: Weight of the quadratic penalty.
        per_atom: Whether every atom has a λ of its own.
        nonnegative: Whether codes are ≥ 0: then S(v, t) = relu(v − t).
        solver: How the code is found. Anderson's method takes fewer steps, but may run away where ridge is 0.
        backward: How it is differentiated.
        start: Where the solver starts; None is zeros.

    Raises:
        ValueError: If a size or penalty is not positive, or ridge is negative.
        TypeError: If solver, backward or start is not a value of its kind.
    """

    D: Tensor

    def __init__(
        self,
        inputs: int,
        atoms: int,
        *,
        penalty: float = 0.1,
        ridge: float = 0.0,
        per_atom: bool = False,
        nonnegative: bool = False,
        solver: Solver = Picard(max_steps=2000),
        backward: Backward = Implicit(),
        start: Start | None = None,
    ) -> None:
        super().__init__(solver, backward, start=start)
        for name, size in (("inputs", inputs), ("atoms", atoms)):
            if size < 1:
                raise ValueError(f"SparseCoding({name}={size}): {name} must be at least 1")
        if not penalty > 0:
            raise ValueError(f"SparseCoding(penalty={penalty}): penalty must be positive, e.g. 0.1")
        if not ridge >= 0:
            raise ValueError(f"SparseCoding(ridge={ridge}): ridge must be at least 0")
        self.inputs, self.atoms, self.penalty, self.ridge = inputs, atoms, penalty, ridge
        self.per_atom, self.nonnegative = per_atom, nonnegative
        self.D = nn.Parameter(torch.randn(inputs, atoms))
        self.log_penalty = nn.Parameter(torch.full((atoms,) if per_atom else (), penalty).log())
        UnitColumns().apply(self, "D")

    def forward(self, x: Tensor, z0: Tensor | None = None) -> Tensor:
        """The codes, of shape (batch, atoms), of signals x of shape (batch, inputs).

        Args:
            x: The signals.
            z0: Where to start: an earlier ``forward_solution.value``, which is v, not the code. Else it is zeros.

        Raises:
            ValueError: If x has another shape.

        Warns:
            ConvergenceWarning: If a sample did not converge.
        """
        if x.dim() != 2 or x.shape[1] != self.inputs:
            raise ValueError(f"x has shape {tuple(x.shape)}, not (batch, {self.inputs}): flatten it with x.flatten(1)")
        dictionary = self.D
        eye = torch.eye(self.atoms, dtype=x.dtype, device=x.device)
        inverse, _ = invert_definite(dictionary.T @ dictionary + (self.ridge + RHO) * eye)
        matrix, threshold = RHO * inverse, self.log_penalty.exp() / RHO

        def f(v: Tensor, projected: Tensor) -> Tensor:
            z = self._shrink(v, threshold)
            return torch.addmm(v - z + projected, 2 * z - v, matrix)

        v = self.equilibrium(f, z0, x @ dictionary @ inverse)
        with self._selected():
            return self._shrink(v, threshold)

    def _shrink(self, v: Tensor, threshold: Tensor) -> Tensor:
        positive = torch.relu(v - threshold)
        return positive if self.nonnegative else positive - torch.relu(-v - threshold)

    def decode(self, z: Tensor) -> Tensor:
        """The signals Dz, of shape (batch, inputs), that codes of shape (batch, atoms) stand for."""
        return z @ self.D.T

    def _start(self, inputs: tuple[Any, ...]) -> Tensor:
        return torch.zeros_like(inputs[0])

    def extra_repr(self) -> str:
        """Sizes, penalties and strategies."""
        options = f"inputs={self.inputs}, atoms={self.atoms}, penalty={self.penalty}, ridge={self.ridge}"
        kind = f"per_atom={self.per_atom}, nonnegative={self.nonnegative}"
        return f"{options}, {kind}, {super().extra_repr()}"
