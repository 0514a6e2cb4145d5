"""The mode under which every kinked operation asks what to do at its kink."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from .chooser import Chooser
from .elementwise import ELEMENTWISE
from .reductions import REDUCTIONS

__all__ = ["Kinked"]

OPERATIONS: dict[str, Callable[..., Any]] = {**ELEMENTWISE, **REDUCTIONS}
"""Kinked operations by name: ``torch.relu``, ``Tensor.relu``, ``functional.relu`` and ``aten.relu`` are one."""

REFUSED = re.compile(
    r"adaptive_max_pool\dd.*|aminmax|cdist|cosine_embedding_loss|cummax|cummin|dist|fmax|fmin|fractional_max_pool.*|"
    r"hardshrink|hinge_embedding_loss|hypot|kthvalue|l1_loss|lp_pool\dd|margin_ranking_loss|(nan)?median|"
    r"multi(label)?_margin_loss|nuclear_norm|(nan)?quantile|renorm|rnn_relu|rnn_relu_cell|rrelu|segment_reduce|"
    r"triplet_margin_.*"
)
"""Operations with kinks, or jumps, whose derivative there can't be chosen."""


class Kinked(TorchFunctionMode):
    """Inside, kinked operations have the same values, and at their kinks the derivatives that ``chooser`` says.

    Each is replaced by a composition of ``where`` and ``lerp``, which every transform of torch knows. An
    ``autograd.Function`` and compiled code can't be looked into: they keep their own derivatives.
    """

    def __init__(self, chooser: Chooser) -> None:
        super().__init__()
        self.chooser = chooser

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]  # an operator of torch.ops: relu.default
        in_place = name.endswith("_") and name[:-1] in OPERATIONS
        operation = OPERATIONS.get(name[:-1] if in_place else name)
        if operation is None:
            if _is_refused(name) or (name.rstrip("_") in REDUCING and _takes_extremes(args, kwargs)):
                raise NotImplementedError(_refusal(name))
            return func(*args, **kwargs)
        if not any(isinstance(a, Tensor) and a.is_floating_point() for a in (*args, *kwargs.values())):
            return func(*args, **kwargs)  # integers have no derivative
        if kwargs.get("out") is not None:
            raise NotImplementedError(f"{name}(out=...) under a choice of derivatives: leave out=, use what it returns")
        in_place = kwargs.get("inplace", in_place)
        kwargs = {key: value for key, value in kwargs.items() if key not in {"out", "inplace"}}
        if not in_place:
            return operation(self.chooser, *args, **kwargs)
        return args[0].copy_(operation(self.chooser, args[0].clone(), *args[1:], **kwargs))


@cache
def _is_refused(name: str) -> bool:
    return REFUSED.fullmatch(name.rstrip("_")) is not None


REDUCING = frozenset({"scatter_reduce", "index_reduce"})


def _takes_extremes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    return any(a in {"amax", "amin"} for a in (*args, *kwargs.values()) if isinstance(a, str))


def _refusal(name: str) -> str:
    return (
        f"{name} has kinks or jumps at which the derivative can't be chosen: write it with operations of which it can "
        "(relu, abs, maximum, amax, clamp, sort, max_pool2d, ...), or keep autograd's own, selection=Autograd()"
    )
