"""States whose equations are multiples of each other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...activations import Blocks
from ...models import AffineForm
from .editing import single

__all__ = ["Duplicates", "duplicate_columns", "duplicates"]

ODD = {"tanh", "hardtanh", "identity"}
"""Activations with φ(−z) = −φ(z)."""


class Duplicates(NamedTuple):
    """Entries that are multiples of earlier ones: ``entry[i] = factor[i] · of[i]``, each (duplicates,)."""

    entry: Tensor
    of: Tensor
    factor: Tensor


def duplicates(form: AffineForm, tol: float = 1e-12) -> Duplicates:
    """The states x_i = factor · x_k, as the rows of [A B b] show: equal ones, or multiples that φ keeps.

    Those are positive multiples where φ is positively homogeneous, and opposites where it is odd.

    Args:
        form: The model.
        tol: How far two rows may differ, in units of their largest entry.
    """
    rows = torch.cat([form.A, form.B, form.b[:, None]], 1)
    groups = torch.cat([torch.full((n * before,), before == after == 1) for n, before, after in _groups(form)])
    states = single(form).nonzero().flatten()
    rows = rows[groups.to(rows.device)]
    size, sign, kind = rows.abs().amax(1), torch.ones_like(rows[:, 0]), torch.zeros_like(rows[:, 0])
    scale = torch.ones_like(size)
    at = 0
    for number, (phi, count) in enumerate(Blocks((form.activation, form.rows)).parts):
        if not phi.componentwise:
            continue
        mine = slice(at, at + count)
        scaled = getattr(phi, "scale", None)
        # the units of a scaled activation differ from state to state: none of these is like another
        kind[mine] = number if scaled is None else torch.arange(at, at + count) + len(rows) + 1.0
        if phi.homogeneous:
            scale[mine] = size[mine]
        if getattr(phi, "name", "") in ODD:
            sign[mine] = _leading_sign(rows[mine])
        at += count
    factor = torch.where(scale > 0, scale, torch.ones_like(scale)) * sign
    same = _same(rows / factor[:, None], tol) & (kind[:, None] == kind) & (size > 0)
    return _first(same, factor, states)


def duplicate_columns(weights: Tensor, tol: float = 1e-12) -> Duplicates:
    """The columns that are multiples of earlier ones; those that are zero left out."""
    rows = weights.T
    size = rows.abs().amax(1)
    factor = torch.where(size > 0, size, torch.ones_like(size)) * _leading_sign(rows)
    return _first(_same(rows / factor[:, None], tol) & (size > 0), factor, torch.arange(len(rows)))


def _groups(form: AffineForm) -> list[tuple[int, int, int]]:
    return form.activation.groups(form.rows)


def _leading_sign(rows: Tensor) -> Tensor:
    """The sign of the entry of largest size of each row, 1 for zero."""
    leading = rows.gather(1, rows.abs().argmax(1, keepdim=True))[:, 0]
    return torch.where(leading < 0, -1.0, 1.0).to(rows)


def _same(rows: Tensor, tol: float) -> Tensor:
    """Which pairs of rows are the same up to the tolerance, (n, n)."""
    size = rows.abs().amax(1)
    return torch.cdist(rows, rows, p=torch.inf) <= tol * torch.minimum(size[:, None], size)


def _first(same: Tensor, factor: Tensor, names: Tensor) -> Duplicates:
    """Each entry beside the first one that it is the same as."""
    first = same.to(torch.uint8).argmax(1)
    entry = (same.any(1) & (first < torch.arange(len(first)).to(first))).nonzero().flatten()
    of = first[entry]
    of_first = of == first[of]  # closeness need not be transitive
    entry, of = entry[of_first], of[of_first]
    return Duplicates(names.to(entry.device)[entry], names.to(of.device)[of], factor[entry] / factor[of])
