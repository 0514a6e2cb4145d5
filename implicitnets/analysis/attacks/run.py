"""Attacks on classifiers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...solution import ConvergenceWarning
from ..regions import Region, region
from .methods import PGD, AttackMethod
from .result import AttackResult
from .search import Search
from .sparse import Sparse
from .victim import Gradient, Victim

__all__ = ["attack"]


def attack(  # noqa: PLR0913  (what may change, how to look for it, and how to compute)
    model: nn.Module,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    radius: float | Tensor,
    norm: float | str = "inf",
    cardinality: int | None = None,
    domain: tuple[float, float] | None = None,
    method: AttackMethod | Sequence[AttackMethod] | None = None,
    gradient: Gradient = "exact",
    generator: torch.Generator | None = None,
    batch: int = 500,
    dtype: torch.dtype = torch.float64,
) -> AttackResult:
    """Search the inputs within a radius of x for such as the model misclassifies.

    It is a copy of the model that is attacked, in eval mode and in float64, its equilibria solved to the precision of
    that and differentiated by the implicit function theorem, whatever the model's own settings: what a loose solver or
    an approximate gradient hides is found. The model stays as it is. A sample is done with once it is fooled; an input
    whose equilibrium is not found is never a success.

    Examples:
        >>> from implicitnets.models import ImplicitModel
        >>> model, x = ImplicitModel(inputs=16, states=8, outputs=3), torch.rand(5, 16)
        >>> result = attack(model, x, radius=0.5, domain=(0, 1))
        >>> bool((result.after <= result.before).all())
        True
        >>> bool((model(result.inputs[result.success]).argmax(1) != result.labels[result.success]).all())
        True

    Args:
        model: A classifier: from x to logits, (batch, classes), each sample on its own.
        x: (batch, ...), of floating point.
        labels: The right classes, (batch,), int64; None is what the model says of x.
        radius: As for ``region``, and so are the next three.
        norm: "inf", 2 or 1.
        cardinality: At most so many entries change.
        domain: The least and the largest value of an entry.
        method: ``FGSM()``, ``PGD()``, ``Sparse()``, or several, each for the samples that the ones before it did not
            fool. None is ``PGD(targets=9)``, after ``Sparse()`` where a cardinality is given.
        gradient: What the search is led by: "exact"; a ``Backward``, e.g. ``Unroll()`` for Jacobian-free
            backpropagation; or "model" for the model's own solver and backward. Successes are those of the exact model
            in any case.
        generator: Of the random starts; None is one of seed 0. What a sample gets does not depend on the others.
        batch: How many samples at a time.
        dtype: Of the copy.

    Raises:
        ValueError: If an argument does not fit the others, or the model does not return logits.
        TypeError: If method or gradient is not a value of its kind.

    Warns:
        ConvergenceWarning: If an equilibrium was not found for some inputs.
    """
    methods = _methods(method, cardinality)
    with torch.inference_mode(False):
        where = region(x.detach().clone(), radius, norm, cardinality=cardinality, domain=domain, dtype=dtype)
        victim = Victim(model, tuple(x.shape[1:]), dtype, gradient)
        labels = _labels(victim, where, labels, batch)
        first = int(torch.randint(2**62, (1,), generator=generator or torch.Generator().manual_seed(0)))
        parts = []
        for rows in torch.arange(len(x), device=x.device).split(batch):
            seeds = [first + int(row) for row in rows]
            search = Search(victim, where.take(rows), labels[rows], x.dtype, seeds)
            for each in methods:
                each.run(search)
            parts.append(search)
    result = _joined(parts, x, methods)
    if bool(result.unconverged.any()):
        missed, tried, unknown = (int(n.sum()) for n in (result.unconverged, result.evaluations, result.unknown))
        warnings.warn(
            f"the equilibrium, or its gradient, was not found for {missed} of {tried} inputs tried; {unknown} of "
            f"{len(x)} samples are unknown",
            ConvergenceWarning,
            stacklevel=2,
        )
    return result


def _methods(method: AttackMethod | Sequence[AttackMethod] | None, cardinality: int | None) -> tuple[AttackMethod, ...]:
    """What to try.

    Raises:
        TypeError: If it is none.
    """
    if method is None:
        return (PGD(targets=9),) if cardinality is None else (Sparse(), PGD(targets=9))
    methods = (method,) if isinstance(method, AttackMethod) else tuple(method) if isinstance(method, Sequence) else ()
    if not methods or not all(isinstance(each, AttackMethod) for each in methods) or isinstance(method, str):
        raise TypeError(f"method={method!r} is not an attack, nor several: write for instance method=PGD(steps=100)")
    return methods


def _labels(victim: Victim, where: Region, labels: Tensor | None, batch: int) -> Tensor:
    """The right classes.

    Raises:
        ValueError: If those given do not fit.
    """
    if labels is None:
        return torch.cat([victim.logits(u)[0].argmax(1) for u in where.centre.split(batch)])
    classes = victim.logits(where.centre[:1])[0].shape[1]
    fit = labels.dtype == torch.int64 and labels.shape == where.centre.shape[:1]
    if not fit or not bool(((labels >= 0) & (labels < classes)).all()):
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}: they must be int64, one class for each of "
            f"{len(where.centre)} samples, from 0 to {classes - 1}"
        )
    return labels.to(where.centre.device)


def _joined(parts: list[Search], x: Tensor, methods: tuple[AttackMethod, ...]) -> AttackResult:
    def of(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    success = of("fooled")
    return AttackResult(
        inputs=of("best").to(x.dtype).reshape(x.shape),
        labels=of("labels"),
        before=of("before"),
        after=of("margin"),
        success=success,
        unknown=~success & (of("suspect") | ~of("found")),
        evaluations=of("evaluations"),
        unconverged=of("unconverged"),
        methods=methods,
    )
