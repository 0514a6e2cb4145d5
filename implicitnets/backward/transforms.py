"""Derivatives of a function by PyTorch's own tools, under whatever transforms are at work.

A tensor inside ``torch.func`` is a wrapper around a tensor of the transform outside, down to a plain one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

__all__ = [
    "apply",
    "forward_mode",
    "is_traced",
    "is_wrapped",
    "jvp",
    "plain",
    "primal",
    "refuse_batched",
    "under_transform",
    "vjp",
]

Function = Callable[..., Sequence[Tensor]]


def under_transform() -> bool:
    """Whether a transform of ``torch.func``, or a level of forward mode, is at work."""
    return _functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a transform of ``torch.func`` sees this tensor as an input, or as computed from one."""
    return _functorch.is_functorch_wrapped_tensor(tensor)


def is_traced(tensor: Tensor) -> bool:
    """Whether a derivative other than autograd's reverse mode may run through this tensor."""
    if forward_ad._current_level < 0:  # then there are no tangents
        return is_wrapped(tensor)
    return is_wrapped(tensor) or forward_ad.unpack_dual(tensor).tangent is not None


def plain(tensor: Tensor) -> Tensor:
    """The plain tensor under all wrappers, detached. Mapped axes show, in front if they were put there."""
    while not torch.compiler.is_compiling() and is_wrapped(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor.detach()


def primal(tensor: Tensor) -> Tensor:
    """The tensor without its tangent."""
    found: Tensor = forward_ad.unpack_dual(tensor).primal
    return found


def apply(function: type[torch.autograd.Function], problem: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
    """``function.apply(problem, *tensors)``.

    Outside of ``torch.func``, the lookup of default arguments is left out, which takes a fiftieth of a small step.
    """
    general = under_transform() or any(map(is_wrapped, tensors))
    chosen: Any = function if general else super(torch.autograd.Function, function)
    value: tuple[Tensor, ...] = chosen.apply(problem, *tensors)
    return value


def refuse_batched(tensors: Sequence[Tensor]) -> None:
    """Check that there is no batch of cotangents of the kind that came before ``torch.func.vmap``.

    Raises:
        NotImplementedError: If there is.
    """
    if any(_functorch.is_legacy_batchedtensor(t) for t in tensors):
        raise NotImplementedError(
            "a fixed point has no gradients for a batch of cotangents by autograd.grad(is_grads_batched=True) or "
            "jacobian(vectorize=True): use torch.func.jacrev, or torch.func.vmap of torch.func.vjp"
        )


def forward_mode() -> AbstractContextManager[None]:
    """Inside, tangents are computed. PyTorch turns this off around ``Function.jvp``, and nested ones get lost."""
    return forward_ad._set_fwd_grad_enabled(True)


def vjp(f: Function, primals: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
    """(∂f/∂primals)ᵀ cotangents, differentiable once more."""
    if not primals:
        return []
    if any(is_wrapped(t) for t in (*primals, *cotangents)):
        pull = torch.func.vjp(lambda *p: tuple(f(*p)), *primals)[1]
        return list(pull(tuple(cotangents)))
    with torch.enable_grad():
        # Under other names: differentiating with respect to these keeps autograd from walking on, from z
        # through the solution to θ.
        at = [_differentiable(t.view_as(t)) for t in primals]
        pairs = [(out, c) for out, c in zip(f(*at), cotangents, strict=True) if out.requires_grad]
        if not pairs:
            return [torch.zeros_like(t) for t in primals]
        outputs, weights = zip(*pairs, strict=True)
        return list(torch.autograd.grad(outputs, at, weights, create_graph=True, materialize_grads=True))


def jvp(f: Function, primals: Sequence[Tensor], tangents: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """(∂f/∂primals) tangents, where f returns tensors ``like`` these.

    By differentiating the vector-Jacobian product, which is linear: forward mode can't be nested in itself
    outside of ``torch.func``, and needs more of f's operations.
    """
    zeros = [torch.zeros_like(t) for t in like]
    return vjp(lambda *u: vjp(f, primals, u), zeros, tangents)


def _differentiable(tensor: Tensor) -> Tensor:
    return tensor if tensor.requires_grad else tensor.requires_grad_()
