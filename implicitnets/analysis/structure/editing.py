"""Forms with fewer states, and what is known of the states of one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...activations import Blocks, as_activation, plain
from ...models import AffineForm, NotAffine
from ..certificates.crown import Crown
from ..certificates.prepare import found_states
from ..certificates.problem import Bounds, Problem, product
from ..certificates.start import ball, box, interval
from ..regions import Box, Region
from .order import numbers

__all__ = ["Linear", "bounds", "linear", "rows_of", "select", "single", "whole"]

PIECES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "identity": ((-torch.inf, torch.inf, 1.0),),
    "relu": ((-torch.inf, 0.0, 0.0), (0.0, torch.inf, 1.0)),
    "leaky_relu": ((-torch.inf, 0.0, 0.01), (0.0, torch.inf, 1.0)),
    "hardtanh": ((-1.0, 1.0, 1.0),),
}
"""Where an activation is φ(z) = slope · z: least and largest z, and the slope."""


def bounds(form: AffineForm, region: Region | None) -> Problem | None:
    """Bounds of all equilibria over a region; None where the activation is of a kind that has none.

    Args:
        form: In float64, detached.
        region: Likewise; None for all inputs.
    """
    if region is None:
        return _anywhere(form)
    try:
        problem = Problem.of(form, region, found_states(form, region.centre))
    except NotAffine:
        return None
    problem = interval(ball(box(problem)))
    return Crown().tighten(problem) if form.activation.componentwise else problem


def _anywhere(form: AffineForm) -> Problem | None:
    """Bounds for all inputs: from the range of φ, for the rows that no input enters, by as many steps as there are."""
    centre = form.B.new_zeros(1, form.inputs)
    everything = Box(centre=centre, low=centre - torch.inf, high=centre + torch.inf)
    try:
        problem = Problem.of(form, everything, form.B.new_zeros(1, form.states))
    except NotAffine:
        return None
    driven, up, down = (form.B != 0).any(1), form.A.clamp_min(0), form.A.clamp_max(0)
    for _ in range(form.states):
        low, high = problem.x
        slack = 4 * (form.states + 8) * torch.finfo(low.dtype).eps
        ends = []
        for sign, first, second in ((1, high, low), (-1, low, high)):
            size = product(up, first.abs()) - product(down, second.abs()) + form.b.abs()
            end = sign * (product(up, first) + product(down, second) + form.b) + slack * size
            ends.append(sign * torch.where(driven, torch.inf, end))
        before, problem = problem, problem.tighten(z=Bounds(ends[1], ends[0]))
        if all(torch.equal(a, b) for a, b in zip(before.x, problem.x, strict=True)):
            break
    return problem


def single(form: AffineForm) -> Tensor:
    """Which states are made of one row each, and alone, (states,)."""
    alone = [torch.full((n * after,), before == after == 1) for n, before, after in form.activation.groups(form.rows)]
    return torch.cat(alone)


def rows_of(form: AffineForm) -> Tensor:
    """The row that makes each state, the first of those of its group, (states,)."""
    group_of_row, group_of_state = (torch.from_numpy(numbers(form, axis)) for axis in (1, 2))
    return torch.searchsorted(group_of_row, group_of_state)


def whole(form: AffineForm, states: Tensor) -> Tensor:
    """These states, a mask (states,), and those that the activation makes together with one of them."""
    group = torch.from_numpy(numbers(form, 2))
    return torch.isin(group, group[states])


def select(form: AffineForm, states: Tensor) -> tuple[AffineForm, Tensor]:
    """The form of some of the states, in their order, without what the others contribute; and the rows that are left.

    Raises:
        ValueError: If states that the activation makes together are torn apart.
    """
    group_of_row, group_of_state = (torch.from_numpy(numbers(form, axis)) for axis in (1, 2))
    chosen = torch.unique_consecutive(group_of_state[states])
    if not torch.equal(torch.cat([(group_of_state == group).nonzero().flatten() for group in chosen]), states):
        raise ValueError(f"states={states.tolist()}: {form.activation!r} makes some of these together with others")
    rows = torch.cat([(group_of_row == group).nonzero().flatten() for group in chosen])
    parts = form.activation.split(torch.bincount(group_of_state).tolist())
    pieces = [(plain(parts[group]), int((group_of_row == group).sum())) for group in chosen.tolist()]
    phi = Blocks(*pieces)
    smaller = replace(
        form,
        A=form.A[rows][:, states],
        B=form.B[rows],
        C=form.C[:, states],
        b=form.b[rows],
        activation=as_activation(phi.blocks[0][0] if len(phi.blocks) == 1 else phi),
        weights=None,
    )
    return smaller, rows


@dataclass(frozen=True)
class Linear:
    """States that are x = slope · z + offset all over a region: dead ones have the slope 0.

    Attributes:
        slope: (states,), NaN where a state is not known to be one.
        offset: (states,).
    """

    slope: Tensor
    offset: Tensor

    @property
    def constant(self) -> Tensor:
        """Which states do not depend on the input, (states,)."""
        return self.slope == 0


def linear(problem: Problem) -> Linear:
    """The states that bounds show to be on one piece of a piecewise linear activation, for all samples."""
    form = problem.form
    slope = form.b.new_full((form.states,), torch.nan)
    offset = torch.zeros_like(slope)
    alone, rows = single(form), rows_of(form)
    low, high = problem.z.low.amin(0)[rows], problem.z.high.amax(0)[rows]
    at = 0
    for part, count in Blocks((form.activation, form.rows)).parts:
        size = part.states(count)
        for start, end, value in PIECES.get(getattr(part, "name", ""), ()):
            inside = (low >= start) & (high <= end)
            inside[:at] = inside[at + size :] = False
            slope[inside] = value
        at += size
    least, largest = problem.x.low.amin(0), problem.x.high.amax(0)
    same = alone & (least == largest)
    slope[same], offset[same] = 0.0, least[same]
    return Linear(slope=slope, offset=offset)
