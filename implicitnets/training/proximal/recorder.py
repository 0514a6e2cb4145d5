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

from ...models import Equilibrium
from .discovery import Found, layer_input, replay
from .layers import Layer

__all__ = ["Pass", "Recorder"]


Call = tuple[Equilibrium, Callable[..., Any], Any, tuple[Any, ...]]
"""A solve: whose, of which map, its solution, and its inputs."""


@dataclass
class Pass:
    """What is seen of one backward pass.

    Attributes:
        calls: The inputs of calls that it goes through, by their layer.
        solves: The solves that it goes through.
        before: The parameters whose gradients it reaches, and what their ``.grad`` was.
    """

    calls: dict[Layer, dict[int, tuple[Tensor, ...]]] = field(default_factory=dict)
    solves: dict[int, Call] = field(default_factory=dict)
    before: dict[nn.Parameter, Tensor | None] = field(default_factory=dict)


class Recorder:
    """Keeps a ``Pass`` for each backward pass that is running, and hands it over when that is at its end.

    An input is noted by a hook on the output of its layer: it is kept as long as the graph is, and counts only where a
    pass goes through it. What is called while an equilibrium is solved or differentiated does not count: for the layers
    in it, the map is evaluated once more at the solution. A parameter's hook does nothing but set ``.grad`` aside, so
    that it does not matter how often it is called, as it is in the passes that solve an adjoint equation.

    Args:
        found: The layers.
        settle: What takes a pass that is over.
    """

    def __init__(self, found: Found, settle: Callable[[Pass], None]) -> None:
        self._found, self._settle = found, settle
        self._passes: dict[int, Pass] = {}
        self._hooks: list[RemovableHandle] = []
        self._solving, self._replaying = 0, False

    def attach(self) -> None:
        """Register the hooks, if they are not."""
        if self._hooks:
            return
        found, add = self._found, self._hooks.append
        for module, layer in found.modules.items():
            add(module.register_forward_hook(partial(self._saw_layer, layer), with_kwargs=True))
        for model, layers in found.models.items():
            add(model.register_forward_hook(partial(self._saw_model, layers), with_kwargs=True))
        for layer in found.layers:
            for leaf in layer.leaves:
                add(leaf.register_hook(partial(self._saw_gradient, leaf)))
        for owner in found.equilibria:
            setattr(owner, "equilibrium", partial(self._solve, owner))  # noqa: B010  (over the method, for this one)

    def remove(self) -> None:
        """Take them away."""
        while self._hooks:
            self._hooks.pop().remove()
        for owner in self._found.equilibria:
            vars(owner).pop("equilibrium", None)

    def inputs(self, seen: Pass, layers: Sequence[Layer]) -> dict[Layer, list[tuple[Tensor, ...]]]:
        """The inputs of these layers in a pass."""
        known = {layer: list(calls.values()) for layer, calls in seen.calls.items()}
        modules = {module: layer for module, layer in self._found.modules.items() if layer in layers}
        self._replaying = True
        try:
            for owner, f, z, inputs in seen.solves.values() if modules else ():
                for layer, rows in replay(partial(f, z, *inputs), modules, owner).items():
                    known.setdefault(layer, []).extend((x,) for x in rows)
        finally:
            self._replaying = False
        return known

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
        if output.requires_grad and not self._solving:
            output.register_hook(partial(self._record, [layer], (layer_input(args, kwargs).detach(),)))

    def _saw_model(
        self,
        layers: Sequence[Layer],
        model: Equilibrium,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> None:
        if output.requires_grad and not self._solving and model.forward_solution is not None:
            u = args[0] if args else kwargs["u"]
            output.register_hook(partial(self._record, layers, (model.forward_solution.value, u.detach())))

    def _solve(self, owner: Equilibrium, f: Callable[..., Any], z0: Any, *inputs: Any) -> Any:
        """In place of the owner's ``equilibrium``.

        Raises:
            RuntimeError: If it is a part of another equilibrium.
        """
        if self._replaying:
            raise RuntimeError(
                f"{type(owner).__name__} is solved inside the map of another equilibrium, where its layers have no "
                "inputs of their own: proxprop can't take such a model"
            )
        self._solving += 1
        try:
            value = type(owner).equilibrium(owner, f, z0, *inputs)
        finally:
            self._solving -= 1
        if not self._solving and owner not in self._found.models and owner.forward_solution is not None:
            plain = _pytree.tree_map_only(Tensor, torch.detach, inputs)
            call = (owner, f, owner.forward_solution.value, plain)
            for leaf in _pytree.tree_leaves(value):
                if leaf.requires_grad:
                    leaf.register_hook(partial(self._record_solve, call))
        return value

    def _record(self, layers: Sequence[Layer], inputs: tuple[Tensor, ...], _: Tensor) -> None:
        for layer in layers:
            self._pass().calls.setdefault(layer, {})[id(inputs)] = inputs

    def _record_solve(self, call: Call, _: Tensor) -> None:
        self._pass().solves[id(call)] = call

    def _saw_gradient(self, leaf: nn.Parameter, _: Tensor) -> None:
        before = self._pass().before
        if leaf not in before:
            before[leaf], leaf.grad = leaf.grad, None  # so that what arrives is of this pass alone

    def _end(self, key: int) -> None:
        self._settle(self._passes.pop(key))
