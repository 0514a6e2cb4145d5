"""Where a solver starts. The solution does not depend on it, the number of steps does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..pytree import leaves, rebuild
from ..solution import Solution
from .config import Configurable

__all__ = ["LearnedStart", "Start", "WarmStart"]


class Start(Configurable, ABC):
    """A rule for where to start the solver of one model; given as ``start=`` to the model, and owned by it."""

    @abstractmethod
    def begin(self, z0: Any, inputs: tuple[Any, ...]) -> Any:
        """Where to start, like ``z0``, which is where the model would start by itself."""

    @abstractmethod
    def keep(self, solution: Solution) -> None:
        """Learn from how a solve that began here has ended; ``solution`` is detached."""


class LearnedStart(Start):
    """z₀ = predictor(*inputs), a guess at the equilibrium that is trained by its own loss.

    Examples:
        >>> from implicitnets.models import ImplicitModel
        >>> model = ImplicitModel(8, 32, 3, start=LearnedStart(nn.Linear(32, 32)))
        >>> y = model(torch.randn(16, 8))
        >>> (y.square().mean() + model.start.loss()).backward()

    Attributes:
        predictor: A module from what the map takes beside the state to a state. (For ``ImplicitModel`` that is Bu + b.)
    """

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor
        self._last: tuple[Any, Solution] | None = None
        self._guess: Any = None

    def begin(self, z0: Any, inputs: tuple[Any, ...]) -> Any:
        """The prediction.

        Raises:
            ValueError: If it is not like a state.
        """
        self._guess = self.predictor(*inputs)
        got, wanted = ([tuple(t.shape) for t in leaves(tree)] for tree in (self._guess, z0))
        if got != wanted:
            raise ValueError(f"predictor returns shapes {got} where the state has {wanted}")
        return self._guess

    def keep(self, solution: Solution) -> None:
        """Note what was to be predicted."""
        self._last = self._guess, solution
        self._guess = None

    def loss(self) -> Tensor:
        """Mean squared distance of the last prediction to the equilibrium, over the samples that converged.

        Its gradient reaches the predictor, and what made its inputs.

        Raises:
            RuntimeError: If there was no solve yet.
        """
        if self._last is None:
            raise RuntimeError("LearnedStart.loss() was called before the model was: call the model first")
        guess, solution = self._last
        errors = [
            (a - b).flatten(1)[solution.converged] for a, b in zip(*map(leaves, (guess, solution.value)), strict=True)
        ]
        entries = max(sum(error.numel() for error in errors), 1)
        loss: Tensor = torch.stack([error.square().sum() for error in errors]).sum() / entries
        return loss

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files are of the predictor, not of what it last did."""
        return {**vars(self), "_last": None, "_guess": None}


class WarmStart(Start):
    """Each sample of a data set starts where it ended the last time (zeros the first time).

    Say which samples a batch holds by ``with start.at(index): model(x)``; without, the model starts as if there were no
    cache. What is kept is not part of the ``state_dict``. A sample that did not converge is not kept.

    Examples:
        >>> from implicitnets.models import ImplicitModel
        >>> model, x = ImplicitModel(8, 32, 3, start=WarmStart(samples=100)), torch.randn(100, 8)
        >>> for index in torch.arange(100).split(20):
        ...     with model.start.at(index):
        ...         y = model(x[index])

    Attributes:
        samples: The number of samples in the data set; indices are 0 ... samples − 1.

    Raises:
        ValueError: If there are no samples.
    """

    def __init__(self, samples: int) -> None:
        super().__init__()
        if samples < 1:
            raise ValueError(f"WarmStart(samples={samples}): samples must be at least 1, the size of the data set")
        self.samples = samples
        self.forget()

    def forget(self) -> None:
        """Start from zeros again, e.g. after the weights have changed a lot."""
        self._index: Tensor | None = None
        self._states: Any = None
        self._known = torch.zeros(self.samples, dtype=torch.bool)

    @contextmanager
    def at(self, index: Tensor) -> Iterator[None]:
        """Within this block the model is called on the samples of these indices, int64 of shape (batch,).

        Raises:
            ValueError: If index is not of that form, or out of range.

        Yields:
            Nothing.
        """
        if index.dim() != 1 or index.dtype != torch.int64:
            raise ValueError(f"index must be int64 of shape (batch,), not {index.dtype} of shape {tuple(index.shape)}")
        if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < self.samples):
            raise ValueError(f"index must lie in 0 ... {self.samples - 1}: WarmStart has samples={self.samples}")
        before, self._index = self._index, index.to(self._known.device)
        try:
            yield
        finally:
            self._index = before

    def begin(self, z0: Any, inputs: tuple[Any, ...]) -> Any:
        """What is kept of these samples, and z0 for those that are new.

        Raises:
            ValueError: If the batch has another size than the index.
        """
        if self._index is None or self._states is None:
            return z0
        rows = self._index
        if leaves(z0)[0].shape[0] != rows.numel():
            raise ValueError(
                f"the batch has {leaves(z0)[0].shape[0]} samples, and the index of start.at {rows.numel()}"
            )

        def pick(zero: Tensor, states: Tensor) -> Tensor:
            known = self._known[rows].to(zero.device).reshape(-1, *[1] * (zero.dim() - 1))
            return torch.where(known, states[rows].to(zero), zero)

        return rebuild(pick, z0, self._states)

    def keep(self, solution: Solution) -> None:
        """Keep the states of the samples that converged, on the CPU."""
        if self._index is None:
            return
        if self._states is None:
            self._states = rebuild(lambda t: torch.zeros(self.samples, *t.shape[1:], dtype=t.dtype), solution.value)
        good = solution.converged.cpu()
        rows = self._index[good]
        rebuild(lambda states, t: states.index_copy_(0, rows, t.cpu()[good]), self._states, solution.value)
        self._known[rows] = True
