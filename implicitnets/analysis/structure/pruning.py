"""Ways to remove entries, states and inputs."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...models import AffineForm
from ...prox import L1, Prox
from ..regions import Box
from .duplicates import duplicates
from .editing import Linear, bounds, linear, select, single, whole
from .exact import fold, idle, merge, unreached
from .order import numbers
from .reduction import Evidence, Reduced, Reduction, require_count, require_matrices, require_share

__all__ = ["Exact", "Inputs", "Magnitude", "Salience", "Shrink", "States"]

SURE = 1e-9
"""A constant state is folded in if it is known so well, relatively where it is large."""


@dataclass(frozen=True, kw_only=True)
class Exact(Reduction):
    """The states that the outputs can do without go, and the outputs stay what they are.

    Those that no output depends on; those that are constant, on the region or for all inputs, or that no input reaches;
    those that are multiples of others. With ``linear``, also those that are on a linear piece of φ all over the region,
    by a Schur complement. One state stays in any case.

    Attributes:
        linear: Whether linear states go, which fills in the rows of those that depend on them.
        tol: How far the rows of two states may differ, in units of their largest entry, to count as multiples.
    """

    linear: bool = True
    tol: float = 1e-12

    def __call__(self, model: Reduced, evidence: Evidence) -> Reduced:  # noqa: D102
        model = _without_linear(model, evidence, constants_only=not self.linear)
        while True:
            before = model.form.states
            model = _without_idle(model)
            found = duplicates(model.form, self.tol)
            if len(found.entry):
                model = model.put(*merge(model.form, found))
            if model.form.states == before:
                return model


def _without_idle(model: Reduced) -> Reduced:
    useful = ~idle(model.form)
    useful[0] |= not bool(useful.any())
    useful = whole(model.form, useful)
    return model if bool(useful.all()) else model.take(useful.nonzero().flatten())


def _without_linear(model: Reduced, evidence: Evidence, *, constants_only: bool) -> Reduced:
    """Fold in what bounds show to be linear, and what no input reaches."""
    form = model.form
    problem = bounds(form, evidence.region)
    if problem is None:
        return model
    known, fixed = _with_constants(form, linear(problem))
    which = fixed if constants_only else torch.isfinite(known.slope)
    which[0] &= not bool(which.all())
    return model.put(*fold(form, known, which)) if bool(which.any()) else model


def _with_constants(form: AffineForm, known: Linear) -> tuple[Linear, Tensor]:
    """With the states that no input reaches; and which states are constants."""
    alone = (unreached(form) & single(form)).nonzero().flatten()
    here = form.B.new_zeros(1, form.inputs)
    problem = bounds(select(form, alone)[0], Box(centre=here, low=here, high=here)) if len(alone) else None
    if problem is None:
        return known, known.constant
    value, width = problem.x0[0], (problem.x.high - problem.x.low)[0]
    pieces, sure = linear(problem), width <= SURE * (1 + value.abs())
    exact = torch.isfinite(pieces.slope)  # then the equations give the value
    slope, offset, fixed = known.slope.clone(), known.offset.clone(), known.constant
    slope[alone[sure]] = torch.where(exact, pieces.slope, 0.0)[sure]
    offset[alone[sure]] = torch.where(exact, pieces.offset, value)[sure]
    fixed[alone[sure]] = True
    return Linear(slope, offset), fixed


@dataclass(frozen=True, kw_only=True)
class _Entries(Reduction):
    """The entries of largest score stay, those of all matrices in one order; the others become zero.

    Attributes:
        keep: The share of all entries that stays.
        matrices: Which are meant.
    """

    keep: float = 0.2
    matrices: str = "ABCD"

    def __post_init__(self) -> None:
        require_share(self, self.keep)
        require_matrices(self, self.matrices)

    def __call__(self, model: Reduced, evidence: Evidence) -> Reduced:
        scores = {name: self._scores(model.form, name, evidence) for name in self.matrices}
        flat = torch.cat([score.flatten() for score in scores.values()])
        count = max(1, round(self.keep * len(flat)))
        chosen = torch.zeros_like(flat, dtype=torch.bool)
        chosen[flat.topk(count).indices] = True
        masks = chosen.split([score.numel() for score in scores.values()])
        kept = {
            name: getattr(model.form, name).masked_fill(~mask.view_as(score), 0.0)
            for (name, score), mask in zip(scores.items(), masks, strict=True)
        }
        return replace(model.set(**kept), bits=model.bits)  # what was quantized still is

    @abstractmethod
    def _scores(self, form: AffineForm, name: str, evidence: Evidence) -> Tensor:
        """What each entry of a matrix is worth."""


@dataclass(frozen=True, kw_only=True)
class Magnitude(_Entries):
    """The entries of largest size stay.

    Attributes:
        keep: The share of all entries that stays.
        matrices: Which are meant: their entries compete with each other.
    """

    def _scores(self, form: AffineForm, name: str, evidence: Evidence) -> Tensor:
        weight: Tensor = getattr(form, name)
        return weight.abs()


@dataclass(frozen=True, kw_only=True)
class Salience(_Entries):
    """The entries stay that contribute most on data: |Mᵢⱼ| times the root mean square of what it multiplies.

    Attributes:
        keep: The share of all entries that stays.
        matrices: Which are meant: their entries compete with each other.
    """

    def _scores(self, form: AffineForm, name: str, evidence: Evidence) -> Tensor:
        u = evidence.data(self)
        weight: Tensor = getattr(form, name)
        seen = u if name in "BD" else form.solve(u).value
        return weight.abs() * seen.square().mean(0).sqrt()


@dataclass(frozen=True, kw_only=True)
class Shrink(Reduction):
    """M ← argmin R(M′) + ‖M′ − M‖² / 2 for each matrix: the proximal map of any penalty.

    ``prox.L1(t)`` is soft and ``prox.L0(t)`` hard thresholding, ``prox.ReverseHuber(t, level)`` the perspective
    relaxation of both sparsity and size, ``prox.GroupL1(t, dim=...)`` takes whole rows or columns.

    Attributes:
        penalty: R.
        matrices: Which are meant.

    Raises:
        TypeError: If R is not a penalty.
    """

    penalty: Prox = L1(1e-2)
    matrices: str = "ABCD"

    def __post_init__(self) -> None:
        require_matrices(self, self.matrices)
        if not isinstance(self.penalty, Prox):
            raise TypeError(f"Shrink(penalty={self.penalty!r}): not a Prox: write for instance prox.L1(1e-2)")

    def __call__(self, model: Reduced, evidence: Evidence) -> Reduced:  # noqa: D102
        return model.set(**{name: self.penalty(getattr(model.form, name), 1.0) for name in self.matrices})


@dataclass(frozen=True, kw_only=True)
class States(Reduction):
    """The states of largest worth stay: ‖row of [A B b]‖ ‖column of [A; C]‖; with data std(xⱼ) in place of the first.

    With data, what goes is replaced by its mean. States that φ makes together stay or go together.

    Attributes:
        keep: How many stay; more where φ makes several at once.
    """

    keep: int

    def __post_init__(self) -> None:
        require_count(self, "keep", self.keep, 1)

    def __call__(self, model: Reduced, evidence: Evidence) -> Reduced:  # noqa: D102
        form = model.form
        group_of_row, group_of_state = (torch.from_numpy(numbers(form, axis)) for axis in (1, 2))
        if evidence.x is None:
            size = torch.cat([form.A, form.B, form.b[:, None]], 1).square().sum(1)
            known = torch.zeros(int(group_of_row[-1]) + 1).to(size).index_add(0, group_of_row, size)[group_of_state]
            spread, mean = known.sqrt(), torch.zeros_like(known)
        else:
            x = form.solve(evidence.x).value
            spread, mean = x.std(0, correction=0), x.mean(0)
        worth = spread * torch.cat([form.A, form.C]).norm(dim=0)
        best = torch.zeros(form.states, dtype=torch.bool)
        best[worth.topk(min(self.keep, form.states)).indices] = True
        stays = whole(form, best)
        mean = mean * ~stays
        rest = replace(form, b=form.b + form.A @ mean, c=form.c + form.C @ mean)
        states = stays.nonzero().flatten()
        return replace(model, form=rest).take(states)


@dataclass(frozen=True, kw_only=True)
class Inputs(Reduction):
    """The inputs of largest worth stay: ‖column of [B; D]‖, with data times their standard deviation.

    The others have no influence any more; with data, their mean takes their place. The model still takes them.

    Attributes:
        keep: How many stay.
    """

    keep: int

    def __post_init__(self) -> None:
        require_count(self, "keep", self.keep, 1)

    def __call__(self, model: Reduced, evidence: Evidence) -> Reduced:  # noqa: D102
        form, u = model.form, evidence.x
        if self.keep >= form.inputs:
            return model
        worth = torch.cat([form.B, form.D]).norm(dim=0) * (1 if u is None else u.std(0, correction=0))
        gone = torch.ones(form.inputs, dtype=torch.bool)
        gone[worth.topk(self.keep).indices] = False
        mean = form.B.new_zeros(form.inputs) if u is None else u.mean(0) * gone
        return model.set(
            B=form.B.masked_fill(gone, 0.0),
            D=form.D.masked_fill(gone, 0.0),
            b=form.b + form.B @ mean,
            c=form.c + form.D @ mean,
        )
