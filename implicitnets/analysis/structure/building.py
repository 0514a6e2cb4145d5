"""Forms as models again, and what storing them takes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ...activations import plain
from ...constraints import InfNorm
from ...models import AffineForm, ImplicitModel, affine
from ...models.structures import LowRank
from ..regions import Region
from .order import order
from .posed import Proof
from .reduction import Reduced

__all__ = ["build", "double_form", "in_double", "storage"]

SPARSE = 0.5
"""Matrices of which no larger share is nonzero are stored as their nonzeros."""


def double_form(model: nn.Module, input_shape: tuple[int, ...] | None) -> AffineForm:
    """The form of a model in float64, detached."""
    with torch.no_grad():
        return affine(copy.deepcopy(model).double().eval(), input_shape).map(Tensor.detach)


def in_double(region: Region, form: AffineForm) -> Region:
    """The region in float64.

    Raises:
        ValueError: If it is one of other inputs.
    """
    inputs = region.centre.shape[1]
    if inputs != form.inputs:
        raise ValueError(f"region is of inputs with {inputs} entries, and the model takes {form.inputs}")
    parts: dict[str, Any] = {k: v.double() if isinstance(v, Tensor) else v for k, v in vars(region).items()}
    return type(region)(**parts)


def storage(model: Reduced, entry: int) -> tuple[int, int]:
    """How many numbers A, B, C and D are stored as, and bits.

    Args:
        model: The model.
        entry: Bits of a number that nothing was done to.
    """
    numbers = bits = 0
    for name in "ABCD":
        weight: Tensor = getattr(model.form, name)
        count, all_entries = int((weight != 0).sum()), weight.numel()
        if name == "A" and model.factors is not None:
            count = all_entries = sum(part.numel() for part in model.factors)
        elif name == "A" and model.numbers is not None:
            count = model.numbers
        each, table = model.bits.get(name, (entry, 0))
        numbers += count
        bits += each * count + entry * table + (all_entries if count < all_entries else 0)
    return numbers, bits


def build(original: nn.Module, model: Reduced, proof: Proof) -> tuple[ImplicitModel, Reduced]:
    """The model of a form whose weights are numbers of the dtype of the original; and the form in its order of states.

    Args:
        original: Where dtype, device and strategies come from.
        model: The form.
        proof: What makes it well-posed.
    """
    like = next(original.parameters())
    sizes, constraint = None, None
    if proof.criterion == "feed-forward":
        found = order(model.form)
        model, sizes = model.take(found.permutation), found.sizes
    elif isinstance(getattr(original, "constraint", None), InfNorm) and proof.criterion == "infinity norm":
        constraint = _kept(original.constraint, model.form)  # type: ignore[arg-type]
    options: dict[str, Any] = {"constraint": constraint, "activation": plain(model.form.activation)}
    if isinstance(original, ImplicitModel) and original.solver is not None and sizes is None:
        options |= {"solver": original.solver, "backward": original.backward, "start": original.start}
    weights = {name: getattr(model.form, name).to(like) for name in ("A", "B", "C", "D", "b", "c")}
    if getattr(original, "bias", True) is False and not (weights["b"].any() or weights["c"].any()):
        del weights["b"], weights["c"]
    if model.factors is not None and sizes is None:
        return _low_rank(model.factors, weights, options), model
    for name in "ABCD":
        if (weights[name] != 0).double().mean() <= SPARSE:
            weights[name] = weights[name].to_sparse()
    return ImplicitModel.from_matrices(**weights, **options, sizes=sizes), model


def _kept(constraint: InfNorm, form: AffineForm) -> InfNorm:
    """The constraint, with a bound that A keeps."""
    norm = float(form.A.abs().sum(1).max())
    return constraint if norm <= constraint.kappa * (1 + 1e-6) else InfNorm(kappa=norm * (1 + 1e-6))


def _low_rank(factors: tuple[Tensor, ...], weights: dict[str, Tensor], options: dict[str, Any]) -> ImplicitModel:
    """A model with the structure ``LowRank``; its constraint is dropped where the factors do not keep it."""
    B, C = weights["B"], weights["C"]
    structure = LowRank(rank=factors[1].shape[1])
    diagonal, left, right = factors
    bound = options["constraint"]
    if bound is not None:
        sums = diagonal.abs() + left.abs() @ right.abs().sum(0)
        options = options | {"constraint": bound if float(sums.max()) <= bound.kappa else None}
    with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
        model = ImplicitModel(
            B.shape[1], B.shape[0], C.shape[0], structure=structure, bias="b" in weights, **options
        ).to(B)
    for name in set(weights) - {"A"}:
        getattr(model, name).data.copy_(weights[name])
    for name, part in zip(("diagonal", "left", "right"), factors, strict=True):
        getattr(model.A_parts, name).data.copy_(part)
    return model
