"""The affine form of a whole module: an equilibrium, or a sequence with equilibria in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, groupby
from typing import Any

import torch
from torch import Tensor, nn

from ..activations import Blocks
from .affine import AffineForm, NotAffine
from .convert import from_sequential
from .deq import Equilibrium

__all__ = ["affine"]

Linear = tuple[Tensor, Tensor]


def affine(model: nn.Module, input_shape: tuple[int, ...] | None = None) -> AffineForm:
    """The model as x = φ(Ax + Bu + b), y = Cx + Du + c, u its flattened input and y its flattened output.

    The model may have an affine form of its own, be a sequence of such models, linear layers, ``nn.Flatten`` and other
    layers that ``from_sequential`` converts, or be a network that it converts. The form is differentiable in the
    parameters, and has their dtype; what ``from_sequential`` had to convert is not differentiable, and refused where
    gradients are recorded.

    Examples:
        >>> from implicitnets.models import MonotoneDEQ
        >>> model = nn.Sequential(nn.Flatten(), MonotoneDEQ(64, 20), nn.Linear(20, 10))
        >>> form = affine(model, (1, 8, 8))
        >>> form.A.shape, form.C.shape
        (torch.Size([20, 20]), torch.Size([10, 20]))

    Args:
        model: The module.
        input_shape: Shape of one input, where the model does not say it.

    Raises:
        NotAffine: If the model, or a layer of it, has no such form.
        ValueError: If input_shape is needed, or does not fit, or a layer is in training mode that differs in it.
    """
    if isinstance(model, Equilibrium):
        return model.affine(input_shape)
    if not any(isinstance(module, Equilibrium) for module in model.modules()):
        return _converted(model, input_shape)
    if not isinstance(model, nn.Sequential):
        raise NotAffine(
            f"{type(model).__name__} holds an equilibrium and is no nn.Sequential, so its form is not known: "
            "write it as nn.Sequential(...)"
        )
    return _fold(list(_flat(model)), input_shape)


def _flat(model: nn.Module) -> Iterator[nn.Module]:
    for child in model.children():
        yield from _flat(child) if isinstance(child, nn.Sequential) else (child,)


def _fold(layers: list[nn.Module], shape: tuple[int, ...] | None) -> AffineForm:
    """The cascade of equilibria and the runs of layers between them."""
    form: AffineForm | None = None
    like = next(chain.from_iterable(layer.parameters() for layer in layers)).detach()[:0]
    first: Linear | None = None  # what comes before the first states
    for equilibrium, group in groupby(layers, lambda layer: isinstance(layer, Equilibrium)):
        run: list[Any] = list(group)
        parts: list[Any] = run if equilibrium else _run(run, shape, like)
        for part in parts:
            if not isinstance(part, tuple):
                own: AffineForm = part.affine(shape) if equilibrium else part
                later = own if first is None else own.before(*first)
                form, first = later if form is None else form.cascade(later), None
                shape = form.output_shape or (form.outputs,)
            elif form is not None:
                form, shape = form.then(*part), (len(part[1]),)
            else:
                first = part if first is None else (part[0] @ first[0], part[0] @ first[1] + part[1])
                shape = (len(part[1]),)
    assert form is not None  # there is an equilibrium
    return form


def _run(layers: list[nn.Module], shape: tuple[int, ...] | None, like: Tensor) -> list[Linear | AffineForm]:
    """What feed-forward layers do to a flattened tensor: linear maps, or a form."""
    if all(isinstance(layer, nn.Flatten | nn.Identity | nn.Dropout | nn.Linear) for layer in layers):
        return [(layer.weight, _bias(layer)) for layer in layers if isinstance(layer, nn.Linear)]
    network = nn.Sequential(*layers)
    network.register_buffer("like", like)  # pooling alone would not know its dtype
    form = _converted(network, shape)
    if Blocks((form.activation, form.rows)).blocks == (("identity", form.rows),) and not form.A.any():
        return [(form.C @ form.B + form.D, form.C @ form.b + form.c)]
    return [form]


def _bias(layer: nn.Linear) -> Tensor:
    bias: Tensor | None = layer.bias
    return layer.weight.new_zeros(layer.out_features) if bias is None else bias


def _converted(network: nn.Module, shape: tuple[int, ...] | None) -> AffineForm:
    """The form of a feed-forward network, detached.

    Raises:
        NotAffine: If it can't be converted, or derivatives are wanted.
        ValueError: If the shape is needed.
    """
    name = ", ".join(type(layer).__name__ for layer in network) if isinstance(network, nn.Sequential) else ""
    name = name or type(network).__name__
    if shape is None:
        raise ValueError(f"input_shape is needed for {name}: the shape of one input, e.g. (1, 28, 28)")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in network.parameters()):
        raise NotAffine(
            f"the affine form of {name} is not differentiable in the parameters: call it under torch.no_grad(), or "
            "convert the network by from_sequential first, and train the model that comes of it"
        )
    try:
        form = from_sequential(network, shape).affine()
    except TypeError as error:
        raise NotAffine(f"{name} has no affine form: {error}") from error
    with torch.no_grad():
        out = network(form.B.new_zeros(1, *shape))
    return replace(form, output_shape=tuple(out.shape[1:])).map(Tensor.detach)
