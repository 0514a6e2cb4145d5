"""Pairs of inputs whose outputs are far apart: lower bounds of a Lipschitz constant."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from ..models import AffineForm

__all__ = ["Pair", "steepest_pair"]

CHOSEN = 8
"""How many samples the ascent starts from."""


class Pair(NamedTuple):
    """Two inputs, how much further apart their outputs are, and the Jacobian at one, (outputs, inputs)."""

    ratio: float
    inputs: Tensor | None
    jacobian: Tensor | None


class Local(NamedTuple):
    """The Jacobian J of one sample, where it is steepest, and where to go to make it steeper.

    Attributes:
        jacobian: J, (outputs, inputs).
        norm: ‖J‖.
        direction: A v with ‖Jv‖ = ‖J‖‖v‖.
        rows: ∂z/∂u, (rows, inputs).
        pull: ∂‖J‖/∂φ′ of each row, or None where φ is not component-wise.
    """

    jacobian: Tensor
    norm: float
    direction: Tensor
    rows: Tensor
    pull: Tensor | None


def steepest_pair(form: AffineForm, p: float, samples: Tensor, steps: int) -> Pair:
    """The largest ‖y(u) − y(v)‖ / ‖u − v‖ that is found in the p-norm: at samples, then by an ascent of ‖J(u)‖.

    J(u) = D + C (I − ΦA)⁻¹ ΦB with the derivatives Φ of φ. The gradient of its norm is taken with second differences
    of φ over a distance that falls from the size of the pre-activations: of a relu the slope changes at its kink alone.

    Warns:
        ConvergenceWarning: If an equilibrium was not found; such samples are left out.
    """
    best, u = Pair(0.0, None, None), samples
    kept, locals_ = _locals(form, p, u)
    if not locals_:
        return best
    order = sorted(range(len(locals_)), key=lambda i: -locals_[i].norm)[:CHOSEN]
    u, locals_ = kept[order], [locals_[i] for i in order]
    best = _best(best, _pair(form, p, u, locals_))
    for i in range(steps):
        u = _step(form, u, locals_, 10 ** (-2.0 * i / steps))
        u, locals_ = _locals(form, p, u)
        if not locals_:
            break
        best = _best(best, _pair(form, p, u, locals_))
    return best


def _best(*pairs: Pair) -> Pair:
    return max(pairs, key=lambda pair: pair.ratio)


def _locals(form: AffineForm, p: float, u: Tensor) -> tuple[Tensor, list[Local]]:
    """The samples that have an equilibrium, and their Jacobians."""
    solution = form.solve(u)
    u = u[solution.converged]
    z = form.preactivation(solution.value[solution.converged], u)
    return u, [_local(form, p, row) for row in z]


def _local(form: AffineForm, p: float, z: Tensor) -> Local:
    phi: Tensor = jacobian(form.activation, z)
    element = torch.eye(form.states).to(z) - phi @ form.A
    states = torch.linalg.solve_ex(element, phi @ form.B)[0]
    J = form.D + form.C @ states
    norm, left, direction = _norm(J, p)
    rows = form.B + form.A @ states
    if not form.activation.componentwise:
        return Local(J, norm, direction, rows, None)
    back = torch.linalg.solve_ex(element.T, (form.C.T @ left)[:, None])[0][:, 0]
    return Local(J, norm, direction, rows, back * (rows @ direction))


def _norm(J: Tensor, p: float) -> tuple[float, Tensor, Tensor]:
    """‖J‖, and the w and v of which it is wᵀJv, ‖v‖ = 1."""
    if p == 2:
        left, values, right = torch.linalg.svd(J, full_matrices=False)
        return float(values[0]), left[:, 0], right[0]
    if p == 1:
        column = int(J.abs().sum(0).argmax())
        return float(J[:, column].abs().sum()), J[:, column].sign(), torch.eye(J.shape[1]).to(J)[column]
    row = int(J.abs().sum(1).argmax())
    return float(J[row].abs().sum()), torch.eye(J.shape[0]).to(J)[row], J[row].sign()


def _step(form: AffineForm, u: Tensor, locals_: list[Local], share: float) -> Tensor:
    """Each input moved so that no pre-activation moves by more than half of the distance of the differences."""
    z = form.preactivation(form.solve(u).value, u)
    moved = []
    for start, at, local in zip(u, z, locals_, strict=True):
        width = share * at.abs().max().clamp_min(1e-3)
        if local.pull is None:
            moved.append(start)
            continue
        phi = form.activation
        curvature = (phi(at + width) - 2 * phi(at) + phi(at - width)) / width**2
        gradient = local.rows.T @ (local.pull * curvature)
        speed = (local.rows @ gradient).abs().max()
        moved.append(start + gradient * (width / 2 / speed if speed > 0 else 0.0))
    return torch.stack(moved)


def _pair(form: AffineForm, p: float, u: Tensor, locals_: list[Local]) -> Pair:
    """The best of steps of several lengths along the steepest directions."""
    best = Pair(0.0, None, None)
    direction = torch.stack([local.direction for local in locals_])
    for length in (1e-4, 1e-2, 1.0):
        v = u + length * direction * (1 + torch.linalg.vector_norm(u, p, dim=1, keepdim=True))
        both = form.solve(torch.cat([u, v]))
        y = form.readout(both.value, torch.cat([u, v]))
        change = torch.linalg.vector_norm(y[len(u) :] - y[: len(u)], p, dim=1)
        ratio = change / torch.linalg.vector_norm(v - u, p, dim=1)
        ratio = torch.where(both.converged[: len(u)] & both.converged[len(u) :], ratio, 0.0)
        i = int(ratio.argmax())
        best = _best(best, Pair(float(ratio[i]), torch.stack([u[i], v[i]]), locals_[i].jacobian))
    return best
