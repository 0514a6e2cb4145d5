"""The interface of a backward, and the equation that it differentiates."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..nonsmooth import Selection
from ..pytree import Layout, leaves, rebuild, refuse_in_place, versions
from ..solution import Solution
from ..solvers import Separable, Solver, SplitJacobian, Splitting
from .capture import Substitution, capture, refuse_traced
from .frame import Frame
from .members import Members, as_written
from .surroundings import Surroundings, without_autocast
from .sync import Ranks, check_group, refuse_sharded, together
from .transforms import is_traced, is_wrapped

__all__ = ["Backward", "Equation", "Report"]

Report = Callable[[Solution], None]
"""What the Solution of the adjoint equation is handed to."""


@dataclass(frozen=True, kw_only=True)
class Backward(ABC):
    """How the solution of a fixed-point equation is differentiated. A value: frozen, comparable, printable."""

    remedies: ClassVar[str] = ""
    """What to try where this is the finder, and did not converge."""

    @abstractmethod
    def solve(self, equation: Equation, solver: Solver, report: Report | None) -> Solution:
        """Solve the equation with ``solver``; the value that is returned carries the gradient."""

    def finder(self, solver: Solver) -> Solver | Backward:
        """Who finds the value, and so is named where it did not converge."""
        return solver

    @property
    def traceable(self) -> bool:
        """Whether ``torch.compile`` can take the whole into its graph; else there is a break around the solve."""
        return False

    def trace(self, f: Callable[..., Any], z0: Any, inputs: Sequence[Any], solver: Solver) -> Solution:
        """As ``solve``, in nothing but tensor operations, where this is ``traceable``."""
        raise NotImplementedError(f"{self!r} can't be traced")


def belongs(x: Any, batch: int) -> bool:
    """Whether an input is one of the samples' own: a tensor whose first axis is the batch."""
    return isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == batch


class Restricted:
    """z -> f(z, *inputs), which can be cut down to some of its samples, and taken apart where the map ``of`` can."""

    def __init__(self, f: Callable[..., Any], inputs: Sequence[Any], batch: int, of: Any) -> None:
        self.f, self.inputs, self.of = f, tuple(inputs), of
        # Decided once: a matrix must not be taken for data because the batch has shrunk to its size.
        self.per_sample = rebuild(partial(belongs, batch=batch), self.inputs)

    def __call__(self, z: Any) -> Any:
        return self.f(z, *self.inputs)

    def select(self, rows: Tensor) -> Restricted:
        """The same for the samples ``rows``: inputs whose first axis is the batch are cut."""
        part = copy.copy(self)
        part.inputs = rebuild(lambda x, mine: x[rows] if mine else x, self.inputs, self.per_sample)
        return part

    def splitting(self) -> Splitting | None:
        """The parts of f for these inputs, or None."""
        return self.of.splitting(*self.inputs) if isinstance(self.of, Separable) else None


class Equation:
    """z = f(z, *inputs) from ``z0``, as a function of the tensors (operands) that f depends on.

    Attributes:
        layout: Of the state.
        frame: How it is solved: sample by sample, or as one where f mixes them, with those of other ranks or not.
        surroundings: What else f depends on.
        members: The tensors that are to be where f's modules have them.
        traced: Whether forward mode or a transform of ``torch.func`` was found to be at work, once watched.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        z0: Any,
        inputs: tuple[Any, ...],
        sync_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        check_group(sync_group)
        refuse_sharded(f)
        self.f, self.inputs = f, inputs
        self.layout = Layout.of(z0)
        device = leaves(z0)[0].device
        ranks = None if sync_group is None else Ranks.of(sync_group, self.layout, device)
        self.frame = Frame(self.layout, ranks=ranks)
        self.z0: Any = rebuild(torch.detach, z0)
        self.operands: list[Tensor] = []
        self.surroundings, self.members = Surroundings(device), Members(f)
        self.traced = False
        self._wanted: bool | None = None
        self._fz0: Any = None
        self._watched = 0

    def isolate(self) -> None:
        """Take the samples whose data are not finite out of all arithmetic: their inputs become 0, their start NaN."""
        state, batch = leaves(self.z0), self.layout.batch
        data = [t for t in state + leaves(self.inputs) if belongs(t, batch) and t.is_floating_point()]
        finite = torch.stack([torch.isfinite(t).reshape(batch, -1).all(1) for t in data]).all(0)

        def cleared(x: Any, value: float = 0.0) -> Any:
            rows = finite.reshape(-1, *[1] * (x.dim() - 1)) if isinstance(x, Tensor) else finite
            return torch.where(rows, x, value) if any(x is t for t in data) else x

        self.inputs = rebuild(cleared, self.inputs)
        self.z0 = rebuild(partial(cleared, value=torch.nan), self.z0)

    def watch(self) -> bool:
        """Evaluate f at z0, once, and find its operands; whether a derivative may be asked for any of them."""
        if self._wanted is None:
            self._wanted = self._watch()
        return self._wanted

    def _watch(self) -> bool:
        known = [x for x in leaves(self.inputs) if isinstance(x, Tensor)]
        if isinstance(self.f, nn.Module):
            known += self.members.parameters()
        state, value = leaves(self.z0), []
        before = versions(state)

        def flatten(out: Any) -> list[Tensor]:
            value.extend(self._checked(out))
            return value

        with self.surroundings.lowered(), as_written(), self.members:
            seen = capture(lambda: self.f(self.z0, *self.inputs), known, state, flatten)
        self.operands = seen.operands
        if seen.mixes:
            self.frame = replace(self.frame, joint=True)
        refuse_in_place(state, before)
        self.surroundings.complete(seen.updated)
        self._watched = 1
        self.traced = any(map(is_traced, (*state, *self.operands)))
        if not self.traced:
            refuse_traced(tuple(value))
        self._fz0 = None if self.traced else self.layout.tree([t.detach() for t in value])
        return self.traced or (torch.is_grad_enabled() and any(t.requires_grad for t in self.operands))

    def solve(self, solver: Solver, z0: Any = None, operands: Sequence[Tensor] | None = None) -> Solution:
        """Solve with the operands as they are, or with others in their place; no gradient, and no warning."""
        old, new = self._swaps(self.operands if operands is None else operands)
        z0 = self.z0 if z0 is None else z0
        if not old:
            with self.members.held():
                return self.run(self._restricted(self.f, self.inputs), z0, solver, self.frame)

        def f(z: Any, *inputs: Any) -> Any:
            with Substitution(old, new):
                return refuse_traced(self.f(z, *inputs))

        inputs = Substitution(old, new).swap(self.inputs)
        return self.run(self._restricted(f, inputs), z0, solver, self.frame)

    def run(self, f: Callable[[Any], Any], z0: Any, solver: Solver, frame: Frame) -> Solution:
        """Run the solver on f from z0, plain and in that frame, and count what was evaluated here."""
        if not frame.natural:
            inner, z0, self._fz0 = f, frame.tree(frame.rows(leaves(z0))), None

            def f(z: Any) -> Any:
                value = inner(frame.tree(frame.stacked(leaves(z))))
                flat = leaves(value) if frame.copies else self.layout.check(value, self.layout.batch)
                return frame.tree(frame.rows(flat))

        with without_autocast(self.surroundings.device):
            solution = together(self.feasible(solver), frame.ranks).run(f, z0, fz0=self._fz0)
        value = leaves(solution.value) if frame.natural else frame.stacked(leaves(solution.value))
        # No views, since FSDP2 warns of modules that return one, and no argument.
        kept = {id(t) for t in leaves(z0)}
        value = [t.clone() if t._is_view() or id(t) in kept else t for t in value]
        more, self._watched, self._fz0 = self._watched, 0, None
        if self.surroundings.updated:
            self.surroundings.rewind()
            with torch.no_grad(), self.surroundings.lowered():
                self.f(frame.tree(value), *self.inputs)
            more += 1
        return frame.told(solution, value, more)

    def feasible(self, solver: Solver) -> Solver:
        """The solver, with no tolerance below the precision that f computes in where that is less than float32's."""
        dtypes = {*self.layout.dtypes, *filter(None, [self.surroundings.autocast])}
        return solver if dtypes == {self.layout.dtype} else solver.at_least(max(torch.finfo(d).eps for d in dtypes))

    def apply(self, z: Sequence[Tensor], operands: Sequence[Tensor]) -> list[Tensor]:
        """The leaves of f(z), with ``operands`` in place of those that f was found to depend on."""
        state = self.layout.tree(z)
        old, new = self._swaps(operands)
        if not old:
            return self._call(self.f, state, *self.inputs)
        substitution, known = Substitution(old, new), [*z, *operands]
        inputs = substitution.swap(self.inputs)
        if self._all_inputs(old) and not any(map(is_wrapped, known)):  # as a rule, and then no mode is needed
            out = self._call(self.f, state, *inputs)
            if substitution.proves(out, known):
                return out
        with substitution, as_written():
            out = self._call(self.f, state, *inputs)
        substitution.check(out, known)
        return out

    def factors(self, z: Sequence[Tensor], operands: Sequence[Tensor], selection: Selection) -> SplitJacobian | None:
        """The factors of ∂f/∂z at plain (z, operands), where f tells them."""
        if not isinstance(self.f, Separable) or not self.frame.natural:
            return None
        inputs = Substitution(*self._swaps(operands)).swap(self.inputs)
        with selection.active():
            return self.f.jacobian(self.layout.pack([t.detach() for t in z]), *inputs)

    def _all_inputs(self, tensors: Sequence[Tensor]) -> bool:
        inputs = {id(x) for x in leaves(self.inputs)}
        return all(id(t) in inputs for t in tensors)

    def _swaps(self, operands: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Which tensors to use instead of which, so that f depends on ``operands``."""
        pairs = [(old, new) for old, new in zip(self.operands, operands, strict=True) if old is not new]
        instead = {id(old): new for old, new in pairs}
        for now, held in self.members.moved():
            new = instead.get(id(held), held)
            if now is not new:
                pairs.append((now, new))
        return [old for old, _ in pairs], [new for _, new in pairs]

    def _call(self, f: Callable[..., Any], z: Any, *inputs: Any) -> list[Tensor]:
        """The leaves of f as it was at its first call."""
        if not self.surroundings.matter:
            return self._checked(f(z, *inputs))
        with self.surroundings.restored():
            return self._checked(f(z, *inputs))

    def _restricted(self, f: Callable[..., Any], inputs: Sequence[Any]) -> Restricted:
        def within(*args: Any) -> Any:
            return self.layout.tree(self._call(f, *args))

        return Restricted(within if self.surroundings.matter else f, inputs, self.layout.batch, self.f)

    def _checked(self, value: Any) -> list[Tensor]:
        """The leaves of what f returned, if they are like the state's; in its dtypes, where autocast lowered them."""
        return self.layout.check(value, leaves(value)[0].shape[0])
