"""The B-subdifferential: the limits of Jacobians at a kink, one for each piece that meets there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linprog
from torch import Tensor

from .watching import Event, watch

__all__ = ["b_subdifferential"]

Rows = npt.NDArray[np.float64]


def b_subdifferential(f: Callable[..., Any], z: Tensor, *inputs: Any, tol: float = 0.0, max_kinks: int = 12) -> Tensor:
    """All limits of Jacobians of f at points near z where f is differentiable: ∂_B f(z), of convex hull ∂f(z).

    The pieces that meet at z are enumerated kink by kink. A combination belongs to ∂_B f(z) if the region where it is
    active has interior points arbitrarily near z. It is kept if there is a direction d along which every gap leaves
    zero to its side at first order, ∇gap · d ≠ 0, which a linear program decides. For a piecewise linear f this is
    exact. For others all that is returned belongs to ∂_B f(z), but a region that touches z with a cusp, like
    0 < y < x² at 0, is not found.

    Args:
        f: The map.
        z: One small sample, a tensor of any shape.
        inputs: Further arguments of f.
        tol: A gap up to this size counts as zero.
        max_kinks: How many binary choices to enumerate at the most: there may be 2^max_kinks elements.

    Returns:
        The different elements, shape (elements, entries of f(z), entries of z).

    Raises:
        ValueError: If there are more kinks at z.
        NotImplementedError: If z is at a kink of another kind: a tie in a sort, or the zero of a norm.
    """
    with torch.no_grad():
        _, events = watch(f, z, *inputs)
    open_ = [_open(event, tol) for event in events]
    choices = sum(float(np.log2(len(options))) for rows in open_ for _, options in rows)
    if choices > max_kinks:
        raise ValueError(
            f"z is at kinks with 2^{choices:.1f} combinations of pieces: b_subdifferential enumerates up to "
            f"2^max_kinks of them, max_kinks={max_kinks}; pass a larger one, or a smaller tol"
        )
    natural = [event.pieces for event in events]
    found: dict[bytes, Tensor] = {}
    for pieces in _feasible(f, z, inputs, natural, open_):
        jacobian = _jacobian(f, z, inputs, pieces)
        scale = float(jacobian.abs().max()) if jacobian.numel() else 0.0
        key = torch.round(jacobian / (scale or 1.0), decimals=5 if z.dtype == torch.float32 else 10) + 0.0
        found.setdefault(key.cpu().numpy().tobytes(), jacobian)
    return torch.stack(list(found.values()))


Open = list[tuple[int, list[int]]]
"""Flat index of each undecided entry of an event, and the pieces it may be on."""


def _open(event: Event, tol: float) -> Open:
    places = (event.gap.abs() <= tol).flatten().nonzero().flatten().tolist()
    if event.kind == "hinge":
        return [(place, [1, -1]) for place in places]
    if places and event.kind in {"order", "cone"}:
        what = "a tie" if event.kind == "order" else "the zero"
        raise NotImplementedError(f"z is at {what} of {event.name}, whose limits of Jacobians are not enumerated")
    rows = event.x.reshape(-1, event.x.shape[-1])
    near = rows >= rows.amax(-1, keepdim=True) - tol
    return [(place, near[place].nonzero().flatten().tolist()) for place in places]


def _feasible(
    f: Callable[..., Any], z: Tensor, inputs: tuple[Any, ...], natural: list[Tensor], open_: list[Open]
) -> Iterator[list[Tensor]]:
    """The combinations of pieces whose region has interior points near z.

    Depth first through the operations: how a gap moves depends on the pieces of the operations before it only.

    Yields:
        The pieces of all kinks.
    """
    stack: list[tuple[int, list[Tensor], Rows]] = [(0, natural, np.empty((0, z.numel())))]
    while stack:
        k, pieces, rows = stack.pop()
        while k < len(open_) and not open_[k]:
            k += 1
        if k == len(open_):
            yield pieces
            continue
        point = z.detach().requires_grad_()
        with torch.enable_grad():
            event = watch(f, point, *inputs, pieces=pieces)[1][k]
        entries = event.x.flatten() if event.kind == "hinge" else event.x.reshape(-1, event.x.shape[-1])
        for sides, more in _sides(open_[k], entries, point, event.kind, rows):
            chosen = pieces[k].clone()
            for (place, _), side in zip(open_[k], sides, strict=True):
                chosen.view(-1)[place] = side
            stack.append((k + 1, [*pieces[:k], chosen, *pieces[k + 1 :]], more))


def _sides(
    undecided: Open, entries: Tensor, point: Tensor, kind: str, rows: Rows
) -> list[tuple[tuple[int, ...], Rows]]:
    """The pieces that the entries of one operation can be on together, and the half-spaces that say so."""
    partial: list[tuple[tuple[int, ...], Rows]] = [((), rows)]
    for place, options in undecided:
        if kind == "hinge":
            slope = _gradient(entries[place], point)
            walls = {1: slope[None], -1: -slope[None]}
        else:
            slopes = {i: _gradient(entries[place, i], point) for i in options}
            walls = {i: np.stack([slopes[i] - slopes[j] for j in options if j != i]) for i in options}
        partial = [
            ((*sides, side), np.concatenate((above, wall)))
            for sides, above in partial
            for side, wall in _distinct(walls)
            if _has_interior(np.concatenate((above, wall)))
        ]
    return partial


def _distinct(walls: dict[int, Rows]) -> list[tuple[int, Rows]]:
    """The pieces to tell apart: those whose difference does not move with z are one."""
    size = max(float(np.abs(wall).max()) for wall in walls.values())
    if size == 0:
        side = next(iter(walls))
        return [(side, walls[side][:0])]
    kept = []
    for side, wall in walls.items():
        moving = np.abs(wall).max(1) > 1e-12 * size
        earlier = list(walls)[: list(walls).index(side)]
        if len(wall) == 1 or moving.all() or not any(_same(walls, side, other) for other in earlier):
            kept.append((side, wall[moving]))
    return kept


def _same(walls: dict[int, Rows], side: int, other: int) -> bool:
    place = [i for i in walls if i != side].index(other)
    return bool(np.abs(walls[side][place]).max() == 0)


def _gradient(y: Tensor, point: Tensor) -> Rows:
    if not y.requires_grad:
        return np.zeros(point.numel())
    (slope,) = torch.autograd.grad(y, point, retain_graph=True, materialize_grads=True)
    return slope.flatten().double().cpu().numpy()


def _has_interior(rows: Rows) -> bool:
    """Whether some d has rows @ d > 0 in every entry."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    guess = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
    if (rows @ guess > 0.5).all():
        return True
    n = rows.shape[1]  # maximize t with rows @ d ≥ t in the unit box
    program = linprog(
        np.append(np.zeros(n), -1.0),
        A_ub=np.hstack((-rows, np.ones((len(rows), 1)))),
        b_ub=np.zeros(len(rows)),
        bounds=[*itertools.repeat((-1, 1), n), (0, 1)],
    )
    return bool(program.x is not None and program.x[-1] > 1e-7)


def _jacobian(f: Callable[..., Any], z: Tensor, inputs: tuple[Any, ...], pieces: list[Tensor]) -> Tensor:
    point = z.detach().requires_grad_()
    with torch.enable_grad():
        out: Tensor = watch(f, point, *inputs, pieces=pieces)[0].flatten()
    rows = [
        torch.autograd.grad(y, point, retain_graph=True, materialize_grads=True)[0] if y.requires_grad else point * 0
        for y in out
    ]
    return torch.stack([row.detach().flatten() for row in rows]) if rows else z.new_empty((0, z.numel()))
