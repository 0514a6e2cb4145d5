"""Smaller models, and by how much their outputs can differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...constraints import InfNorm
from ...models import AffineForm, ImplicitModel
from ...models.structures import LowRank
from ..certificates.problem import Bounds
from ..regions import Region
from .building import build, double_form, in_double, storage
from .change import output_change
from .posed import Proof, settle
from .pruning import Exact, Magnitude
from .reduction import Evidence, Reduced, Reduction

__all__ = ["Compressed", "compress", "prune"]


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A smaller model, and what is known of it.

    Attributes:
        model: The model. Matrices of which at most half is nonzero are sparse, and keep their pattern in training.
        methods: How it came about.
        states: Which states of the first model it has, in its order.
        sizes: States before and after.
        weights: Numbers in A, B, C and D that are not zero, before and after; of a low rank, entries of the factors.
        bits: What storing these takes, before and after: each nonzero with its bits, a table where values are shared,
            and a bit for each entry of a matrix that has zeros.
        proof: What proves that the model is well-posed.
        shrunk: What A was multiplied by to make it so.
        change: Bounds of y − y′ over the region, both (batch, outputs), or None if there is no region.
        measured: The largest |y − y′| on data, or None.
        accuracy: On labelled data, before and after, or None.
    """

    model: ImplicitModel
    methods: tuple[Reduction, ...]
    states: Tensor
    sizes: tuple[int, int]
    weights: tuple[int, int]
    bits: tuple[int, int]
    proof: Proof
    shrunk: float = 1.0
    change: Bounds | None = None
    measured: float | None = None
    accuracy: tuple[float, float] | None = None

    @property
    def bound(self) -> Tensor | None:
        """The largest |y − y′| over the region that is not excluded, for each sample, (batch,)."""
        return None if self.change is None else self.change.size.amax(1)

    def __str__(self) -> str:
        def pair(name: str, values: tuple[int, int]) -> str:
            return f"{name}: {values[0]} -> {values[1]} ({values[1] / max(1, values[0]):.1%})"

        lines = [
            " + ".join(map(repr, self.methods)),
            *(pair(*item) for item in (("states", self.sizes), ("weights", self.weights), ("bits", self.bits))),
            f"well-posed by {self.proof.criterion}, margin {self.proof.margin:.3g}",
        ]
        if self.shrunk < 1:
            lines.append(f"A was multiplied by {self.shrunk:.3g} for that")
        if self.change is not None:
            lines.append(f"outputs differ by at most {float(self.change.size.max()):.3g} over the region")
        if self.measured is not None:
            lines.append(f"outputs differ by at most {self.measured:.3g} on data")
        if self.accuracy is not None:
            lines.append(f"accuracy: {self.accuracy[0]:.2%} -> {self.accuracy[1]:.2%}")
        return "\n".join(lines)


def prune(
    model: nn.Module,
    method: Reduction = Magnitude(keep=0.2),
    *,
    region: Region | None = None,
    x: Tensor | None = None,
    labels: Tensor | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Compressed:
    """The model without some of its weights, and without the states that can then go without changing the outputs.

    That is ``compress(model, method, Exact(linear=False))``.

    Examples:
        >>> from implicitnets.analysis import region
        >>> from implicitnets.analysis.structure import Magnitude
        >>> model = ImplicitModel(8, 20, 3).double()
        >>> cube = region(torch.zeros(1, 8).double(), 1.0)
        >>> smaller = prune(model, Magnitude(keep=0.5), region=cube)
        >>> smaller.weights, bool(smaller.bound.isfinite())
        ((644, 322), True)

    Args:
        model: As for ``compress``, and so are the others.
        method: What goes: ``Magnitude``, ``Salience``, ``States``, ``Inputs``, ``Shrink``, or another one.
        region: A region of inputs.
        x: Inputs.
        labels: Their classes.
        input_shape: Shape of one input.

    Raises:
        ValueError: As ``compress``.
        TypeError: As ``compress``.
    """
    return compress(model, method, Exact(linear=False), region=region, x=x, labels=labels, input_shape=input_shape)


@torch.no_grad()
def compress(
    model: nn.Module,
    *methods: Reduction,
    region: Region | None = None,
    x: Tensor | None = None,
    labels: Tensor | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Compressed:
    """A well-posed ``ImplicitModel`` with fewer states, weights or bits, and a bound of the change of the outputs.

    The methods are applied one after the other. If the result is not proved to be well-posed, its A is multiplied by
    the factor that makes ‖A‖∞ as small as it was bounded to be before (0.95, where there was no such bound). Where
    nothing is fed back any more, the states are ordered by layers and found in one pass.

    The bound is of the equilibria of the two models, all of them if there are several, over all inputs of the region;
    it is a proof, in which rounding is accounted for.

    Examples:
        >>> from implicitnets.analysis.structure import LowRank, Quantize
        >>> model = ImplicitModel(8, 20, 3)
        >>> print(compress(model, LowRank(rank=3), Quantize(bits=8, matrices="BCD")))  # doctest: +ELLIPSIS
        LowRank(rank=3, sparse=None) + Quantize(bits=8, matrices='BCD')
        states: 20 -> 20 (100.0%)
        weights: 644 -> ...
        ...

    Args:
        model: An implicit model, or another one with an affine form (``models.affine``). It is not changed.
        methods: ``Exact()``, which is what is done if there is none; ``LowRank``, ``Quantize``, ``Share``, ``Match``,
            and those of ``prune``.
        region: A region of inputs, ``analysis.region(...)``. ``Exact`` uses what is true there, and the change of the
            outputs is bounded there.
        x: Inputs, (samples, ...): for methods that look at data, and to measure the change of the outputs.
        labels: Classes of these inputs, (samples,), to measure accuracy.
        input_shape: Shape of one input, where the model does not say it.

    Raises:
        ValueError: If an argument does not fit the others, or the result can't be made well-posed.
        TypeError: If something is not a ``Reduction``.
    """
    methods = methods or (Exact(),)
    for method in methods:
        if not isinstance(method, Reduction):
            raise TypeError(f"{method!r} is not a way to compress: write for instance Quantize(bits=8)")
    if labels is not None and (x is None or len(labels) != len(x)):
        raise ValueError("labels are the classes of x: pass both, as many")
    form = double_form(model, input_shape)
    evidence = Evidence(
        region=None if region is None else in_double(region, form), x=None if x is None else x.flatten(1).double()
    )
    first = reduced = _numbered(Reduced.of(form), model)
    for method in methods:
        reduced = method(reduced, evidence)
    dtype, constraint = next(model.parameters()).dtype, getattr(model, "constraint", None)
    kappa = constraint.kappa if isinstance(constraint, InfNorm) else None
    reduced, found, factor = settle(reduced, dtype, kappa)
    smaller, reduced = build(model, reduced, found)
    entry = torch.finfo(dtype).bits
    weights, bits = zip(storage(first, entry), storage(reduced, entry), strict=True)
    result = Compressed(
        model=smaller,
        methods=methods,
        states=reduced.states,
        sizes=(form.states, reduced.form.states),
        weights=weights,
        bits=bits,
        proof=found,
        shrunk=factor,
    )
    after = double_form(smaller, None)
    if evidence.region is not None:
        result = replace(result, change=output_change(form, after, reduced.states, reduced.rows, evidence.region))
    if evidence.x is not None:
        result = replace(result, measured=float((_outputs(form, evidence.x) - _outputs(after, evidence.x)).abs().max()))
    return result if x is None or labels is None else replace(result, accuracy=_accuracy(model, smaller, x, labels))


def _numbered(first: Reduced, model: nn.Module) -> Reduced:
    """With how many numbers the A of a model of low rank is stored as."""
    if not isinstance(getattr(model, "structure", None), LowRank):
        return first
    parts: Any = model.A_parts
    return replace(first, numbers=sum(part.numel() for part in parts.parameters()))


def _outputs(form: AffineForm, u: Tensor) -> Tensor:
    return form.readout(form.solve(u).value, u)


def _accuracy(before: nn.Module, after: nn.Module, x: Tensor, labels: Tensor) -> tuple[float, float]:
    first, second = (float((y.argmax(1) == labels).double().mean()) for y in (before(x), after(x.flatten(1))))
    return first, second
