"""Inputs of a region that miss a goal."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models import AffineForm
from ...solution import ConvergenceWarning
from ..regions import Region

__all__ = ["Found", "search"]


@dataclass(frozen=True)
class Found:
    """The inputs with the least goals that were tried.

    Attributes:
        value: The least goal, (batch,); infinite where no equilibrium was found.
        u: The inputs, (batch, inputs).
    """

    value: Tensor
    u: Tensor

    @property
    def missed(self) -> Tensor:
        """Which miss a goal by more than the errors of their equilibria, (batch,)."""
        return self.value < -1e-9 * (1 + self.value.abs())


def search(form: AffineForm, region: Region, goals: Tensor, start: Tensor, steps: int, dtype: torch.dtype) -> Found:
    """Descend the least of the goals Gy by exact implicit gradients, towards the best point of the region for each.

    From the centre, the second input is the best for its gradient (for a box that is the fast gradient sign method,
    Goodfellow, Shlens and Szegedy 2015), and those after are between the last and the best for the gradient
    there (Frank and Wolfe 1956).

    Args:
        form: The model.
        region: Where inputs may be.
        goals: G, (batch, k, outputs).
        start: The first inputs, (batch, inputs), moved into the region.
        steps: Gradients to take.
        dtype: Inputs are rounded to it before they are tried.
    """
    u = region.project(start).to(dtype).to(start.dtype)
    found = Found(goals.new_full((len(goals),), torch.inf), u)
    for step in range(steps + 1):
        value, gradient = _descent(form, u, goals, wanted=step < steps)
        better = value < found.value
        found = Found(torch.where(better, value, found.value), torch.where(better[:, None], u, found.u))
        if step < steps:
            best = region.maximizer(-gradient)
            u = region.project(torch.lerp(u, best, 2 / (step + 2))).to(dtype).to(u.dtype)
    return found


def _descent(form: AffineForm, u: Tensor, goals: Tensor, *, wanted: bool) -> tuple[Tensor, Tensor]:
    """The least goal, infinite where the equilibrium was not found, and its gradient."""
    with warnings.catch_warnings(), torch.set_grad_enabled(wanted):
        warnings.simplefilter("ignore", ConvergenceWarning)  # such samples are told by their value
        u = u.detach().requires_grad_(wanted)
        solution = form.solve(u)
        value = torch.einsum("bko,bo->bk", goals, form.readout(solution.value, u)).amin(1)
        gradient = torch.autograd.grad(value.sum(), u)[0] if wanted else u
    found = solution.converged & torch.isfinite(value)
    return torch.where(found, value, torch.inf).detach(), gradient.nan_to_num(0, 0, 0)
