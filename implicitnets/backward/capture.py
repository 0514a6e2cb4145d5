"""Which tensors does f depend on, and f as a function of them.

f is any callable, so what it closes over (parameters, buffers, tensors of the caller) is found by watching it
once: a ``TorchFunctionMode`` sees the arguments of every operation, and a walk over the autograd graph that the
call left proves that nothing was missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

__all__ = ["Substitution", "capture"]


def capture(
    f: Callable[[], Any], known: Iterable[Tensor], flatten: Callable[[Any], list[Tensor]]
) -> tuple[Any, list[Tensor]]:
    """Call f once with gradients on, and find all tensors that require grad and were made before it ran.

    Args:
        f: What to call.
        known: Tensors that f certainly depends on; they come first, whether they require grad or not.
        flatten: The tensors of what f returns.

    Returns:
        What f returned, detached, and the tensors, each once.

    Raises:
        RuntimeError: If f depends on a tensor that can't be identified.
    """
    found = {id(t): t for t in known}
    with torch.enable_grad(), _Watch(found) as watch:
        value = f()
    for leaf in _outside(flatten(value), watch.start, found.values()):
        found.setdefault(id(leaf), leaf)
    return value, list(found.values())


class _Watch(TorchFunctionMode):
    """Collects the tensors that the operations inside it get from outside."""

    def __init__(self, found: dict[int, Tensor]) -> None:
        super().__init__()
        self.found = found
        self.start = _clock()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        for tensor in _tensors((args, kwargs)):
            if tensor.requires_grad and id(tensor) not in self.found and _older(tensor, self.start):
                self.found[id(tensor)] = tensor
        return func(*args, **(kwargs or {}))


class Substitution(TorchFunctionMode):
    """Inside, operations use ``new[i]`` wherever they are given ``old[i]``."""

    def __init__(self, old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
        """Pair the tensors off."""
        super().__init__()
        self.table = {id(a): b for a, b in zip(old, new, strict=True) if a is not b}
        self.new = list(new)
        self.start = _clock()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return func(*self.swap(tuple(args)), **self.swap(kwargs or {}))

    def swap(self, value: Any) -> Any:
        """``value`` with its tensors replaced, looking into tuples, lists and dicts."""
        if isinstance(value, Tensor):
            return self.table.get(id(value), value)
        if type(value) in (tuple, list):
            return type(value)(self.swap(item) for item in value)
        if type(value) is dict:
            return {key: self.swap(item) for key, item in value.items()}
        return value

    def check(self, outputs: Sequence[Tensor]) -> None:
        """Prove that ``outputs``, computed inside, depend on nothing from outside but the new tensors.

        Raises:
            RuntimeError: If they do.
        """
        for leaf in _outside(outputs, self.start, self.new):
            raise RuntimeError(_lost(f"a tensor of shape {tuple(leaf.shape)}"))


def _clock() -> int:
    """The sequence number of autograd now: nodes made later have larger ones (in this thread)."""
    with torch.enable_grad():
        node = torch.zeros((), requires_grad=True).view(()).grad_fn
    assert node is not None
    return node._sequence_nr()


def _older(tensor: Tensor, start: int) -> bool:
    return tensor.grad_fn is None or tensor.grad_fn._sequence_nr() <= start


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _outside(outputs: Sequence[Tensor], start: int, known: Iterable[Tensor]) -> list[Tensor]:
    """The leaves, not among ``known``, on which ``outputs`` depend through what was computed after ``start``.

    Raises:
        RuntimeError: If they depend on an older result that is not among ``known``.
    """
    edges = {(t.grad_fn, t.output_nr) for t in known if t.grad_fn is not None}
    known_leaves = {id(t) for t in known if t.grad_fn is None}
    stack: list[tuple[Node | None, int]] = [(t.grad_fn, t.output_nr) for t in outputs]
    seen: set[Node] = set()
    missing = [t for t in outputs if t.grad_fn is None and t.requires_grad and id(t) not in known_leaves]
    while stack:
        node, index = stack.pop()
        if node is None or (node, index) in edges:
            continue
        variable = getattr(node, "variable", None)
        if variable is not None:
            if id(variable) not in known_leaves:
                known_leaves.add(id(variable))
                missing.append(variable)
        elif node._sequence_nr() <= start:
            raise RuntimeError(_lost(f"the result of {node.name()}"))
        elif node not in seen:
            seen.add(node)
            stack.extend(node.next_functions)
    return missing


def _lost(what: str) -> str:
    return (
        f"f depends on {what}, which was made outside f and reaches an autograd.Function or a compiled region "
        "unseen, so its gradient would be lost: pass that tensor as an input, fixed_point(f, z0, tensor) with "
        "f(z, tensor), or deq(x, tensor)"
    )
