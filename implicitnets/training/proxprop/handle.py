"""Hooks that make ``backward()`` leave proximal directions in place of gradients."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils.hooks import RemovableHandle

from ...models import DEQ, ImplicitModel
from .average import Average
from .constrained import Projection, project
from .discovery import Found, find, layer_input, replay
from .gauss_newton import gauss_newton
from .layers import Layer
from .metric import Metric, working

__all__ = ["ProxPropHandle"]


@dataclass
class _Pass:
    """What is seen of one backward pass: inputs of layers by calls, equilibria, and gradients from before it."""

    records: dict[Layer, dict[int, tuple[Tensor, ...]]] = field(default_factory=dict)
    equilibria: dict[int, tuple[DEQ, Any, tuple[Any, ...]]] = field(default_factory=dict)
    before: dict[nn.Parameter, Tensor | None] = field(default_factory=dict)


class ProxPropHandle:
    """What ``proxprop`` returns: it holds the hooks, and is a context manager that removes them.

    The hooks see of a backward pass which calls of which layers it goes through, and when the pass is over, the sum of
    its contributions to a ``.grad`` is replaced, once for each layer. Nothing of it runs inside the passes that solve
    an adjoint equation. ``torch.autograd.grad`` returns gradients as they are.

    Attributes:
        solves: How many linear systems were solved so far: one for each layer (and group of a convolution) and pass.
        weights: The names of the weights that get proximal steps.
    """

    def __init__(self, model: nn.Module, *, tau: float, method: str, cg_steps: int, ema: float, head: bool) -> None:
        self._found: Found = find(model, head=head)
        self._model, self.tau, self.method, self.cg_steps = model, tau, method, cg_steps
        self._averages = {layer: Average(ema) for layer in self._found.layers} if ema else {}
        for layer, name in self._found.names.items():
            if not layer.plain and method not in ("auto", "cg"):
                raise ValueError(
                    f"method={method!r} has no form for {name or type(model).__name__!r}, which is parametrized: write "
                    "method='auto' or 'cg'"
                )
        self.solves = 0
        self._passes: dict[int, _Pass] = {}
        self._hooks: list[RemovableHandle] = []
        self._metrics: dict[Layer, list[Metric]] = {}
        self._duals: dict[str, Tensor] = {}

    @property
    def weights(self) -> list[str]:  # noqa: D102
        return [_path(name, w.name) for layer, name in self._found.names.items() for w in layer.weights]

    def attach(self) -> ProxPropHandle:
        """Register the hooks, if they are not; returns itself."""
        if self._hooks:
            return self
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
        return self

    def remove(self) -> None:
        """Take the hooks away: gradients are gradients again."""
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> ProxPropHandle:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.remove()

    def project(
        self, name: str, kappa: float = 0.95, *, metric: str = "proximal", rtol: float = 1e-6, max_steps: int = 1000
    ) -> Projection:
        """Bring a weight back to ‖W‖∞ ≤ kappa after an optimizer's step, and the layer's other weights with it.

        With Θ the layer's weights as they are after the step, M = I + τ SᵀS/n of the last backward pass, and C the
        Θ whose columns of that weight have rows in the ℓ1 ball of radius kappa,

            Θ⁺ = argmin ½ ‖Θ⁺ − Θ‖²_M over C.

        After a plain step Θₖ − lr V from a Θₖ in C this is the solution of the proximal problem under the
        constraint, and ⟨G, Θ⁺ − Θₖ⟩ ≤ −‖Θ⁺ − Θₖ‖²_M / lr: a direction of descent. The nearest point in the Euclidean
        sense can be one of ascent. In both, the solution is found for each row on its own.

        Args:
            name: The weight as ``model.named_parameters()`` has it; it must not be parametrized.
            kappa: The bound, positive.
            metric: "proximal", or "euclidean" for the nearest point.
            rtol: Tolerance of the iteration, relative to the size of a row.
            max_steps: Of the iteration.

        Returns:
            The record: per row, whether it converged, in how many steps, and its residual.

        Raises:
            ValueError: If there is no such weight, an option is out of range, or no backward pass has been.

        Warns:
            ConvergenceWarning: If a row did not converge. The weight satisfies the constraint all the same.
        """
        layer, index = self._weight(name)
        if metric not in ("proximal", "euclidean"):
            raise ValueError(f"metric={metric!r} must be 'proximal' or 'euclidean'")
        if layer not in self._metrics:
            raise ValueError(f"the metric of {name!r} is that of a backward pass: call loss.backward() first")
        values = [weight.leaves[0].detach() for weight in layer.weights]
        widths = [value[:1].numel() for value in values]
        columns = slice(sum(widths[:index]), sum(widths[: index + 1]))
        record = project(
            layer.matrix(values),
            None if metric == "euclidean" else self._metrics[layer][0],
            columns,
            kappa,
            start=self._duals.get(name),
            rtol=rtol,
            max_steps=max_steps,
        )
        self._duals[name] = record.dual
        with torch.no_grad():
            for value, part in zip(values, layer.parts(record.value), strict=True):
                value.copy_(part)
        return record

    def state_dict(self) -> dict[str, Tensor]:
        """The running averages, if there are any."""
        return {
            f"{i}.{key}": value
            for i, average in enumerate(self._averages.values())
            for key, value in average.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state_dict`` gave."""
        for i, average in enumerate(self._averages.values()):
            prefix = f"{i}."
            average.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def _weight(self, name: str) -> tuple[Layer, int]:
        """The layer of a weight, and which of its weights it is.

        Raises:
            ValueError: If there is none of that name.
        """
        known = {}
        for layer, module in self._found.names.items():
            for i, weight in enumerate(layer.weights):
                if weight.plain and layer.groups == 1 and len(weight.shape) == 2:
                    known[_path(module, weight.name)] = (layer, i)
        if name not in known:
            raise ValueError(f"no weight that can be projected is called {name!r}. There are: {', '.join(known)}")
        return known[name]

    # What the hooks do.

    def _pass(self) -> _Pass:
        """The record of the backward pass that is running."""
        key = torch._C._current_graph_task_id()
        if key not in self._passes:
            self._passes[key] = _Pass()
            torch.autograd.Variable._execution_engine.queue_callback(partial(self._settle, key))
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
            self._pass().records.setdefault(layer, {})[id(inputs)] = inputs

    def _record_deq(self, call: tuple[DEQ, Any, tuple[Any, ...]], _: Tensor) -> None:
        self._pass().equilibria[id(call)] = call

    def _saw_gradient(self, leaf: nn.Parameter, _: Tensor) -> None:
        before = self._pass().before
        if leaf not in before:
            before[leaf], leaf.grad = leaf.grad, None  # so that what arrives is of this pass alone

    def _settle(self, key: int) -> None:
        """At the end of a pass: the gradients that arrived become directions, and are added to those from before."""
        seen = self._passes.pop(key)
        arrived = {leaf for leaf in seen.before if leaf.grad is not None}
        layers = [layer for layer in self._found.layers if not arrived.isdisjoint(layer.leaves)]
        try:
            self._replay(seen, layers)
            with torch.no_grad():
                for layer in layers:
                    self._change(layer, list(seen.records.get(layer, {}).values()))
        finally:
            for leaf, old in seen.before.items():
                if old is not None:
                    leaf.grad = old if leaf.grad is None else old + leaf.grad

    def _replay(self, seen: _Pass, layers: Sequence[Layer]) -> None:
        """Find the inputs of layers at equilibria."""
        for deq, z, inputs in seen.equilibria.values():
            cell = {module: layer for module, layer in self._found.cells[deq].items() if layer in layers}
            for layer, calls in (replay(deq, cell, z, inputs) if cell else {}).items():
                for x in calls:
                    seen.records.setdefault(layer, {})[id(x)] = (x,)

    def _change(self, layer: Layer, records: Sequence[tuple[Tensor, ...]]) -> None:
        """Put directions in place of the gradients of a layer.

        Raises:
            RuntimeError: If a gradient has a graph.
        """
        there = [leaf for leaf in layer.leaves if leaf.grad is not None]
        if any(leaf.grad.requires_grad for leaf in there if leaf.grad is not None):
            raise RuntimeError(
                "backward(create_graph=True) under proxprop would cut the graph of the gradients: use "
                "torch.autograd.grad, which returns them as they are"
            )
        if not records:
            name = self._found.names[layer] or type(layer.module).__name__
            warnings.warn(
                f"the weights of {name!r} were used without calling it, so its inputs are not known and its gradient "
                "is left plain",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        gradient = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in layer.leaves]
        if not all(bool(g.isfinite().all()) for g in gradient):
            return  # such as a loss scaler looks for
        metrics = layer.metrics(records, self.tau)
        if layer in self._averages:
            metrics = self._averages[layer].update(metrics)
        self._metrics[layer] = metrics
        directions = self._directions(layer, metrics, [g.to(working(g.dtype)) for g in gradient])
        for leaf, direction in zip(layer.leaves, directions, strict=True):
            if leaf.grad is not None:
                leaf.grad = direction.to(leaf.grad.dtype)

    def _directions(self, layer: Layer, metrics: Sequence[Metric], gradient: Sequence[Tensor]) -> list[Tensor]:
        self.solves += len(metrics) if layer.plain else 1
        if not layer.plain:
            return gauss_newton(layer, metrics, gradient, self.cg_steps)
        parts = layer.matrix(gradient).chunk(len(metrics), 0)
        solved = [m.solve(g, self.method, self.cg_steps) for m, g in zip(metrics, parts, strict=True)]
        return layer.parts(torch.cat(solved))


def _path(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name
