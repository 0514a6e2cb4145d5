"""From a network to the affine forms of its tensors, by torch.fx."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree

from .form import Form, States
from .table import FUNCTIONS, METHODS, MODULES, READS, STAND_INS

__all__ = ["trace"]


def trace(network: nn.Module, shape: tuple[int, ...]) -> Form:
    """The network's output as an affine function of its input and of states.

    Raises:
        TypeError: If the network can't be traced, or has a layer that has no such form.
        ValueError: If a layer is in training mode, or has an option without such a form.
    """
    if fx.Tracer().is_leaf_module(network, ""):  # a layer of torch's own, into which torch.fx would look
        network = nn.Sequential(network)
    try:
        graph = fx.symbolic_trace(network, concrete_args=_defaults(network))
    except Exception as error:  # whatever the network's own code raises on meeting a proxy
        raise TypeError(
            f"{type(network).__name__} can't be traced by torch.fx ({error}): write its forward without control flow "
            "or functions that depend on the values of tensors"
        ) from error
    size = torch.Size(shape).numel()
    out = _Converter(graph).run(States(size).input(shape))
    if not isinstance(out, Form):
        raise TypeError(
            f"what {type(network).__name__} returns does not depend on its input: from_sequential is for a network "
            "that returns one tensor made of its input"
        )
    return out


def _defaults(network: nn.Module) -> dict[str, Any]:
    """The further arguments of its forward, at their defaults, so that what they decide is decided."""
    arguments = inspect.signature(network.forward).parameters.values()
    return {a.name: a.default for a in arguments if isinstance(a.default, (type(None), bool, int, float, str))}


class _Converter(fx.Interpreter):
    """Runs the network's graph with forms in the place of tensors."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # the errors name the layer themselves

    def run_node(self, n: fx.Node) -> Any:
        """The value of one node: by its rule if it acts on a form, else as it is.

        Raises:
            TypeError: If there is no rule, or not for these options.
            ValueError: If the rule refuses.
        """
        args, options = self.fetch_args_kwargs_from_env(n)
        if n.op not in ("call_module", "call_function", "call_method") or not _has_form((args, options)):
            return super().run_node(n)
        rule, layer = self._rule(n), self._name(n)
        try:
            bound = inspect.signature(rule).bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{layer} can't be converted with these options: {error}") from error
        try:
            value = rule(*bound.args, **bound.kwargs)
        except ValueError as error:
            raise ValueError(f"{layer} can't be converted: it {error}") from error
        except RuntimeError as error:  # the network takes a batch of two, but the layer none of one
            raise ValueError(f"{layer} can't be converted, as it fails for a batch of one sample: {error}") from error
        changed = n.args[0]
        if isinstance(changed, fx.Node) and self._in_place(n, bound):
            self.env[changed] = value
        if not isinstance(value, Form):
            return value
        return value.shared(sum(user.target not in READS for user in n.users))

    def _rule(self, node: fx.Node) -> Callable[..., Any]:
        """How the node acts on forms.

        Raises:
            TypeError: If there is no way.
        """
        if node.op == "call_module":
            rule = _module_rule(self._module(node))
        else:
            rule = (FUNCTIONS if node.op == "call_function" else METHODS).get(node.target)
        if rule is not None:
            return rule
        instead = STAND_INS.get(self._kind(node).lower())
        hint = "see the table of what is, in the guide to conversion" if instead is None else f"in its place: {instead}"
        raise TypeError(f"{self._name(node)} is not supported by from_sequential; {hint}")

    def _module(self, node: fx.Node) -> Any:
        return self.fetch_attr(str(node.target))

    def _kind(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return type(self._module(node)).__name__
        return str(getattr(node.target, "__name__", node.target))

    def _name(self, node: fx.Node) -> str:
        """The layer, by its qualified name in the network; a function, by the module that calls it."""
        if node.op == "call_module":
            return f"layer {node.target!r} ({self._kind(node)})"
        stack = node.meta.get("nn_module_stack") or {}
        caller = next((path for path, _ in reversed(stack.values())), "")
        return f"the call of {self._kind(node)} in {f'layer {caller!r}' if caller else 'the network'}"

    def _in_place(self, node: fx.Node, bound: inspect.BoundArguments) -> bool:
        """Whether it changes its first argument, which others may still read."""
        if node.op == "call_module":
            return bool(getattr(self._module(node), "inplace", False))
        name = self._kind(node)
        own = name.endswith("_") or name in ("iadd", "isub", "imul", "itruediv")
        return own or bool(bound.arguments.get("inplace", False))


def _module_rule(module: Any) -> Callable[..., Any] | None:
    """The rule for the module's type, or for the nearest that it derives from."""
    rule = next((MODULES[kind] for kind in type(module).__mro__ if kind in MODULES), None)
    return None if rule is None else partial(rule, module)


def _has_form(values: Any) -> bool:
    return any(isinstance(leaf, Form) for leaf in _pytree.tree_leaves(values))
