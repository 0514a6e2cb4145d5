"""What holds the hooks by which ``backward()`` leaves proximal directions in place of gradients."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .average import Average
from .constrained import Projection, project
from .discovery import Found, find
from .gauss_newton import gauss_newton
from .layers import Layer
from .metric import Metric, working
from .recorder import Pass, Recorder

__all__ = ["ProxPropHandle"]


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
        self._recorder = Recorder(self._found, self._settle)
        self._metrics: dict[Layer, list[Metric]] = {}
        self._duals: dict[str, Tensor] = {}

    @property
    def weights(self) -> list[str]:  # noqa: D102
        return [_path(name, w.name) for layer, name in self._found.names.items() for w in layer.weights]

    def attach(self) -> ProxPropHandle:
        """Register the hooks, if they are not; returns itself."""
        self._recorder.attach()
        return self

    def remove(self) -> None:
        """Take the hooks away: gradients are gradients again."""
        self._recorder.remove()

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

    def _settle(self, seen: Pass) -> None:
        """Turn the gradients that arrived in a pass into directions, and add them to those from before."""
        arrived = {leaf for leaf in seen.before if leaf.grad is not None}
        layers = [layer for layer in self._found.layers if not arrived.isdisjoint(layer.leaves)]
        try:
            inputs = self._recorder.inputs(seen, layers)
            with torch.no_grad():
                for layer in layers:
                    self._change(layer, inputs.get(layer, []))
        finally:
            for leaf, old in seen.before.items():
                if old is not None:
                    leaf.grad = old if leaf.grad is None else old + leaf.grad

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
