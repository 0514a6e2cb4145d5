"""What a constraint is, and how a module gets one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..activations import Activation

__all__ = ["Constrained", "Constraint", "require_contraction", "require_positive", "require_square"]


@dataclass(frozen=True, kw_only=True)
class Constraint(ABC):
    """A differentiable map from any matrix to one that satisfies the constraint. A value.

    Attributes:
        scope: What the map sees at once: "rows", each of which goes its own way; "blocks", which may stand along the
            diagonal of a larger matrix; or only the "whole" matrix.
    """

    scope: ClassVar[Literal["rows", "blocks", "whole"]] = "whole"

    @abstractmethod
    def __call__(self, weight: Tensor) -> Tensor:
        """The constrained matrix."""

    def for_activation(self, activation: Activation) -> Constraint:
        """The constraint for a model with this φ; those that do not depend on φ are the same for each.

        Raises:
            ValueError: If it is not known that x = φ(Ax + b) then has one solution for every b; with what to use.
        """
        return self

    def parametrization(self, weight: Tensor) -> Constrained:
        """What ``torch.nn.utils.parametrize`` is to register for a matrix like ``weight``.

        Raises:
            ValueError: If the constraint is not for such a matrix.
        """
        return Constrained(self)

    def apply(self, module: nn.Module, name: str) -> None:
        """Constrain ``module.name`` from now on; the free matrix behind it is what is trained.

        Unlike other parametrized modules, the module can still be pickled.

        Raises:
            ValueError: If the constraint is not for such a matrix.
        """
        parametrize.register_parametrization(module, name, self.parametrization(getattr(module, name)))
        make_picklable(module)


class Constrained(nn.Module):
    """A constraint as ``torch.nn.utils.parametrize`` wants it."""

    def __init__(self, constraint: Constraint) -> None:
        super().__init__()
        self.constraint = constraint

    def forward(self, weight: Tensor) -> Tensor:
        """The constrained matrix of a free one."""
        return self.constraint(weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The free matrix to start from."""
        return weight

    def extra_repr(self) -> str:
        """The value."""
        return repr(self.constraint)


def make_picklable(module: nn.Module) -> None:
    """Let a parametrized module be pickled, which PyTorch does not."""
    setattr(type(module), "__reduce_ex__", _reduce)  # noqa: B010  (a class that parametrize made for this module)


def _reduce(module: nn.Module, protocol: object) -> tuple[object, ...]:
    """Pickle a parametrized module as its plain class, the free tensors, and what is to be registered again."""
    lists = {name: list(entry) for name, entry in module.parametrizations.items()}  # type: ignore[operator,union-attr]
    originals = {name: _originals(entry) for name, entry in module.parametrizations.items()}  # type: ignore[operator,union-attr]
    state = {
        **vars(module),
        "_modules": {k: v for k, v in module._modules.items() if k != "parametrizations"},
    }
    return _restore, (type(module).__mro__[1], state, originals, lists)


def _originals(entry: Any) -> list[Tensor]:
    """The free tensors of a parametrization: one, or several where its ``right_inverse`` returns several."""
    names = ["original"] if entry.is_tensor else [f"original{i}" for i in range(entry.ntensors)]
    return [getattr(entry, name) for name in names]


def _restore(
    cls: type[nn.Module],
    state: dict[str, object],
    originals: dict[str, list[Tensor]],
    lists: dict[str, list[nn.Module]],
) -> nn.Module:
    module = cls.__new__(cls)
    vars(module).update(state)
    for name, tensors in originals.items():
        alone = len(tensors) == 1
        weight = tensors[0] if alone else nn.Parameter(lists[name][0](*tensors).detach())
        if isinstance(weight, nn.Parameter):
            module.register_parameter(name, weight)
        else:
            module.register_buffer(name, weight)
        for parametrization in lists[name]:
            parametrize.register_parametrization(module, name, parametrization, unsafe=True)
        if not alone:  # bit for bit, not as worked out from the weight
            for i, tensor in enumerate(tensors):
                setattr(module.parametrizations[name], f"original{i}", tensor)  # type: ignore[index]
    make_picklable(module)
    return module


def require_positive(constraint: Constraint, kappa: float) -> None:
    """Check a bound.

    Raises:
        ValueError: If it is not positive.
    """
    if not kappa > 0:
        name = type(constraint).__name__
        raise ValueError(f"{name}(kappa={kappa!r}): kappa must be positive, and below 1 for well-posedness")


def require_contraction(constraint: Constraint, kappa: float, gamma: float, activation: Activation, norm: str) -> None:
    """Check that kappa and the Lipschitz constant of φ make a contraction.

    Raises:
        ValueError: If they do not.
    """
    if not kappa * gamma < 1:
        raise ValueError(
            f"{constraint!r} makes a model well-posed where kappa times the Lipschitz constant of the activation in "
            f"the {norm} norm is below 1, and that of {activation!r} is {gamma:g}: use BlockNorm(), a smaller kappa, "
            "or constraint=None, with which nothing is promised"
        )


def require_square(constraint: Constraint, weight: Tensor) -> None:
    """Check a matrix.

    Raises:
        ValueError: If it is not square.
    """
    if weight.dim() != 2 or weight.shape[0] != weight.shape[1]:
        raise ValueError(f"{constraint!r} is for square matrices, not one of shape {tuple(weight.shape)}")
