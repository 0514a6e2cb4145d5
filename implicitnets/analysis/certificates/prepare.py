"""From a model and a region to a problem that is ready to be bounded."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ...activations import Blocks, plain
from ...models import AffineForm
from ...solution import ConvergenceWarning
from ..regions import Box, Region
from .problem import EPS, Bounds, Problem, product
from .rewriting import componentwise, eliminated
from .start import ball, box, interval

__all__ = ["found_states", "prepare"]


def found_states(form: AffineForm, u: Tensor) -> Tensor:
    """States for inputs, as far as they are found: what was not has a large residual, which bounds contain."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        value: Tensor = form.solve(u).value
    return value.nan_to_num(0, 0, 0)


def prepare(form: AffineForm, region: Region, x0: Tensor) -> Problem:
    """The problem with component-wise activations, no aᵢᵢ where that can be, and the first bounds there are.

    Raises:
        NotAffine: If the activation is not known to rise with every entry.
    """
    problem = _bounded(form, region, x0)
    if not problem.unique:
        return problem
    centre = region.centre
    return replace(problem, origin=_bounded(form, Box(centre=centre, low=centre, high=centre), x0).z)


def _bounded(form: AffineForm, region: Region, x0: Tensor) -> Problem:
    problem = componentwise(ball(box(Problem.of(form, region, x0))))
    if not bool(problem.known.all()):
        problem = _by_levels(interval(problem))
    return interval(eliminated(problem))


def _by_levels(problem: Problem) -> Problem:
    """First bounds of models in cascade: each strongly connected part, once what comes before it is bounded."""
    form = problem.form
    _, labels = connected_components((form.A != 0).cpu().numpy(), connection="strong")
    part = torch.from_numpy(labels).to(form.A.device).long()
    edges = torch.stack([part[i] for i in form.A.nonzero().T])
    edges = edges[:, edges[0] != edges[1]]
    problem = replace(problem, unique=True)  # until a level is not
    waiting = torch.ones(int(part.max()) + 1, dtype=torch.bool, device=part.device)
    while bool(waiting.any()):
        blocked = torch.zeros_like(waiting).index_fill_(0, edges[0][waiting[edges[1]]], True)
        level = waiting & ~blocked
        problem = _level(problem, level[part].nonzero().flatten(), (~waiting)[part].nonzero().flatten())
        waiting &= ~level
    return problem


def _level(problem: Problem, own: Tensor, before: Tensor) -> Problem:
    """The problem with bounds of some states, which depend on each other and on states that are bounded."""
    form, region, x0 = problem.form, problem.region, problem.x0
    link, B, b = form.A[own][:, before], form.B[own], form.b[own]
    x = Bounds(*(end[:, before] for end in problem.x))
    centre = region.centre @ B.T + b
    high = product(link.clamp_min(0), x.high) + product(link.clamp_max(0), x.low) + centre + region.support(B)
    low = product(link.clamp_min(0), x.low) + product(link.clamp_max(0), x.high) + centre - region.support(-B)
    inputs = torch.maximum(region.low.abs(), region.high.abs())
    terms = 4 * (form.states + form.inputs + 8)
    slack = terms * EPS * (product(link.abs(), x.size) + inputs @ B.abs().T + b.abs())
    injected: Region = Box(centre=x0[:, before] @ link.T + centre, low=low - slack, high=high + slack)
    eye = torch.eye(len(own)).to(form.A)
    split = form.activation.split([1] * form.states)
    inner = replace(
        form,
        A=form.A[own][:, own],
        B=eye,
        C=eye,
        D=0 * eye,
        b=0 * b,
        c=0 * b,
        activation=Blocks(*((plain(split[i]), 1) for i in own.tolist())),
        weights=None if form.weights is None else form.weights[own],
    )
    if not len(before):
        inner, injected = replace(inner, B=B, b=b, D=0 * B), region
    known = Bounds(*(end[:, own] for end in problem.x))
    found = interval(ball(box(Problem.of(inner, injected, x0[:, own]).tighten(x=known))))
    low, high = (old.index_copy(1, own, new) for old, new in zip(problem.x, found.x, strict=True))
    return replace(problem, unique=problem.unique and found.unique).tighten(x=Bounds(low, high))
