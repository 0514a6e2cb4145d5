"""State elimination that keeps the outputs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...models import AffineForm
from .duplicates import Duplicates
from .editing import Linear, rows_of, select
from .order import depends, numbers, reached

__all__ = ["fold", "idle", "merge", "unreached"]


def idle(form: AffineForm) -> Tensor:
    """Which states no output depends on, directly or through others, (states,)."""
    return ~reached(depends(form), (form.C != 0).any(0))


def unreached(form: AffineForm) -> Tensor:
    """Which states no input reaches, so that they are constants, (states,)."""
    group_of_row, group_of_state = (torch.from_numpy(numbers(form, axis)) for axis in (1, 2))
    driven = group_of_row[(form.B != 0).any(1).cpu()]
    return ~reached(depends(form).T.tocsr(), torch.isin(group_of_state, driven))


def fold(form: AffineForm, known: Linear, which: Tensor) -> tuple[AffineForm, Tensor]:
    """The form without linear states x_F = s z_F + t, which are put into the equations of the others.

    With R = (I − sA_FF)⁻¹, x_F = R (s (A_FK x_K + B_F u + b_F) + t): the Schur complement. It keeps what makes a
    model well-posed: row sums of |A| below 1, λ(|A|) < 1, monotonicity, the P-property of I − A.

    Args:
        form: The model.
        known: The slopes and offsets.
        which: The states F, (states,), of one row each.

    Returns:
        The form, and the states K that are left.
    """
    states, rest = which.nonzero().flatten(), (~which).nonzero().flatten()
    smaller, rows = select(form, rest)
    own = rows_of(form)[states]
    slope, offset = known.slope[states, None], known.offset[states, None]
    loop = torch.eye(len(states)).to(form.A) - slope * form.A[own][:, states]
    right = torch.cat([form.A[own][:, rest], form.B[own], form.b[own, None]], 1) * slope
    right[:, -1:] += offset
    solved = torch.linalg.solve(loop, right)
    A, B, b = solved.split([len(rest), form.inputs, 1], 1)
    into, out = form.A[rows][:, states], form.C[:, states]
    folded = replace(
        smaller,
        A=smaller.A + into @ A,
        B=smaller.B + into @ B,
        C=smaller.C + out @ A,
        D=form.D + out @ B,
        b=smaller.b + (into @ b)[:, 0],
        c=form.c + (out @ b)[:, 0],
    )
    return folded, rest


def merge(form: AffineForm, found: Duplicates) -> tuple[AffineForm, Tensor]:
    """The form in which multiples of other states are replaced by these; and the states that are left."""
    A, C = form.A.clone(), form.C.clone()
    for weight in (A, C):
        weight.index_add_(1, found.of, weight[:, found.entry] * found.factor)
    left = torch.ones(form.states, dtype=torch.bool, device=A.device)
    left[found.entry] = False
    states = left.nonzero().flatten()
    return select(replace(form, A=A, C=C), states)[0], states
