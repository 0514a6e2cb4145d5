"""A quadratic program as a layer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..backward import Backward, Implicit
from ..backward.transforms import plain
from ..solution import ConvergenceWarning, Status
from ..solvers import Picard, Solver
from .deq import Equilibrium
from .program import Program, Splitting, times
from .starts import Start

__all__ = ["QPLayer", "QPSolution"]

ASTRAY = 1e3
"""A residual that met its tolerance only because the state is this much larger than the data has met nothing."""
WITNESS = 1000
"""Steps of the plain iteration by which multipliers are sought that prove a program infeasible."""
BEYOND = 10
"""A program is called infeasible if no point is feasible that is up to so many times as large as the one found."""


@dataclass(frozen=True, eq=False)
class QPSolution:
    """Solutions of quadratic programs, which satisfy Qz + q + Gᵀλ + Aᵀν = 0, λ ≥ 0 and λᵀ(Gz − h) = 0.

    Attributes:
        z: The minimizers, (batch, variables).
        inequality: The multipliers λ of Gz ≤ h, (batch, inequalities).
        equality: The multipliers ν of Az = b, (batch, equalities).
    """

    z: Tensor
    inequality: Tensor
    equality: Tensor


class QPLayer(Equilibrium):
    """z = argmin ½ zᵀQz + qᵀz subject to Gz ≤ h and Az = b, a layer of OptNet (Amos and Kolter 2017).

    Found as the fixed point of ADMM, that is of Douglas and Rachford's splitting (Boyd et al. 2011; OSQP: Stellato et
    al. 2020), on a state v of one entry for each inequality, the rows of G having norm 1:

        v = v + Gz − w,  w = min(v, h),  z = argmin {½ zᵀQz + qᵀz + ½ρ ‖Gz − (2w − v)‖² : Az = b}.

    Then Gz = w, and λ = ρ (v − w). One factorization for each call, or each sample where the matrices are its own. The
    map is averaged: Picard's iteration converges from every start if there is a solution. z and the gradient are unique
    where Q is positive definite; the multipliers, and the gradients to h and b of a function of them, where the active
    constraints are independent. Gradients reach all data, at a weakly active constraint (λᵢ = 0 and Gᵢz = hᵢ) as
    ``Implicit(selection=...)`` says. The layer has no weights: make of the data what you want to learn.

    Examples:
        >>> layer = QPLayer()  # project on the simplex
        >>> x = torch.tensor([[2.0, 0.5, 0.0], [0.2, 0.3, 0.5]])
        >>> eye = torch.eye(3)
        >>> layer(eye, -x, -eye, torch.zeros(3), torch.ones(1, 3), torch.ones(1)).round(decimals=3)
        tensor([[1.0000, 0.0000, 0.0000],
                [0.2000, 0.3000, 0.5000]])

    Args:
        rho: ρ, in units of the mean eigenvalue of Q. The solution does not depend on it, the number of steps does.
        solver: How the fixed point is found. Anderson's method takes fewer steps but may run away, which is reported.
        backward: How it is differentiated.
        start: Where the solver starts; None is zeros.

    Raises:
        ValueError: If rho is not positive.
        TypeError: If solver, backward or start is not a value of its kind.
    """

    def __init__(
        self,
        *,
        rho: float = 10.0,
        solver: Solver = Picard(rtol=1e-6, atol=1e-8, max_steps=10_000),
        backward: Backward = Implicit(),
        start: Start | None = None,
    ) -> None:
        super().__init__(solver, backward, start=start)
        if not rho > 0:
            raise ValueError(f"QPLayer(rho={rho}): rho must be positive, e.g. 10.0")
        self.rho = rho

    def forward(
        self,
        Q: Tensor,
        q: Tensor,
        G: Tensor | None = None,
        h: Tensor | None = None,
        A: Tensor | None = None,
        b: Tensor | None = None,
        z0: Tensor | None = None,
    ) -> Tensor:
        """The minimizers, of shape (batch, n).

        Each of the data has a batch axis in front or is the same for all samples. At least one has.

        Args:
            Q: (n, n), positive semidefinite. Only its symmetric part counts.
            q: (n,).
            G: (m, n).
            h: (m,).
            A: (k, n), of independent rows.
            b: (k,).
            z0: Where to start: the state v of an earlier call, ``forward_solution.value``.

        Raises:
            ValueError: If the data don't fit each other, Q is not positive semidefinite, the rows of A are dependent,
                or the solution can't be unique.

        Warns:
            ConvergenceWarning: If a sample did not converge, and if its multipliers prove that it is infeasible.
        """
        return self.solve(Q, q, G, h, A, b, z0).z

    def solve(
        self,
        Q: Tensor,
        q: Tensor,
        G: Tensor | None = None,
        h: Tensor | None = None,
        A: Tensor | None = None,
        b: Tensor | None = None,
        z0: Tensor | None = None,
    ) -> QPSolution:
        """The minimizers with their multipliers, all differentiable; the arguments are those of a call.

        Raises:
            ValueError: As a call.
        """
        program = Program.of(Q, q, G, h, A, b)
        parts = Splitting(program, self.rho)
        own = [parts.matrix] if parts.matrix.dim() == 3 else []  # cut with its sample

        def f(v: Tensor, start: Tensor, h: Tensor, *own: Tensor) -> Tensor:
            return reflect(v, start, h, own[0] if own else parts.matrix)

        v = self.equilibrium(f, z0, parts.start, parts.h, *own)
        self._judge(parts)
        with self._selected():
            z, multipliers = parts.primal(v), parts.inequality(v)
        gradient = times(z, program.Q) + program.q + times(multipliers, parts.G)
        return QPSolution(z, multipliers / parts.size, parts.equality(gradient) / parts.equality_size)

    def _judge(self, parts: Splitting) -> None:
        """Look at those that ran away: a residual relative to a state without bounds means nothing."""
        record = self.forward_solution
        assert record is not None
        start, h, b, v = (
            torch.linalg.vector_norm(plain(x), dim=1) for x in (parts.start, parts.h, parts.b, record.value)
        )
        data = start + h + b
        met = record.residual <= self.solver.atol + self.solver.rtol * data
        astray = record.converged & ~met & (v > ASTRAY * data)
        if bool(astray.any()):
            status = torch.where(astray, int(Status.DIVERGED), record.status)
            self.forward_solution = replace(record, status=status)
            warnings.warn(
                f"QPLayer: {int(astray.sum())} of {len(astray)} programs did not converge: their multipliers or minima "
                "grow without bounds, as those of an infeasible or unbounded program do. Check G, h, A and b.",
                ConvergenceWarning,
                stacklevel=4,
            )
        failed = astray | ~record.converged
        if bool(failed.any()):
            _warn_infeasible(parts, failed)

    def _start(self, inputs: tuple[Any, ...]) -> Tensor:
        return torch.zeros_like(inputs[1])

    def extra_repr(self) -> str:
        """The step and the strategies."""
        return f"rho={self.rho}, {super().extra_repr()}"


def reflect(v: Tensor, start: Tensor, h: Tensor, matrix: Tensor) -> Tensor:
    """The map v -> v + Gz − w."""
    w = torch.minimum(v, h)
    return v - w + start + times(2 * w - v, matrix)


@torch.no_grad()
def _warn_infeasible(parts: Splitting, failed: Tensor) -> None:
    """Warn of programs that are proved to be infeasible.

    For multipliers λ ≥ 0 and ν, and every feasible z, hᵀλ + bᵀν ≥ (Gᵀλ + Aᵀν)ᵀz. Where the left side is negative, no
    point of norm less than |hᵀλ + bᵀν| / ‖Gᵀλ + Aᵀν‖ is feasible: Farkas' lemma, if that is infinite. Such multipliers
    are what the plain iteration tends to where a program is infeasible (Banjac, Goulart, Stellato and Boyd 2019).
    """
    v = torch.zeros_like(plain(parts.h))
    for _ in range(WITNESS):
        v = reflect(v, plain(parts.start), plain(parts.h), plain(parts.matrix))
    multipliers = parts.inequality(v)
    pull = times(multipliers, parts.G)
    equality = parts.equality(pull)
    slack = (parts.h * multipliers).sum(1) + (parts.b * equality).sum(1)
    radius = -slack / torch.linalg.vector_norm(pull + times(equality, parts.A), dim=1)
    proved = failed & (radius > BEYOND * torch.linalg.vector_norm(parts.primal(v), dim=1))
    if bool(proved.any()):
        warnings.warn(
            f"QPLayer: samples {proved.nonzero().flatten().tolist()} are infeasible: their multipliers prove that no z "
            f"with ‖z‖ < {float(radius[proved].min()):.1e} satisfies the constraints. Check G, h, A and b.",
            ConvergenceWarning,
            stacklevel=5,
        )
