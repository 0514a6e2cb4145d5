"""States: one tensor or a pytree of tensors, seen by the solvers as one matrix with a row a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

__all__ = ["Layout", "leaves", "rebuild", "refuse_in_place", "version", "versions"]

LEAF = _pytree.tree_structure(0)


def rebuild(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply a function to every leaf, and keep the structure."""
    if isinstance(tree, Tensor):  # as a rule, and this is a tenth of the time
        return function(tree, *others)
    if _is_row(tree):
        return tuple(map(function, tree, *others))
    return _pytree.tree_map(function, tree, *others)


def leaves(tree: Any) -> list[Any]:
    """The leaves of a pytree, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    return list(tree) if _is_row(tree) else _pytree.tree_leaves(tree)


def _is_row(tree: Any) -> bool:
    """Whether this is a tuple of tensors, as inputs often are."""
    return type(tree) is tuple and all(isinstance(x, Tensor) for x in tree)


def version(tensor: Tensor) -> int:
    """How often the tensor was changed in place, if it is one that counts this."""
    return 0 if tensor.is_inference() else tensor._version


def versions(flat: Sequence[Tensor]) -> list[int]:
    """As ``version``, of each; what ``refuse_in_place`` compares with."""
    return [version(t) for t in flat]


def refuse_in_place(flat: Sequence[Tensor], before: list[int]) -> None:
    """Check that f left its argument alone.

    Raises:
        RuntimeError: If a tensor was changed in place since ``before``.
    """
    if versions(flat) != before:
        raise RuntimeError("f changed its argument z in place: let it compute a new state, e.g. relu instead of relu_")


@dataclass(frozen=True)
class Layout:
    """The structure, shapes and dtypes of a state, and the way to and from a matrix ``(batch, size)``.

    The matrix has the widest dtype of the leaves, and at least float32, so that solvers accumulate safely;
    each leaf gets its own dtype back.
    """

    spec: _pytree.TreeSpec
    shapes: tuple[tuple[int, ...], ...]  # without the batch axis
    dtypes: tuple[torch.dtype, ...]
    batch: int
    dtype: torch.dtype

    @classmethod
    def of(cls, state: Any, *, name: str = "z0") -> Layout:
        """Read off the layout of ``state``.

        Raises:
            TypeError: If a leaf is not a tensor of real floating-point numbers.
            ValueError: If there is no leaf, no batch axis, or the leaves disagree on the batch or the device.
        """
        if isinstance(state, Tensor):
            return _single(state.shape, state.dtype, name)
        flat, spec = _pytree.tree_flatten(state)
        if not flat:
            raise ValueError(f"{name} has no tensor in it: pass a tensor, or a tuple, list or dict of tensors")
        for leaf in flat:
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"{name} must consist of tensors, not {type(leaf).__name__}: write torch.as_tensor(...)"
                )
            _check_leaf(leaf.shape, leaf.dtype, name, alone=len(flat) == 1)
        if len({leaf.shape[0] for leaf in flat}) > 1:
            seen = ", ".join(str(tuple(leaf.shape)) for leaf in flat)
            raise ValueError(f"the tensors of {name} have different batch sizes (first axes): shapes {seen}")
        if len({leaf.device for leaf in flat}) > 1:
            raise ValueError(f"the tensors of {name} are on different devices: move them to one with .to()")
        dtypes = tuple(leaf.dtype for leaf in flat)
        shapes = tuple(tuple(leaf.shape[1:]) for leaf in flat)
        return cls(spec, shapes, dtypes, flat[0].shape[0], reduce(torch.promote_types, dtypes, torch.float32))

    @cached_property
    def single(self) -> bool:
        """Whether the state is a tensor, not a tree of them."""
        return self.spec.is_leaf()

    @cached_property
    def plain(self) -> bool:
        """Whether the state is a matrix already, so that packing changes nothing."""
        return self.single and len(self.shapes[0]) == 1 and self.dtypes[0] == self.dtype

    def check(self, state: Any, batch: int) -> list[Tensor]:
        """The leaves of ``state = f(z)`` after checking that they are like z's.

        Raises:
            TypeError: If the structure or a dtype differs.
            ValueError: If a shape differs.
        """
        if isinstance(state, Tensor) and self.single:
            if state.shape == (batch, *self.shapes[0]) and state.dtype == self.dtypes[0]:
                return [state]
            flat: Sequence[Any] = (state,)
        else:
            flat, spec = _pytree.tree_flatten(state)
            if spec != self.spec:
                raise TypeError(
                    f"f(z) is not built like z: z is {_describe(self.spec)}, f(z) is {_describe(spec)}; "
                    "let f return the new state and nothing else, in the structure that it was given"
                )
        out = []
        for leaf, shape, dtype in zip(flat, self.shapes, self.dtypes, strict=True):
            if not isinstance(leaf, Tensor):
                raise TypeError(f"f(z) must consist of tensors, not {type(leaf).__name__}")
            if tuple(leaf.shape) != (batch, *shape):
                raise ValueError(
                    f"f(z) has shape {tuple(leaf.shape)} where z has {(batch, *shape)}: "
                    "let f return a state of the shape that it was given"
                )
            if leaf.dtype != dtype:
                if not torch.is_autocast_enabled(leaf.device.type):
                    raise TypeError(
                        f"f(z) has dtype {leaf.dtype} where z has {dtype}: start from z0.to({leaf.dtype}), "
                        "or convert the weights and inputs of f"
                    )
                leaf = leaf.to(dtype)  # noqa: PLW2901  (autocast lowers what f returns, not the state)
            out.append(leaf)
        return out

    def pack(self, flat: Sequence[Tensor]) -> Tensor:
        """Leaves -> matrix ``(rows, size)``; a view where one leaf needs no conversion, or that leaf itself."""
        if self.plain:
            return flat[0]
        rows = [leaf.reshape(leaf.shape[0], self._size(i)).to(self.dtype) for i, leaf in enumerate(flat)]
        return rows[0] if len(rows) == 1 else torch.cat(rows, 1)

    def unpack(self, matrix: Tensor) -> list[Tensor]:
        """Matrix ``(rows, size)`` -> leaves with their own shapes and dtypes."""
        if self.plain:
            return [matrix]
        if len(self.shapes) == 1:
            return (
                [matrix.reshape(-1, *self.shapes[0]).to(self.dtypes[0])]
                if matrix.numel()
                else [matrix.new_zeros((matrix.shape[0], *self.shapes[0]), dtype=self.dtypes[0])]
            )
        parts = torch.split(matrix, [self._size(i) for i in range(len(self.shapes))], 1)
        return [
            part.reshape(matrix.shape[0], *shape).to(dtype)
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        ]

    def tree(self, flat: Sequence[Tensor]) -> Any:
        """Leaves -> state."""
        return flat[0] if self.single else _pytree.tree_unflatten(list(flat), self.spec)

    def _size(self, i: int) -> int:
        return prod(self.shapes[i])


@lru_cache(maxsize=64)
def _single(shape: torch.Size, dtype: torch.dtype, name: str) -> Layout:
    """The layout of a state that is one tensor: as a rule there are few, and many solves."""
    _check_leaf(shape, dtype, name, alone=True)
    return Layout(LEAF, (tuple(shape[1:]),), (dtype,), shape[0], torch.promote_types(dtype, torch.float32))


def _check_leaf(shape: torch.Size, dtype: torch.dtype, name: str, *, alone: bool) -> None:
    if dtype.is_complex:
        raise TypeError(f"{name} is complex: pass torch.view_as_real({name}), and let f convert inside")
    if not dtype.is_floating_point:
        raise TypeError(f"{name} has dtype {dtype}: a state is of floating point, write {name}.float()")
    if not shape or (alone and len(shape) == 1):
        raise ValueError(
            f"{name} of shape {tuple(shape)} has no batch axis: its first axis counts the samples, so write "
            f"{name}[None] for one sample" + (f" or {name}[:, None] for a batch of scalars" if shape else "")
        )


def _describe(spec: _pytree.TreeSpec) -> str:
    if spec.is_leaf():
        return "one tensor"
    kind = getattr(spec.type, "__name__", str(spec.type))
    return f"a {kind} of {spec.num_leaves}"
