"""Kinked functions of many entries: maxima, pooling, sorting, norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .chooser import Chooser, extreme, order
from .elementwise import maximum, minimum

__all__ = ["REDUCTIONS"]


def _reduced(c: Chooser, name: str, value: Tensor, x: Tensor, dims: Sequence[int]) -> Tensor:
    """``value``, the maximum or minimum of x over ``dims`` (all, if there are none)."""
    if x.dim() == 0:
        return value
    dims = dims or range(x.dim())
    last = x.movedim(tuple(dims), tuple(range(-len(dims), 0))).flatten(-len(dims))
    return extreme(c, name, value.reshape(last.shape[:-1]), last).reshape(value.shape)


def amax(c: Chooser, input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    dims = (dim,) if isinstance(dim, int) else tuple(dim or ())
    return _reduced(c, "amax", torch.amax(input, dims, keepdim), input, dims)


def amin(c: Chooser, input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    dims = (dim,) if isinstance(dim, int) else tuple(dim or ())
    return _reduced(c, "amin", torch.amin(input, dims, keepdim), input, dims)


def _overloaded(plain: Callable[..., Any], pairwise: Callable[..., Tensor], whole: Callable[..., Tensor]) -> Any:
    """torch.max or torch.min, which are three functions by what comes second: a tensor, an axis, or nothing."""

    def operation(c: Chooser, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not args and not kwargs:
            return whole(c, input)
        second = args[0] if args else kwargs.get("other")
        if isinstance(second, Tensor):
            return pairwise(c, input, second)
        found = plain(input, *args, **kwargs)
        axis = args[0] if args else kwargs["dim"]
        return type(found)((_reduced(c, plain.__name__, found.values, input, (axis,)), found.indices))

    return operation


def _pooling(dims: int, with_indices: bool) -> Callable[..., Any]:
    pool = getattr(functional, f"max_pool{dims}d")

    def operation(
        c: Chooser,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = with_indices,
    ) -> Any:
        found = pool(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        value = found[0] if return_indices else found
        stride = kernel_size if stride is None or stride == [] else stride
        options = zip(*(_each(o, dims) for o in (kernel_size, stride, padding, dilation)), strict=True)
        windows = _windows(input, value.shape[-dims:], list(options))
        value = extreme(c, pool.__name__, value, windows.flatten(-dims))
        return (value, found[1]) if return_indices else value

    return operation


def _each(option: Any, dims: int) -> tuple[int, ...]:
    return (option,) * dims if isinstance(option, int) else tuple(option) * (dims if len(option) == 1 else 1)


def _windows(x: Tensor, sizes: Sequence[int], options: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """The entries under every window: (..., outputs) -> (..., outputs, kernel), padded with −∞."""
    dims, pads = len(sizes), []
    for axis, (size, (kernel, stride, padding, dilation)) in enumerate(zip(sizes, options, strict=True)):
        needed = (size - 1) * stride + dilation * (kernel - 1) + 1
        pads.append((padding, needed - padding - x.shape[axis - dims]))  # negative: what no window reaches
    x = functional.pad(x, [p for pair in reversed(pads) for p in pair], value=-torch.inf)
    first = x.dim() - dims
    for axis, (size, (kernel, stride, _, dilation)) in enumerate(zip(sizes, options, strict=True)):
        places = torch.arange(size)[:, None] * stride + torch.arange(kernel) * dilation
        x = x.index_select(first + 2 * axis, places.flatten().to(x.device)).unflatten(first + 2 * axis, (size, kernel))
    return x.movedim([first + 2 * axis + 1 for axis in range(dims)], list(range(-dims, 0)))


def sort(c: Chooser, input: Tensor, dim: int = -1, descending: bool = False, *, stable: bool | None = None) -> Any:
    found = torch.sort(input, dim=dim, descending=descending, stable=stable)
    if input.dim() == 0:
        return found
    values = order(c, "sort", input.movedim(dim, -1), descending=descending).movedim(-1, dim)
    return type(found)((values, found.indices))


def topk(c: Chooser, input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    found = torch.topk(input, k, dim, largest, sorted=True)
    if input.dim() == 0:
        return found
    values = order(c, "topk", input.movedim(dim, -1), descending=largest)[..., :k].movedim(-1, dim)
    return type(found)((values, found.indices))


def _norm(plain: Callable[..., Tensor], order_name: str, euclidean: tuple[Any, ...]) -> Callable[..., Tensor]:
    def operation(c: Chooser, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        which = args[0] if args else kwargs.get(order_name)
        if which is not None and which not in euclidean:
            raise NotImplementedError(
                f"{plain.__name__}({order_name}={which!r}) has kinks at which the derivative can't be chosen: write it "
                "with abs, sum and amax, or keep autograd's own, selection=Autograd()"
            )
        value = plain(input, *args, **kwargs)
        c.cone(plain.__name__, value)
        return value

    return operation


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "amax": amax,
    "amin": amin,
    "max": _overloaded(torch.max, maximum, amax),
    "min": _overloaded(torch.min, minimum, amin),
    "sort": sort,
    "topk": topk,
    "norm": _norm(torch.norm, "p", (2, "fro")),
    "linalg_vector_norm": _norm(torch.linalg.vector_norm, "ord", (2,)),
    "linalg_norm": _norm(torch.linalg.norm, "ord", ("fro",)),
    "linalg_matrix_norm": _norm(torch.linalg.matrix_norm, "ord", ("fro",)),
    **{f"max_pool{d}d": _pooling(d, False) for d in (1, 2, 3)},
    **{f"max_pool{d}d_with_indices": _pooling(d, True) for d in (1, 2, 3)},
}
