"""The layers of a model that a proximal step changes, and where their inputs come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from ...models import Equilibrium, ImplicitModel, UniqueEquilibrium
from .layers import LAYERS, HiddenLayer, Layer, OutputLayer, StateLayer

__all__ = ["Found", "find", "replay"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The layers of a model.

    Attributes:
        modules: Those that are modules, whose inputs are what these are called with.
        models: Those of each model z = φ(Wz + Uu + b), whose inputs are its equilibrium and its input.
        equilibria: The modules with an equilibrium inside, these models among them.
        names: What the module of a layer is called in the model.
    """

    modules: dict[nn.Module, Layer]
    models: dict[Equilibrium, list[Layer]]
    equilibria: list[Equilibrium]
    names: dict[Layer, str]

    @property
    def layers(self) -> list[Layer]:
        """All of them."""
        return list(self.names)


def find(model: nn.Module, *, head: bool) -> Found:
    """The layers of a model that have weights to train; the last layer of all only if ``head``.

    Raises:
        TypeError: If the model is not a module, or wrapped for several processes.
        ValueError: If there is no layer, or a parameter in two layers.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, not {model!r}")
    found = Found(modules={}, models={}, equilibria=[], names={})
    last: Layer | None = None
    within: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise TypeError("each rank has inputs of its own: proxprop takes the module inside DistributedDataParallel")
        if isinstance(module, Equilibrium):
            found.equilibria.append(module)
            last = None
            within.update(module.modules())
        if isinstance(module, ImplicitModel):
            state, last = StateLayer(module), OutputLayer(module)
            found.models[module] = [state, last]
            found.names.update({state: name, last: name})
        elif isinstance(module, UniqueEquilibrium) and type(module).forward is UniqueEquilibrium.forward:
            hidden = HiddenLayer(module)
            found.models[module] = [hidden]
            found.names[hidden] = name
        elif kind := LAYERS.get(type_before_parametrizations(module)):
            found.modules[module] = layer = kind(module)
            found.names[layer] = name
            last = last if module in within else layer
    _drop(found, [layer for layer in found.layers if not layer.leaves or (layer is last and not head)])
    _check(model, found, last)
    return found


def _drop(found: Found, layers: list[Layer]) -> None:
    for layer in layers:
        found.names.pop(layer)
        found.modules.pop(layer.module, None)
        for layers_of_model in found.models.values():
            if layer in layers_of_model:
                layers_of_model.remove(layer)


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


def replay(call: Callable[[], Any], layers: dict[nn.Module, Layer], owner: nn.Module) -> dict[Layer, list[Tensor]]:
    """The inputs of the layers in a call; no buffer of the owner and no random state changes."""
    seen: dict[Layer, list[Tensor]] = {layer: [] for layer in layers.values()}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[layers[module]].append(layer_input(args, kwargs).detach())

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in layers]
    buffers = [(buffer, buffer.clone()) for buffer in owner.buffers()]
    devices = [p.device for p in owner.parameters() if p.device.type == "cuda"][:1]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            call()
    finally:
        for hook in hooks:
            hook.remove()
        for buffer, before in buffers:
            if not torch.equal(buffer, before):
                buffer.copy_(before)
    return seen


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a layer was called with."""
    value: Tensor = args[0] if args else kwargs["input"]
    return value
