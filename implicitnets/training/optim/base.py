"""What is added to one of PyTorch's optimizers: a proximal map in its own metric after each of its steps."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ... import prox
from ...prox import Prox, Step

__all__ = ["Group", "Proximal"]

Group: TypeAlias = "dict[str, Any]"


class Proximal(Optimizer):
    """One of PyTorch's optimizers with a penalty.

    PyTorch's step takes a parameter θ to v = θ − lr D⁻¹m, with an average m of gradients and a diagonal D. That is the
    minimizer of ⟨m, θ'⟩ + (θ' − θ)ᵀD(θ' − θ)/2lr. With the penalty R added, it is prox(v) with steps lr/D.
    """

    def _default(self, penalty: Prox | None) -> None:
        """The penalty of the groups that have none of their own; called once these are there."""
        self.defaults["penalty"] = penalty
        for group in self.param_groups:
            group.setdefault("penalty", penalty)
            _check(group)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, with ``"penalty"`` among its options, or that of the optimizer.

        Raises:
            TypeError: If the penalty is not one, or a parameter is complex.
            ValueError: If the penalty is not for a parameter of this shape.
        """
        super().add_param_group(param_group)
        if "penalty" in self.defaults:  # all but the first groups, whose turn comes in _default
            try:
                _check(self.param_groups[-1])
            except (TypeError, ValueError):
                self.param_groups.pop()
                raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Evaluates the loss again, with its gradients, and returns it.

        Returns:
            The loss that the closure returned, or None.

        Raises:
            TypeError: If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.layout != torch.strided:
                    raise TypeError(
                        f"the gradient of a parameter of shape {tuple(p.shape)} is sparse, and proximal maps are of "
                        "dense tensors: make the embedding with sparse=False"
                    )
        # Without the hooks that PyTorch wraps a step in: they are run for this one.
        plain: Any = super().step
        inspect.unwrap(plain.__func__)(self)
        for group in self.param_groups:
            self._penalize(group)
        return loss

    def _penalize(self, group: Group) -> None:
        penalty: Prox | None = group["penalty"]
        if penalty is None or float(group["lr"]) == 0:  # as when a schedule begins: then nothing moves
            return
        moved = [p for p in group["params"] if p.grad is not None]
        if penalty.separable and group["foreach"] is not False:
            _minimize_together(penalty, moved, [self._steps(p, group) for p in moved])
        else:
            for p in moved:
                p.copy_(penalty.minimize(p, self._steps(p, group)))

    @abstractmethod
    def _steps(self, p: Tensor, group: Group) -> Step:
        """lr/D for the parameter, after PyTorch's step."""

    def state_dict(self) -> dict[str, Any]:
        """As PyTorch's, with penalties as text, so that ``torch.load`` reads it with ``weights_only``."""
        record = super().state_dict()
        for group in record["param_groups"]:
            group["penalty"] = _written(group["penalty"])
        return record

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a record, penalties included; where it has none, as of PyTorch's own, they stay as they are."""
        read = []
        for mine, group in zip(self.param_groups, state_dict["param_groups"], strict=False):
            penalty = group.get("penalty", mine["penalty"])
            read.append({**group, "penalty": prox.parse(penalty) if isinstance(penalty, str) else penalty})
        rest = state_dict["param_groups"][len(read) :]  # of which PyTorch will complain
        super().load_state_dict({**state_dict, "param_groups": [*read, *rest]})


def _minimize_together(penalty: Prox, parameters: list[Tensor], steps: list[Step]) -> None:
    """Apply a separable map to all parameters of a kind at once, which for many small ones is faster."""
    kinds: dict[object, list[tuple[Tensor, Step]]] = {}
    for p, step in zip(parameters, steps, strict=True):
        kinds.setdefault((p.device, p.dtype), []).append((p, step))
    for pairs in kinds.values():
        flat = torch.cat([p.flatten() for p, _ in pairs])
        each = [step.flatten() for _, step in pairs if isinstance(step, Tensor)]
        new = penalty.minimize(flat, torch.cat(each) if each else pairs[0][1])  # a number is the same for the group
        for (p, _), part in zip(pairs, new.split([p.numel() for p, _ in pairs]), strict=True):
            p.copy_(part.view_as(p))


def _check(group: Group) -> None:
    penalty = group["penalty"]
    if penalty is not None and not isinstance(penalty, Prox):
        raise TypeError(f"penalty={penalty!r} is not a Prox: write for instance penalty=prox.L1(1e-4), or None")
    for p in group["params"]:
        if p.is_complex():
            raise TypeError(
                f"a parameter of shape {tuple(p.shape)} is complex, and proximal maps are of real tensors: optimize "
                "its torch.view_as_real, or leave it to one of PyTorch's optimizers"
            )
        if penalty is not None:
            penalty.check(p)


def _written(penalty: Prox | None) -> Prox | str | None:
    """As text, or itself where that can't be read back, as with a penalty of the user's own."""
    try:
        return repr(penalty) if penalty is not None and prox.parse(repr(penalty)) == penalty else penalty
    except (TypeError, ValueError):
        return penalty
