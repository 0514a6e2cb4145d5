"""A model as a chain of stages, which methods that work layer by layer go through from the last to the first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..backward import Implicit, Unroll
from ..models import DEQ, Equilibrium, ImplicitModel
from ..solvers import Picard
from .method import Loss, Trainer, Unsupported

__all__ = ["Dense", "Layer", "Readout", "Stage", "StageTrainer", "State", "Trace", "chain", "pull", "run"]

ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU, nn.Hardtanh, nn.SiLU, nn.GELU)


class Stage(ABC):
    """A map with parameters of its own, from a matrix (batch, entries) to another.

    Attributes:
        parameters: What is trained.
    """

    parameters: list[Tensor]

    @abstractmethod
    def output(self, x: Tensor) -> Tensor:
        """The output y of the stage, differentiable."""

    @abstractmethod
    def local(self, x: Tensor, y: Tensor) -> Tensor:
        """What the stage makes of x where y is held, where it depends on itself; y for the parameters that gave it."""

    def pulled(self, d: Tensor) -> Tensor:
        """The cotangent of ``local`` that the last cotangent d of the output became."""
        return d


class Layer(Stage):
    """y = σ(Y), with Y affine in x.

    Attributes:
        activation: σ, entry by entry; None for the identity.
    """

    activation: Callable[[Tensor], Tensor] | None = None

    @abstractmethod
    def affine(self, x: Tensor) -> Tensor:
        """The pre-activation Y."""

    @abstractmethod
    def weights(self) -> list[Tensor]:
        """What the affine map is made of, which constraints may have computed from the parameters."""

    def output(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.affine(x)
        return y if self.activation is None else self.activation(y)

    def columns(self, x: Tensor) -> Tensor | None:
        """S of (batch, columns) with Y = SΘᵀ, Θ being the parameters side by side; None if they are not the weights."""
        if [id(p) for p in self.parameters] != [id(p) for p in self.weights()]:
            return None
        bias = self.parameters[-1].dim() == 1
        return torch.cat((x, x.new_ones(len(x), 1)), 1) if bias else x

    def local(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return self.output(x)

    def slope(self, y: Tensor) -> Tensor:
        """σ′ at the pre-activation y, entry by entry."""
        if self.activation is None:
            return torch.ones_like(y)
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            return torch.autograd.grad(self.activation(leaf).sum(), leaf)[0]


class Dense(Layer):
    """Y = Wx + b."""

    def __init__(self, linear: nn.Linear, activation: Callable[[Tensor], Tensor] | None = None) -> None:
        self.linear, self.activation = linear, activation
        self.parameters = list(linear.parameters())

    def affine(self, x: Tensor) -> Tensor:  # noqa: D102
        y: Tensor = self.linear(x)
        return y

    def weights(self) -> list[Tensor]:  # noqa: D102
        return [self.linear.weight] if self.linear.bias is None else [self.linear.weight, self.linear.bias]


class Readout(Layer):
    """Y = Cx + Du + c of an implicit model, of (x, u) side by side."""

    def __init__(self, model: ImplicitModel) -> None:
        self.model = model
        self.parameters = _own(model, "CDc")

    def affine(self, x: Tensor) -> Tensor:  # noqa: D102
        state, u = x.split([x.shape[1] - self.model.inputs, self.model.inputs], 1)
        return self.model.readout(state, u)

    def weights(self) -> list[Tensor]:  # noqa: D102
        return [t for t in (self.model.C, self.model.D, self.model.c) if t is not None]


class State(Stage):
    """The equilibrium z = f(z, x), alone or, where a readout wants it, with x beside it."""

    def __init__(self, model: Equilibrium) -> None:
        if not isinstance(model.backward, Implicit):
            raise Unsupported(f"it needs the solution of the adjoint equation, which {model.backward!r} has not")
        self.model = model
        self.beside = isinstance(model, ImplicitModel)
        self.parameters = _own(model, "ABb") if isinstance(model, ImplicitModel) else list(model.parameters())

    def output(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._with_input(x, None)

    def local(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        with _one_application(self.model):
            return self._with_input(x, y[:, : y.shape[1] - x.shape[1]] if self.beside else y)

    def pulled(self, d: Tensor) -> Tensor:  # noqa: D102
        record = self.model.backward_solution
        assert record is not None
        u: Tensor = record.value
        return torch.cat((u, d[:, u.shape[1] :]), 1) if self.beside else u

    def _with_input(self, x: Tensor, z0: Tensor | None) -> Tensor:
        z: Tensor = self.model.state(x, z0) if isinstance(self.model, ImplicitModel) else self.model(x, z0=z0)
        return torch.cat((z, x), 1) if self.beside else z


@contextmanager
def _one_application(model: Equilibrium) -> Iterator[None]:
    """Within this block, the model applies its map once to the z0 that it is given."""
    before = {name: getattr(model, name) for name in ("solver", "backward", "forward_solution", "backward_solution")}
    model.solver, model.backward = Picard(atol=torch.inf), Unroll(steps=1, start="z0")
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)


def _own(model: nn.Module, letters: str) -> list[Tensor]:
    """The parameters behind the weights of these names, constrained and structured ones too."""
    within = tuple(start for letter in letters for start in (f"parametrizations.{letter}.", f"{letter}_parts."))
    return [p for name, p in model.named_parameters() if name in letters or name.startswith(within)]


def chain(model: nn.Module) -> list[Stage]:
    """The stages of an ``nn.Sequential`` of ``nn.Linear``, elementwise activations and equilibria, or of one of these.

    Raises:
        Unsupported: Naming the module that is not understood.
    """
    modules = [m for m in _flat(model) if not isinstance(m, (nn.Flatten, nn.Identity))]
    found: list[Stage] = []
    for index, module in enumerate(modules):
        match module:
            case nn.Linear():
                following = modules[index + 1] if index + 1 < len(modules) else None
                found.append(Dense(module, following if isinstance(following, ELEMENTWISE) else None))
            case ImplicitModel():
                found += [State(module), Readout(module)]
            case DEQ():
                found.append(State(module))
            case _ if isinstance(module, ELEMENTWISE) and index and isinstance(modules[index - 1], nn.Linear):
                pass
            case _:
                raise Unsupported(
                    f"it goes through nn.Linear, elementwise activations after them, DEQ and ImplicitModel in an "
                    f"nn.Sequential, and not through {type(module).__name__}"
                )
    return found


def _flat(model: nn.Module) -> list[nn.Module]:
    return [inner for m in model for inner in _flat(m)] if isinstance(model, nn.Sequential) else [model]


@dataclass(frozen=True)
class Trace:
    """A stage with the input and the output that it had.

    Attributes:
        stage: The stage.
        x: Its input, a leaf.
        y: Its output, differentiable with respect to the input and the parameters.
    """

    stage: Stage
    x: Tensor
    y: Tensor

    def pull(self, d: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The cotangents of the input and of the parameters, for the cotangent d of the output."""
        return pull(self.y, self.x, self.stage.parameters, d)


def pull(y: Tensor, x: Tensor, parameters: list[Tensor], d: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The cotangents of x and of the parameters, for the cotangent d of y."""
    d_x, *changes = torch.autograd.grad(y, [x, *parameters], d, materialize_grads=True)
    return d_x, changes


def run(stages: list[Stage], inputs: Tensor) -> list[Trace]:
    """All stages one after the other, each differentiable by itself."""
    traces, x = [], inputs.flatten(1)
    for stage in stages:
        leaf = x.detach().requires_grad_()
        traces.append(Trace(stage, leaf, stage.output(leaf)))
        x = traces[-1].y
    return traces


class StageTrainer(Trainer):
    """Goes through the stages of a model from the last to the first, and changes each by what comes down to it."""

    def __init__(self, model: nn.Module, loss: Loss, *, lr: float, weight_decay: float) -> None:
        super().__init__(model, lr)
        self.loss, self.weight_decay, self.stages = loss, weight_decay, chain(model)

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        traces = run(self.stages, inputs)
        outputs = traces[-1].y.detach().requires_grad_()
        loss = self.loss(outputs, targets)
        if bool(loss.isfinite()):
            d = torch.autograd.grad(loss, outputs)[0] * len(inputs)  # of each sample's own loss
            for trace in reversed(traces):
                d = self.learn(trace, d)
        return loss.detach(), outputs.detach()

    @abstractmethod
    def learn(self, trace: Trace, d: Tensor) -> Tensor:
        """Change the parameters of a stage by the cotangent d of its output; the cotangent of its input."""
