"""Hooks that see of a backward pass which calls of which layers it goes through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils.hooks import RemovableHandle

from ...models import DEQ, ImplicitModel
from .discovery import Found, layer_input, replay
from .layers import Layer

__all__ = ["Pass", "Recorder"]


@dataclass
class Pass:
    """What is seen of one backward pass.

    Attributes:
        calls: The inputs of calls that it goes through, by their layer.
        equilibria: DEQs with their solution and inputs.
        before: The parameters whose gradients it reaches, and what their ``.grad`` was.
    """

    calls: dict[Layer, dict[int, tuple[Tensor, ...]]] = field(default_factory=dict)
    equilibria: dict[int, tuple[DEQ, Any, tuple[Any, ...]]] = field(default_factory=dict)
    before: dict[nn.Parameter, Tensor | None] = field(default_factory=dict)

    def inputs(self, found: Found, layers: Sequence[Layer]) -> dict[Layer, list[tuple[Tensor, ...]]]:
        """The inputs of these layers. The cell of a DEQ is evaluated for them, once, at its solution."""
        known = {layer: list(calls.values()) for layer, calls in self.calls.items()}
        for deq, z, inputs in self.equilibria.values():
            cell = {module: layer for module, layer in found.cells[deq].items() if layer in layers}
            for layer, seen in (replay(deq, cell, z, inputs) if cell else {}).items():
                known.setdefault(layer, []).extend((x,) for x in seen)
        return known


class Recorder:
    """Keeps a ``Pass`` for each backward pass that is running, and hands it over when that is at its end.

    An input is noted by a hook on the output of its layer: it is kept as long as the graph is, and counts only where a
    pass goes through it. A parameter's hook does nothing but set ``.grad`` aside, so that it does not matter how often
    it is called, as it is in the passes that solve an adjoint equation.

    Args:
        found: The layers.
        settle: What takes a pass that is over.
    """

    def __init__(self, found: Found, settle: Callable[[Pass], None]) -> None:
        self._found, self._settle = found, settle
        self._passes: dict[int, Pass] = {}
        self._hooks: list[RemovableHandle] = []

    def attach(self) -> None:
        """Register the hooks, if they are not."""
        if self._hooks:
            return
        found, add = self._found, self._hooks.append
        for module, layer in found.direct.items():
            add(module.register_forward_hook(partial(self._saw_layer, layer), with_kwargs=True))
        for model, layers in found.equilibria.items():
            add(model.register_forward_hook(partial(self._saw_model, layers), with_kwargs=True))
        for deq in found.cells:
            add(deq.register_forward_hook(self._saw_deq))
        for layer in found.layers:
            for leaf in layer.leaves:
                add(leaf.register_hook(partial(self._saw_gradient, leaf)))

    def remove(self) -> None:
        """Take them away."""
        while self._hooks:
            self._hooks.pop().remove()

    def _pass(self) -> Pass:
        """The record of the backward pass that is running."""
        key = torch._C._current_graph_task_id()
        if key not in self._passes:
            self._passes[key] = Pass()
            torch.autograd.Variable._execution_engine.queue_callback(partial(self._end, key))
        return self._passes[key]

    def _saw_layer(
        self, layer: Layer, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        if output.requires_grad:
            output.register_hook(partial(self._record, [layer], (layer_input(args, kwargs).detach(),)))

    def _saw_model(
        self,
        layers: Sequence[Layer],
        model: ImplicitModel,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> None:
        if output.requires_grad and model.forward_solution is not None:
            u = args[0] if args else kwargs["u"]
            output.register_hook(partial(self._record, layers, (model.forward_solution.value, u.detach())))

    def _saw_deq(self, deq: DEQ, inputs: tuple[Any, ...], output: Any) -> None:
        if deq.forward_solution is None:
            return
        call = (deq, deq.forward_solution.value, _pytree.tree_map_only(Tensor, torch.detach, inputs))
        for leaf in _pytree.tree_leaves(output):
            if leaf.requires_grad:
                leaf.register_hook(partial(self._record_deq, call))

    def _record(self, layers: Sequence[Layer], inputs: tuple[Tensor, ...], _: Tensor) -> None:
        for layer in layers:
            self._pass().calls.setdefault(layer, {})[id(inputs)] = inputs

    def _record_deq(self, call: tuple[DEQ, Any, tuple[Any, ...]], _: Tensor) -> None:
        self._pass().equilibria[id(call)] = call

    def _saw_gradient(self, leaf: nn.Parameter, _: Tensor) -> None:
        before = self._pass().before
        if leaf not in before:
            before[leaf], leaf.grad = leaf.grad, None  # so that what arrives is of this pass alone

    def _end(self, key: int) -> None:
        self._settle(self._passes.pop(key))
