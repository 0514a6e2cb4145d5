"""The layers of a model that a proximal step changes, and where their inputs come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import type_before_parametrizations

from ...models import DEQ, ImplicitModel
from .layers import LAYERS, Layer, OutputLayer, StateLayer

__all__ = ["Found", "find", "replay"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The layers of a model.

    Attributes:
        direct: Those whose inputs are what their module is called with.
        equilibria: Those of each ImplicitModel, whose inputs are its equilibrium and its input.
        cells: Those in the cell of each DEQ, whose inputs are those at the equilibrium.
        names: What the module of a layer is called in the model.
    """

    direct: dict[nn.Module, Layer]
    equilibria: dict[ImplicitModel, list[Layer]]
    cells: dict[DEQ, dict[nn.Module, Layer]]
    names: dict[Layer, str]

    @property
    def layers(self) -> list[Layer]:
        """All of them."""
        return list(self.names)


def find(model: nn.Module, *, head: bool) -> Found:
    """The layers of a model that have weights to train; the last layer of all only if ``head``.

    Raises:
        TypeError: If the model is not a module, or wrapped for several processes.
        ValueError: If there is no layer, an equilibrium inside the cell of another, or a parameter in two layers.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, not {model!r}")
    found = Found(direct={}, equilibria={}, cells={}, names={})
    inside: dict[nn.Module, DEQ] = {}
    last: Layer | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise TypeError("each rank has inputs of its own: proxprop takes the module inside DistributedDataParallel")
        if isinstance(module, (DEQ, ImplicitModel)) and module in inside:
            raise ValueError(f"{name} is an equilibrium inside the cell of another: proxprop can't tell its inputs")
        if isinstance(module, ImplicitModel):
            state, last = StateLayer(module), OutputLayer(module)
            found.equilibria[module] = [state, last]
            found.names.update({state: name, last: name})
        elif isinstance(module, DEQ):
            inside |= dict.fromkeys(module.cell.modules(), module)
            found.cells[module] = {}
            last = None
        elif kind := LAYERS.get(type_before_parametrizations(module)):
            layer = kind(module)
            found.names[layer] = name
            if module in inside:
                found.cells[inside[module]][module] = layer
            else:
                found.direct[module] = last = layer
    _drop(found, [layer for layer in found.layers if not layer.leaves or (layer is last and not head)])
    _check(model, found, last)
    return found


def _drop(found: Found, layers: list[Layer]) -> None:
    for layer in layers:
        found.names.pop(layer)
        found.direct.pop(layer.module, None)
        if isinstance(layer.module, ImplicitModel):
            found.equilibria[layer.module].remove(layer)
        for cell in found.cells.values():
            cell.pop(layer.module, None)


def _check(model: nn.Module, found: Found, last: Layer | None) -> None:
    if not found.names:
        hint = "" if last is None else ", besides its last one: write head='prox' to include that"
        raise ValueError(f"{type(model).__name__} has no layer that is trained and known to proxprop{hint}")
    owner: dict[nn.Parameter, Layer] = {}
    for layer in found.names:
        for leaf in layer.leaves:
            if leaf in owner:
                raise ValueError(
                    f"{found.names[owner[leaf]]!r} and {found.names[layer]!r} share a parameter: each has inputs of "
                    "its own, so there is no one proximal step for it"
                )
            owner[leaf] = layer


def replay(model: DEQ, layers: dict[nn.Module, Layer], z: Any, inputs: tuple[Any, ...]) -> dict[Layer, list[Tensor]]:
    """The inputs of the layers when the cell is evaluated once at z; no buffer or random state changes."""
    seen: dict[Layer, list[Tensor]] = {layer: [] for layer in layers.values()}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[layers[module]].append(layer_input(args, kwargs).detach())

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in layers]
    buffers = {name: buffer.clone() for name, buffer in model.cell.named_buffers()}
    devices = [p.device for p in model.cell.parameters() if p.device.type == "cuda"][:1]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            functional_call(model.cell, buffers, (z, *inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a layer was called with."""
    value: Tensor = args[0] if args else kwargs["input"]
    return value
