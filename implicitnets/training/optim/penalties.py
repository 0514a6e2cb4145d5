"""Penalties by the names of parameters, as parameter groups of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ...prox import Prox

__all__ = ["penalize"]


def penalize(model: nn.Module, penalties: Mapping[str, Prox]) -> list[dict[str, Any]]:
    """Parameter groups of a model, each with its penalty, for ``ProxSGD``, ``ProxAdam`` and ``ProxAdamW``.

    Examples:
        >>> from implicitnets import models, prox, training
        >>> model = models.ImplicitModel(64, 32, 10, constraint=None)
        >>> groups = penalize(model, {"A": prox.InfNormBall(0.95), "[BC]": prox.L1(1e-4)})
        >>> optimizer = training.ProxAdam(groups, lr=1e-3)

    A penalty is on the tensor that it is given. Where a weight is parametrized, by a constraint say, the parameter is
    the free tensor behind it, ``parametrizations.A.original``, and a penalty on that is none on the weight: zeros of
    the one need not be zeros of the other. So a pattern that covers the weight itself is refused.

    Args:
        model: Any module.
        penalties: By pattern, as in a shell (``*``, ``?``, ``[seq]``), on the qualified names of parameters:
            ``{"*.weight": prox.L1(1e-4)}``. A tied parameter has all its names.

    Returns:
        A group ``{"params": ..., "penalty": ...}`` for each pattern, and one without a penalty of its own for all
        other parameters, if there are any.

    Raises:
        ValueError: If a pattern matches no parameter, or a parametrized weight, or two match the same parameter.
        TypeError: If what is given for a pattern is not a penalty.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    hidden = _parametrized(model)
    owner: dict[int, str] = {}
    groups: list[dict[str, Any]] = []
    for pattern, penalty in penalties.items():
        if not isinstance(penalty, Prox):
            raise TypeError(f"the penalty of {pattern!r} is {penalty!r}, not a Prox: write for instance prox.L1(1e-4)")
        _refuse_parametrized(pattern, hidden)
        matched = {name: p for name, p in parameters.items() if fnmatchcase(name, pattern)}
        if not matched:
            raise ValueError(f"no parameter is called like {pattern!r}. There are: {', '.join(parameters)}")
        chosen = {id(p): p for p in matched.values()}
        for name, p in matched.items():
            if id(p) in owner:
                raise ValueError(f"{name!r} has two penalties, by {owner[id(p)]!r} and {pattern!r}: give it one")
        owner |= dict.fromkeys(chosen, pattern)
        groups.append({"params": list(chosen.values()), "penalty": penalty})
    rest = [p for p in model.parameters() if id(p) not in owner]
    return [*groups, {"params": rest}] if rest else groups


def _parametrized(model: nn.Module) -> dict[str, list[str]]:
    """By the qualified name of each parametrized weight, the names of the parameters behind it."""
    found = {}
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            prefix = f"{path}." if path else ""
            lists: Any = module.parametrizations
            for name, entry in lists.items():
                behind = [key for key, _ in entry.named_parameters(recurse=False)]
                found[prefix + name] = [f"{prefix}parametrizations.{name}.{key}" for key in behind]
    return found


def _refuse_parametrized(pattern: str, hidden: Mapping[str, list[str]]) -> None:
    for name, behind in hidden.items():
        if fnmatchcase(name, pattern):
            raise ValueError(
                f"{pattern!r} covers {name!r}, which is parametrized: it is computed from {' and '.join(behind)}, and "
                "a penalty on that is none on it. Take the constraint off and make it a penalty, prox.InfNormBall for "
                "InfNorm; or name the other parameters; or, if it is meant, what it is computed from"
            )
