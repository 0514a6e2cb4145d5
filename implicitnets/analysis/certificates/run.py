"""Certificates of models."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...models import AffineForm, affine
from ..regions import Region, region
from .base import Bounder
from .certificate import Certificate, Certificates, Verdict
from .climb import Climb
from .ladder import rungs
from .prepare import found_states, prepare
from .problem import Bounds, shifted

__all__ = ["certify", "reachable"]

Progress = Callable[[int, int], None]


@torch.no_grad()
def certify(  # noqa: PLR0913  (what is asked, how to answer, and how to compute)
    model: nn.Module,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    radius: float | Tensor,
    norm: float | str = "inf",
    cardinality: int | None = None,
    domain: tuple[float, float] | None = None,
    goals: Tensor | None = None,
    method: str | Bounder = "auto",
    budget: float | None = None,
    batch: int = 100,
    progress: Progress = lambda done, total: None,
) -> Certificates:
    """Prove that a model decides the same for all inputs within a radius of x, or find one where it does not.

    What is proved holds for the model with these weights in exact arithmetic, and for every equilibrium: all bounds are
    computed in float64 with more than its rounding errors added, and with the residuals of whatever was solved for.
    The model's solver, its tolerance and its dtype play no part in it.

    Examples:
        >>> from implicitnets.models import MonotoneDEQ
        >>> model, x = nn.Sequential(MonotoneDEQ(16, 8), nn.Linear(8, 3)), torch.rand(5, 16)
        >>> certificates = certify(model, x, radius=1e-4)
        >>> certificates[0].verdict
        <Verdict.ROBUST: 'robust'>
        >>> int(certificates.robust.sum())
        5

    Args:
        model: A module with an affine form; see ``affine``. It stays as it is, and is taken in eval mode.
        x: (batch, ...), of floating point. What is not finite gets the verdict unknown.
        labels: The right classes, (batch,); None is what the model says of x. A robust sample has the largest output at
            its label for every input of the region.
        radius: As for ``region``, and so are the next three.
        norm: "inf", 2 or 1.
        cardinality: At most so many entries change.
        domain: The least and the largest value of an entry.
        goals: G, (k, outputs) or (batch, k, outputs), in place of class margins: Gy is to be positive.
        method: A name in ``METHODS``: "auto" climbs from cheap to exact until a sample is decided; "closed_form",
            "monotone_ball", "interval", "zonotope" and "crown" are cheap, "lp", "sdp" and "milp" solve programmes for
            each sample. Or a bounder such as ``Crown(rounds=6)`` or ``MixedInteger(time_limit=60)``.
        budget: Seconds for each sample on average: once a batch has used up its own, nothing further is begun. None is
            1 for "auto", and no limit for the others.
        batch: So many samples at a time.
        progress: Called with how many samples are done, and how many there are.

    Returns:
        A certificate for each sample.

    Raises:
        NotAffine: If the model has no affine form, or its activation is not known to rise with every entry.
        ValueError: If an argument does not fit the others.
        TypeError: If method is neither a name nor a bounder.
    """
    bounders, form = rungs(method), _form(model, x)
    fit, where = _region(x, radius, norm, cardinality, domain)
    if labels is not None and goals is not None:
        raise ValueError("labels and goals are both given: goals are for what is no class margin")
    if labels is not None and labels.shape != x.shape[:1]:
        raise ValueError(f"labels must be {len(x)} classes, one for each sample, not of shape {tuple(labels.shape)}")
    limit = budget if budget is not None else 1.0 if method == "auto" else math.inf
    items: list[Certificate] = []
    for rows in _batches(x, batch):
        part = where.take(rows)
        x0 = found_states(form, part.centre)
        named = _labels(form, part.centre, x0, None if labels is None else labels[rows])
        wanted = _margins(named, form) if goals is None else _goals(goals, form, rows)
        climb = Climb(form, part, wanted, x0, x.dtype)
        climb.run(bounders, limit)
        found = climb.certificates([None] * len(rows) if goals is not None else named.tolist(), x.shape[1:])
        items += [item if fit[i] else _nothing(item) for i, item in zip(rows.tolist(), found, strict=True)]
        progress(len(items), len(x))
    return Certificates(tuple(items))


@torch.no_grad()
def reachable(
    model: nn.Module,
    x: Tensor,
    *,
    radius: float | Tensor,
    norm: float | str = "inf",
    cardinality: int | None = None,
    domain: tuple[float, float] | None = None,
    goals: Tensor | None = None,
    method: str | Bounder = "crown",
    batch: int = 100,
) -> Bounds:
    """Bounds of the outputs y, or of Gy, over all inputs within a radius of x, both (batch, outputs), float64.

    They hold in the sense of ``certify``.

    Examples:
        >>> from implicitnets.models import ImplicitModel
        >>> model, x = ImplicitModel(inputs=16, states=8, outputs=3), torch.rand(5, 16)
        >>> bounds = reachable(model, x, radius=0.1)
        >>> y = model(x + 0.1 * torch.rand(5, 16))
        >>> bool(((bounds.low <= y) & (y <= bounds.high)).all())
        True

    Args:
        model: As for ``certify``, and so are those that are not explained here.
        x: (batch, ...).
        radius: As for ``region``.
        norm: "inf", 2 or 1.
        cardinality: At most so many entries change.
        domain: The least and the largest value of an entry.
        goals: G, (k, outputs); None is the identity.
        method: What bounds them: all its bounders are used.
        batch: So many samples at a time.

    Returns:
        Bounds; infinite where x is not finite or nothing is known.

    Raises:
        NotAffine: As described at ``certify``.
        ValueError: Likewise.
        TypeError: Likewise.
    """
    bounders, form = rungs(method), _form(model, x)
    fit, where = _region(x, radius, norm, cardinality, domain)
    wanted = torch.eye(form.outputs).to(form.C) if goals is None else _goals(goals, form, torch.zeros(1).long())[0]
    parts = [wanted.new_empty(2, 0, len(wanted))]
    for rows in _batches(x, batch):
        part = where.take(rows)
        problem = prepare(form, part, found_states(form, part.centre))
        c, d, bias = (wanted @ of for of in (problem.form.C, problem.form.D, problem.form.c))
        best = problem.values(c, d, bias)
        for bounder in bounders:
            problem = bounder.tighten(problem)
            found = Bounds(-bounder.maximum(problem, -c, -d), bounder.maximum(problem, c, d))
            best = best.meet(shifted(found, bias))
        parts.append(torch.stack(best))
    low, high = torch.cat(parts, 1)
    return Bounds(torch.where(fit[:, None], low, -torch.inf), torch.where(fit[:, None], high, torch.inf))


def _batches(x: Tensor, batch: int) -> tuple[Tensor, ...]:
    return torch.arange(len(x)).split(batch) if len(x) else ()


def _form(model: nn.Module, x: Tensor) -> AffineForm:
    """The affine form in float64.

    Raises:
        NotAffine: If there is none.
        ValueError: If x has another shape.
    """
    form = affine(copy.deepcopy(model).double().eval(), tuple(x.shape[1:])).map(Tensor.detach)
    if x[0:1].numel() and x[0].numel() != form.inputs:
        raise ValueError(f"x has shape {tuple(x.shape)}, and the model takes {form.inputs} inputs")
    return form


def _region(
    x: Tensor, radius: float | Tensor, norm: float | str, cardinality: int | None, domain: tuple[float, float] | None
) -> tuple[Tensor, Region]:
    """Which samples are finite, and where the inputs are, in float64; anything in place of what is not finite."""
    x = x.double() if x.is_floating_point() else x
    fit = torch.isfinite(x.flatten(1)).all(1)
    held = torch.where(fit.view(-1, *(1 for _ in x.shape[1:])), x, 0 if domain is None else float(domain[0]))
    return fit, region(held, radius, norm, cardinality=cardinality, domain=domain)


def _labels(form: AffineForm, u: Tensor, x0: Tensor, labels: Tensor | None) -> Tensor:
    """The classes that are to stay.

    Raises:
        ValueError: If those given are none.
    """
    if form.outputs < 2:
        raise ValueError(f"the model has {form.outputs} outputs, so no classes: say by goals= what is to be positive")
    if labels is None:
        return form.readout(x0, u).argmax(1)
    if labels.is_floating_point() or not bool(((labels >= 0) & (labels < form.outputs)).all()):
        raise ValueError(f"labels must be classes from 0 to {form.outputs - 1}, int64")
    return labels


def _margins(labels: Tensor, form: AffineForm) -> Tensor:
    """The goals y_label − y_j for all other j, (batch, outputs − 1, outputs)."""
    eye = torch.eye(form.outputs).to(form.C)
    others = torch.stack([torch.cat([eye[:i], eye[i + 1 :]]) for i in range(form.outputs)])
    return eye[labels][:, None] - others[labels]


def _goals(goals: Tensor, form: AffineForm, rows: Tensor) -> Tensor:
    """The goals of some samples, (batch, k, outputs).

    Raises:
        ValueError: If they do not fit the model.
    """
    if goals.dim() not in (2, 3) or goals.shape[-1] != form.outputs or not goals.shape[-2]:
        raise ValueError(f"goals has shape {tuple(goals.shape)}, not (k, {form.outputs}) or (batch, k, {form.outputs})")
    return goals.to(form.C).expand(len(rows), -1, -1) if goals.dim() == 2 else goals.to(form.C)[rows]


def _nothing(item: Certificate) -> Certificate:
    """The certificate of a sample that is not finite."""
    unknown = [
        Bounds(torch.full_like(low, -torch.inf), torch.full_like(low, torch.inf))
        for low, _ in (item.states, item.outputs)
    ]
    return replace(
        item,
        verdict=Verdict.UNKNOWN,
        method=None,
        margin=-math.inf,
        worst=math.inf,
        adversarial=None,
        states=unknown[0],
        outputs=unknown[1],
    )
