"""The tensors that the modules in f hold when it is first called.

``functional_call`` and sharding put others in their place for the time of a forward pass only, while f is called again
when a gradient is taken.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils import parametrize

__all__ = ["Members", "as_written"]


class Members:
    """What the modules that f is, or calls, hold at its first call."""

    def __init__(self, f: Any) -> None:
        owner = f if isinstance(f, nn.Module) else getattr(f, "__self__", f)
        self._modules: dict[nn.Module, None] = dict.fromkeys(owner.modules()) if isinstance(owner, nn.Module) else {}
        self._held: list[tuple[Mapping[str, Tensor | None], str, Tensor]] = []

    def parameters(self) -> list[nn.Parameter]:
        """Those of the modules that are known."""
        return [p for module in self._modules for p in module._parameters.values() if p is not None]

    def __enter__(self) -> None:
        """From here, note what modules are called, unless f is one, and at the end what they hold."""
        self._hook = None if self._modules else register_module_forward_pre_hook(self._note)

    def __exit__(self, *_: object) -> None:
        if self._hook is not None:
            self._hook.remove()
        for module in self._modules:
            for held in (module._parameters, module._buffers):
                self._held += [(held, name, tensor) for name, tensor in held.items() if tensor is not None]

    def held(self) -> AbstractContextManager[None]:
        """Inside, a weight that one of them computes from others (a parametrized one) is computed once."""
        parametrized = any("parametrizations" in module._modules for module in self._modules)
        return parametrize.cached() if parametrized else nullcontext()

    def moved(self) -> list[tuple[Tensor, Tensor]]:
        """The tensors that are now where others were, and those others."""
        now = [(held.get(name), tensor) for held, name, tensor in self._held]
        return [(other, tensor) for other, tensor in now if other is not None and other is not tensor]

    def _note(self, module: nn.Module, _: Any) -> None:
        if module not in self._modules:
            self._modules.update(dict.fromkeys(module.modules()))


def as_written() -> AbstractContextManager[None]:
    """Inside, what is compiled runs as it was written: hooks and modes would become part of its graph."""
    return _eager() if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def _eager() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*global hooks on modules", UserWarning)
        yield
