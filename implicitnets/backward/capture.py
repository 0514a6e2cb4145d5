"""Which tensors does f depend on, and f as a function of them.

f is any callable, so what it closes over (parameters, buffers, tensors of the caller) is found by watching it
once: a ``TorchFunctionMode`` sees the arguments of every operation, and a walk over the autograd graph that the
call left proves that nothing was missed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._autograd import _get_sequence_nr
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..pytree import leaves
from .transforms import is_traced, under_transform

__all__ = ["Substitution", "capture", "refuse_traced"]


def capture(
    f: Callable[[], Any], known: Iterable[Tensor], state: Iterable[Tensor], flatten: Callable[[Any], list[Tensor]]
) -> Captured:
    """Call f once, and find all tensors that a derivative may run through and that were made before it ran.

    Args:
        f: What to call.
        known: Tensors that f certainly depends on; they come first, whether a derivative may run through them or not.
        state: Tensors that f gets as well, and that are not to be found.
        flatten: The tensors of what f returns.

    Raises:
        RuntimeError: If f depends on a tensor that can't be identified.
    """
    with _Watch(known, state) as watch:
        value = f()
    for leaf in _outside(flatten(value), watch.start, watch.found.values()):
        watch.found.setdefault(id(leaf), leaf)
    return Captured(value, list(watch.found.values()), watch.updated(), watch.mixes)


class Captured(NamedTuple):
    """What was seen of f."""

    value: Any
    """What it returned."""
    operands: list[Tensor]
    """The tensors that a derivative may run through, each once."""
    updated: list[tuple[Tensor, Tensor]]
    """Tensors from outside (buffers) that it changed in place, and copies of what they were."""
    mixes: bool
    """Whether it normalized with the statistics of the batch, and so does not treat each sample on its own."""


class _Watch(TorchFunctionMode):
    """Collects the tensors that the operations inside it get from outside, and those that they change in place."""

    def __init__(self, known: Iterable[Tensor], state: Iterable[Tensor]) -> None:
        super().__init__()
        self.found = {id(t): t for t in known}
        # What f gets or makes itself. Ids do, although they are used again: what is outside is there all the time.
        self.inside = {id(t) for t in state}
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.mixes = False
        self.recording, self.transformed = torch.is_grad_enabled(), under_transform()
        self.start = _clock()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.batch_norm:
            self.mixes |= bool((kwargs or {}).get("training", args[5] if len(args) > 5 else False))
        changes = _may_change(getattr(func, "__name__", ""))
        if self.recording or self.transformed or changes:
            for tensor in _tensors((*args, *kwargs.values()) if kwargs else args):
                if id(tensor) not in self.found and id(tensor) not in self.inside:
                    self._note(tensor, changes=changes)
        out = func(*args, **(kwargs or {}))
        self.inside.update([id(t) for t in _tensors(out) if id(t) not in self.found])
        return out

    def _note(self, tensor: Tensor, *, changes: bool) -> None:
        recorded = tensor.requires_grad and _older(tensor, self.start)
        if recorded or (self.transformed and is_traced(tensor)):
            self.found[id(tensor)] = tensor
        elif changes and not tensor.requires_grad and id(tensor) not in self.before:
            self.before[id(tensor)] = (tensor, tensor.detach().clone())

    def updated(self) -> list[tuple[Tensor, Tensor]]:
        """The outside tensors that were changed in place (which batch-norm hides from autograd), and what they were."""
        return [(tensor, copy) for tensor, copy in self.before.values() if not torch.equal(tensor, copy)]


@lru_cache(maxsize=1024)
def _may_change(name: str) -> bool:
    """Whether an operation may change an argument in place: its name says so, or it keeps running statistics."""
    return (name.endswith("_") and not name.endswith("__")) or name in ("batch_norm", "instance_norm")


class Substitution(TorchFunctionMode):
    """Inside, operations use ``new[i]`` wherever they are given ``old[i]``."""

    def __init__(self, old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
        """Pair the tensors off."""
        super().__init__()
        self.table = {id(a): b for a, b in zip(old, new, strict=True)}
        self.old = list(old)  # kept alive, so that an id is that of one tensor
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

    def check(self, outputs: Sequence[Tensor], known: Sequence[Tensor]) -> None:
        """Prove that ``outputs``, computed inside, depend on nothing from outside but ``known``.

        Raises:
            RuntimeError: If they do.
        """
        for leaf in _outside(outputs, self.start, known):
            raise RuntimeError(_lost(f"a tensor of shape {tuple(leaf.shape)}"))

    def proves(self, outputs: Sequence[Tensor], known: Sequence[Tensor]) -> bool:
        """Whether ``check`` has nothing to say."""
        try:
            self.check(outputs, known)
        except RuntimeError:
            return False
        return True


def _clock() -> int:
    """The sequence number of autograd now: nodes made later have larger ones (in this thread)."""
    return _get_sequence_nr() - 1


def _older(tensor: Tensor, start: int) -> bool:
    return tensor.grad_fn is None or tensor.grad_fn._sequence_nr() <= start


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    found: list[Tensor] = []
    for item in value:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (tuple, list, dict)):
            found += _tensors(item)
    return found


def _outside(outputs: Sequence[Tensor], start: int, known: Collection[Tensor]) -> list[Tensor]:
    """The leaves, not among ``known``, on which ``outputs`` depend through what was computed after ``start``.

    Raises:
        RuntimeError: If they depend on an older result that is not among ``known``.
    """
    outputs = [t for t in outputs if t.requires_grad]
    if not outputs:
        return []
    edges = {(t.grad_fn, t.output_nr) for t in known if t.grad_fn is not None}
    known_leaves = {id(t) for t in known if t.grad_fn is None}
    stack: list[tuple[Node | None, int]] = [(t.grad_fn, t.output_nr) for t in outputs]
    seen: set[Node] = set()
    missing = [t for t in outputs if t.grad_fn is None and id(t) not in known_leaves]
    while stack:
        node, index = stack.pop()
        if node is None or (node, index) in edges:
            continue
        variable = getattr(node, "variable", None)
        if variable is not None:
            if id(variable) not in known_leaves and node not in _accumulators(known):
                known_leaves.add(id(variable))
                missing.append(variable)
        elif node._sequence_nr() <= start:
            raise RuntimeError(_lost(f"the result of {node.name()}"))
        elif node not in seen:
            seen.add(node)
            stack.extend(node.next_functions)
    return missing


def _accumulators(known: Iterable[Tensor]) -> set[Node]:
    """The nodes of the leaves: under activation checkpointing, a leaf comes back as another tensor with this node."""
    return {get_gradient_edge(t).node for t in known if t.grad_fn is None and t.requires_grad}


def refuse_traced(value: Any) -> Any:
    """``value``, unless forward mode or a transform of ``torch.func`` has got into it unseen.

    Raises:
        RuntimeError: If it has.
    """
    for leaf in leaves(value):
        if isinstance(leaf, Tensor) and is_traced(leaf):
            raise RuntimeError(_lost("a tensor of forward mode, or inside a torch.func transform"))
    return value


def _lost(what: str) -> str:
    return (
        f"f depends on {what}, which was made outside f and reaches an autograd.Function or a compiled region "
        "unseen, so its gradient would be lost: pass that tensor as an input, fixed_point(f, z0, tensor) with "
        "f(z, tensor), or deq(x, tensor)"
    )
