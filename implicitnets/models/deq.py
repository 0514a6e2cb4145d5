"""The equilibrium of any cell as a module."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..backward import Backward, Implicit
from ..backward.sync import check_group
from ..backward.transforms import plain
from ..fixed_point import check_strategies, fixed_point
from ..nonsmooth import Autograd, Selection
from ..pytree import leaves, rebuild
from ..solution import Solution, amended
from ..solvers import Anderson, Solver
from .affine import AffineForm, NotAffine
from .config import Configurable
from .starts import Start

__all__ = ["DEQ", "Equilibrium"]


class Equilibrium(Configurable, ABC):
    """What models with an equilibrium inside share: two strategies, and the records of their last use.

    Attributes:
        solver: How the equilibrium is found; assign another value to change it.
        backward: How it is differentiated; likewise.
        forward_solution: Solution of the last call, detached; None before the first.
        backward_solution: Solution of the adjoint equation of the last gradient, detached, its residual in units of
            the incoming gradient; None before the first.
        sync_group: The process group whose ranks solve together, or None; assign likewise. A copy has the same one, a
            pickle can't hold it: save the ``state_dict``.
        start: Where the solver starts if the call does not say, or None for the model's own choice.
    """

    forward_solution: Solution | None
    backward_solution: Solution | None

    def __init__(
        self,
        solver: Solver,
        backward: Backward,
        sync_group: torch.distributed.ProcessGroup | None = None,
        start: Start | None = None,
    ) -> None:
        super().__init__()
        check_strategies(solver, backward)
        check_group(sync_group)
        if start is not None and not isinstance(start, Start):
            raise TypeError(f"start={start!r} is not a Start: write for instance start=WarmStart(samples=60000)")
        self.solver, self.backward, self.sync_group, self.start = solver, backward, sync_group, start
        self._forget()

    def equilibrium(self, f: Any, z0: Any, *inputs: Any) -> Any:
        """The z with z = f(z, *inputs), differentiable; keeps the record of the solve."""
        if torch.compiler.is_compiling() and not self.backward.traceable:
            return torch.compiler.disable(self._equilibrium)(f, z0, inputs)
        return self._equilibrium(f, z0, inputs)

    def _equilibrium(self, f: Any, z0: Any, inputs: tuple[Any, ...]) -> Any:
        start = self.start if z0 is None else None
        z0 = self._start(inputs) if z0 is None else z0
        solution = fixed_point(
            f,
            z0 if start is None else start.begin(z0, inputs),
            *inputs,
            solver=self.solver,
            backward=self.backward,
            report=self._keep_backward,
            sync_group=self.sync_group,
        )
        found = amended(solution, value=rebuild(plain, solution.value))
        self.__dict__["forward_solution"] = found  # past Module.__setattr__, which looks for parameters in vain
        if start is not None:
            start.keep(found)
        return solution.value

    @abstractmethod
    def _start(self, inputs: tuple[Any, ...]) -> Any:
        """Where to start if the call does not say."""

    def _selected(self) -> AbstractContextManager[Any]:
        """Inside, what kinked operations make of the equilibrium has the derivatives that it is differentiated with."""
        selection: Selection = getattr(self.backward, "selection", Autograd())
        return selection.active()

    def affine(self, input_shape: tuple[int, ...] | None = None) -> AffineForm:
        """The model as x = φ(Ax + Bu + b), y = Cx + Du + c with dense matrices, differentiable in the parameters.

        Args:
            input_shape: Shape of one input, for models that take images of any size.

        Raises:
            NotAffine: If it is not of that form.
            ValueError: If input_shape is needed, or is wrong.
        """
        raise NotAffine(
            f"{type(self).__name__} is not known to be of the form x = φ(Ax + Bu + b), which proofs are about: "
            "ImplicitModel, MonotoneDEQ, IntervalMonotoneDEQ, LipschitzDEQ, NonEuclideanDEQ, MonotoneConvDEQ and "
            "MonotoneMultiTierDEQ are, and networks that from_sequential can convert"
        )

    def _keep_backward(self, solution: Solution) -> None:
        self.__dict__["backward_solution"] = solution  # likewise

    def _forget(self) -> None:
        self.forward_solution = self.backward_solution = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files are of the model, not of what it last did."""
        return {**vars(self), "forward_solution": None, "backward_solution": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Equilibrium:
        replica = type(self).__new__(type(self))
        memo[id(self)] = replica
        memo[id(self.sync_group)] = self.sync_group  # which can't be copied
        replica.__dict__ = copy.deepcopy(Equilibrium.__getstate__(self), memo)
        return replica

    def extra_repr(self) -> str:
        """The strategies."""
        return f"solver={self.solver!r}, backward={self.backward!r}"


class DEQ(Equilibrium):
    """The deep equilibrium model z = cell(z, *inputs) (Bai, Kolter and Koltun 2019).

    Examples:
        >>> class Cell(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.recur, self.inject = nn.Linear(16, 16), nn.Linear(4, 16)
        ...     def forward(self, z, x):
        ...         return torch.tanh(0.5 * self.recur(z) + self.inject(x))
        >>> model = nn.Sequential(DEQ(Cell(), state_shape=(16,)), nn.Linear(16, 3))
        >>> model(torch.randn(8, 4)).shape
        torch.Size([8, 3])

    Args:
        cell: A module with ``forward(z, *inputs) -> z``. It may have ``initial_state(*inputs)``.
        state_shape: Shape of the state of one sample, where the cell has no ``initial_state`` and the state is not
            like the first input.
        solver: How the equilibrium is found.
        backward: How it is differentiated.
        sync_group: The ``torch.distributed`` process group whose ranks solve together, needed where the cell has
            collectives inside, such as batch statistics over all ranks.
        start: Where the solver starts if the call does not say: ``LearnedStart``, ``WarmStart``, or None for the choice
            described at ``forward``.

    Raises:
        TypeError: If cell is not a module, or solver, backward, sync_group or start not a value of its kind. When
            called, if the cell is sharded or wrapped for distributed training: that is for the DEQ or the whole model.
    """

    def __init__(
        self,
        cell: nn.Module,
        *,
        state_shape: tuple[int, ...] | None = None,
        solver: Solver = Anderson(),
        backward: Backward = Implicit(),
        sync_group: torch.distributed.ProcessGroup | None = None,
        start: Start | None = None,
    ) -> None:
        super().__init__(solver, backward, sync_group, start)
        if not isinstance(cell, nn.Module):
            raise TypeError(
                f"cell must be an nn.Module with forward(z, *inputs), not {cell!r}: for a function use fixed_point"
            )
        self.cell = cell
        self.state_shape = None if state_shape is None else tuple(state_shape)

    def forward(self, *inputs: Any, z0: Any = None) -> Any:
        """The equilibrium for these inputs.

        Args:
            inputs: What the cell takes beside the state. Tensors whose first axis is the batch belong to the samples
                one by one.
            z0: Where to start, e.g. an earlier solution. Else it is ``cell.initial_state(*inputs)``, or zeros of shape
                ``(batch, *state_shape)``, or zeros like the first input.

        Returns:
            The state, like z0.

        Raises:
            ValueError: If there is nothing to start from.

        Warns:
            ConvergenceWarning: If a sample did not converge.
        """
        return self.equilibrium(self.cell, z0, *inputs)

    def _start(self, inputs: tuple[Any, ...]) -> Any:
        initial_state: Any = getattr(self.cell, "initial_state", None)
        if initial_state is not None:
            return initial_state(*inputs)
        tensors = [x for x in leaves(inputs) if isinstance(x, Tensor)]
        if not tensors:
            raise ValueError("DEQ called without inputs does not know its batch: pass z0=torch.zeros(batch, ...)")
        if self.state_shape is not None:
            like = next((x for x in tensors if x.is_floating_point()), torch.empty(0, device=tensors[0].device))
            return like.new_zeros((tensors[0].shape[0], *self.state_shape))
        if not tensors[0].is_floating_point():
            raise ValueError(
                f"the first input has dtype {tensors[0].dtype}, so the state can't start as zeros like it: give "
                "state_shape=(...) to DEQ, or z0= to the call"
            )
        return torch.zeros_like(tensors[0])

    def extra_repr(self) -> str:
        """The strategies, and the shape of the state where it was given."""
        shape = "" if self.state_shape is None else f"state_shape={self.state_shape}, "
        return shape + super().extra_repr()
