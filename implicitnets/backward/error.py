"""How far is a solution of the adjoint equation from the true one, given its residual?

With A = I − Jᵀ, the error of w is A⁻¹ (g − Aw): the residual says how large it is up to ‖A⁻¹‖, which a few products
with A can't bound for a general J. So there is a bound where a bound of ‖J‖ is known, and an estimate elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..solution import Solution
from ..solvers import GMRES, Solver
from ..solvers.newton import solve_scaled

__all__ = ["error_bound", "estimate_error"]


def error_bound(solution: Solution, contraction: float | Tensor) -> Tensor:
    """A bound of ‖w − w*‖ / ‖w*‖ for each sample of an adjoint solve, where ‖J‖₂ ≤ ``contraction`` < 1.

    It is ρ (1 + q) / (1 − q) with ρ the residual in units of ‖g‖, by ‖w − w*‖ ≤ ρ ‖g‖ / (1 − q) and
    ‖g‖ ≤ (1 + q) ‖w*‖: the condition number of I − Jᵀ times the relative residual (Higham 2002, section 7.1).
    A proof, if q is one: a Lipschitz constant of f in the Euclidean norm, by construction or by certificate.

    Args:
        solution: The adjoint solve, as ``report`` gets it.
        contraction: q, for all samples or for each, shape ``(batch,)``.

    Returns:
        The bounds, shape ``(batch,)``; infinite where q ≥ 1.

    Raises:
        ValueError: If q is negative.
    """
    q = torch.as_tensor(contraction, dtype=solution.residual.dtype, device=solution.residual.device)
    if bool((q < 0).any()):
        raise ValueError(f"error_bound(contraction={contraction!r}): contraction must be at least 0")
    return torch.where(q < 1, solution.residual * (1 + q) / (1 - q).clamp_min(0), torch.inf)


@torch.no_grad()
def estimate_error(
    product: Callable[[Tensor], Tensor],
    w: Tensor,
    g: Tensor,
    *,
    solver: Solver = GMRES(rtol=0.1, max_steps=2),
) -> Tensor:
    """An estimate of ‖w − w*‖ / ‖w*‖ for each sample, with w* = Jᵀw* + g, by solving for the error itself.

    The error e = w* − w solves e = Jᵀe + r with r = g + Jᵀw − w. Let ê be what ``solver`` finds, of residual η in
    units of ‖r‖. Then ‖e‖ ≤ ‖ê‖ / (1 − η) if (I − Jᵀ)⁻¹ magnifies the part of r that is left no more than r itself.
    That is the assumption, and as the solver works off first what is easy, it can fail: this is an estimate, and
    no bound. It costs a product and those of the solver. Where the solver does not converge it is infinite.

    Args:
        product: v -> Jᵀv on matrices ``(batch, size)``.
        w: The approximate solution.
        g: The right-hand side.
        solver: Solver for the error; a tenth of accuracy is enough.

    Returns:
        The estimates, shape ``(batch,)``.
    """
    found = solve_scaled(solver, product, g + product(w) - w)
    error = torch.linalg.vector_norm(found.value, dim=1) / (1 - found.residual).clamp_min(0)
    size = torch.linalg.vector_norm(w + found.value, dim=1)
    return torch.where(found.converged & (found.residual < 1), torch.where(error > 0, error / size, 0.0), torch.inf)
