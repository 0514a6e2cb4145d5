"""Two equilibria of one input, from slopes that make I − DA singular."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import AffineForm
from .ladder import SingularElement

__all__ = ["Twins", "twins"]


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Two solutions of x = φ(Ax + v).

    Attributes:
        v: The right-hand side, (rows,).
        states: The solutions, (2, states).
        u: An input with Bu + b = v, if there is one.
        distance: Between the solutions, in the maximum norm.
        residual: The larger maximum norm of φ(Ax + v) − x, which is rounding.
    """

    v: Tensor
    states: Tensor
    u: Tensor | None
    distance: float
    residual: float


def twins(form: AffineForm, witness: SingularElement) -> Twins | None:
    """Two equilibria of a φ that has one slope below 0 and one above, such as relu; None for others.

    With (I − DA) ξ = 0 and ζ = Aξ, ξᵢ = dᵢζᵢ. A z with φ(z + ζ) − φ(z) = ξ is found for each unit alone, so that ζ
    crosses 0 at the share of dᵢ between the two slopes. Then v = z − Aφ(z) = z + ζ − Aφ(z + ζ). For relu this is the
    construction that shows that a linear complementarity problem with a unique solution has a P-matrix.
    """
    phi = form.activation
    if not (phi.componentwise and phi.homogeneous):
        return None
    D, null = witness.slopes, witness.null_vector / witness.null_vector.abs().max()
    ones = torch.ones_like(D)
    below, above = -phi(-ones), phi(ones)
    share = torch.where(above == below, 0.0, (D - below) / (above - below))  # of ζ that is on the positive side
    step = form.A @ null
    start = -step * torch.where(step > 0, 1 - share, share)
    v = start - form.A @ phi(start)
    states = torch.stack([phi(start), phi(start + step)])
    residual = float((phi(states @ form.A.T + v) - states).abs().max())
    distance = float((states[1] - states[0]).abs().max())
    if not residual <= 1e-9 * distance * (1 + float(form.A.abs().sum(1).max())):
        return None
    return Twins(v=v, states=states, u=_input(form, v), distance=distance, residual=residual)


def _input(form: AffineForm, v: Tensor) -> Tensor | None:
    u: Tensor = torch.linalg.lstsq(form.B, (v - form.b)[:, None], driver="gelsd")[0][:, 0]
    error = (form.B @ u + form.b - v).abs().max()
    return u if bool(error <= 1e-10 * (1 + v.abs().max() + form.b.abs().max())) else None
