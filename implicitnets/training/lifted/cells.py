"""What a lifted network consists of: states, each of which is an activation of an affine map of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ...balls import project_l1_ball
from ...constraints import InfNorm
from ...models import ImplicitModel
from ...models.structures import Full
from ..fenchel_young import FenchelYoung
from ..method import Unsupported

__all__ = ["CAN", "Cell", "lift"]

NAMES: dict[type[nn.Module], tuple[str, dict[str, float]]] = {
    nn.ReLU: ("relu", {}),
    nn.LeakyReLU: ("leaky_relu", {"negative_slope": 0.01}),
    nn.Tanh: ("tanh", {}),
    nn.Sigmoid: ("sigmoid", {}),
    nn.ELU: ("elu", {"alpha": 1.0}),
    nn.Hardtanh: ("hardtanh", {"min_val": -1.0, "max_val": 1.0}),
}
"""Activations between linear layers, with the options that they must have."""

CAN = (
    "it trains ImplicitModel with a full A, constraint=InfNorm(...) or None, and nn.Sequential of these, nn.Linear and "
    f"{', '.join(cls.__name__ for cls in NAMES)} with their default options, a linear layer or an implicit model last"
)


@dataclass(frozen=True)
class Cell:
    """States x = φ(h) with h = SΘᵀ, Θ being the weights side by side and S the columns that they are applied to.

    Attributes:
        sources: Which states S consists of, 0 being the inputs; its own are the first if it is an equilibrium.
        parameters: What is trained, in the order of the columns; a bias is the last.
        weights: What the parameters stand for, under their constraint.
        penalty: The Fenchel-Young loss of φ.
        kappa: The bound of ‖A‖∞, A being the first columns, or None.
        model: The implicit model whose equilibrium the states are, or None.
    """

    sources: tuple[int, ...]
    parameters: tuple[Tensor, ...]
    weights: Callable[[], Sequence[Tensor]]
    penalty: FenchelYoung
    kappa: float | None = None
    model: ImplicitModel | None = None

    def columns(self, states: Sequence[Tensor], one: float = 1.0) -> Tensor:
        """S, of shape (batch, columns)."""
        parts = [states[i] for i in self.sources]
        if self.parameters[-1].dim() == 1:
            parts.append(parts[0].new_full((len(parts[0]), 1), one))
        return torch.cat(parts, 1)

    def theta(self) -> Tensor:
        """Θ as it is, detached, of shape (rows, columns)."""
        return torch.cat([w.detach().reshape(len(w), -1) for w in self.weights()], 1)

    def project(self, theta: Tensor) -> Tensor:
        """The nearest Θ that satisfies the constraint."""
        if self.kappa is None:
            return theta
        free, rest = theta.tensor_split([self.parameters[0].shape[1]], 1)
        return torch.cat((project_l1_ball(free, self.kappa), rest), 1)

    @torch.no_grad()
    def assign(self, theta: Tensor) -> None:
        """Make Θ the weights. It has to satisfy the constraint, which then leaves it as it is."""
        widths = [p.shape[1] if p.dim() > 1 else 1 for p in self.parameters]
        for p, part in zip(self.parameters, theta.split(widths, 1), strict=True):
            p.copy_(part.reshape(p.shape))

    def gradient(self, theta: Tensor, x: Tensor, columns: Tensor, multipliers: Tensor) -> Tensor:
        """The gradient of the mean of Σ λ F(x, SΘᵀ) in Θ: λ (φ(h) − x)ᵀS/n, with one λ per unit."""
        d = self.penalty.spread(multipliers) * (self.penalty.apply(columns @ theta.T) - x)
        return d.T @ columns / len(columns)


def lift(model: nn.Module) -> list[Cell]:
    """The cells of a model, from the first to the last.

    Raises:
        Unsupported: If there is something else in it.
    """
    found: list[Cell] = []
    modules = [m for m in _flat(model) if not isinstance(m, (nn.Flatten, nn.Identity))]
    for index, module in enumerate(modules):
        below = len(found)
        if isinstance(module, nn.Linear) and not is_parametrized(module):
            name = _name(modules[index + 1]) if index + 1 < len(modules) else "identity"
            own = tuple(module.parameters())
            found.append(Cell((below,), own, partial(tuple, own), FenchelYoung(name)))
        elif isinstance(module, ImplicitModel):
            found += _implicit(module, below)
        elif not (type(module) in NAMES and index and isinstance(modules[index - 1], nn.Linear)):
            raise Unsupported(f"{CAN}, and not {type(module).__name__}")
    if len(list(model.parameters())) != sum(len(cell.parameters) for cell in found):
        raise Unsupported(f"{CAN}, with each weight a parameter of its own")
    if any(not p.requires_grad for cell in found for p in cell.parameters):
        raise Unsupported("it trains all weights, and some have requires_grad=False")
    return found


def _implicit(model: ImplicitModel, below: int) -> list[Cell]:
    """The states, and the readout.

    Raises:
        Unsupported: If the weights are not free matrices, but for the bound of A.
    """
    bound = model.constraint
    if model.structure != Full() or model.nonzeros or not isinstance(bound, InfNorm | None):
        raise Unsupported(f"{CAN}, and not one of {model.structure!r} with {bound!r} or sparse weights")
    penalty = FenchelYoung(model.activation)
    A = model.parametrizations.A.original if is_parametrized(model, "A") else model.A
    hidden, out = (model.b,) if model.b is not None else (), (model.c,) if model.c is not None else ()
    here, kappa = below + 1, None if bound is None else bound.kappa
    return [
        Cell((here, below), (A, model.B, *hidden), lambda: [model.A, model.B, *hidden], penalty, kappa, model),
        Cell((here, below), (model.C, model.D, *out), lambda: [model.C, model.D, *out], FenchelYoung("identity")),
    ]


def _name(module: nn.Module) -> str:
    """What the layer before a module has as its activation: the module, or none.

    Raises:
        Unsupported: If the activation has other options than the default ones.
    """
    name, options = NAMES.get(type(module), ("identity", {}))
    if any(getattr(module, option) != value for option, value in options.items()):
        raise Unsupported(f"{CAN}, and not {module}")
    return name


def _flat(model: nn.Module) -> list[nn.Module]:
    return [inner for m in model for inner in _flat(m)] if isinstance(model, nn.Sequential) else [model]
