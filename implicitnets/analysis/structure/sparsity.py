"""What the weights of a model are like: what is dead, double, unused, of low rank, or without feedback."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...models import AffineForm
from ..regions import Region
from .building import double_form, in_double
from .duplicates import Duplicates, duplicate_columns, duplicates
from .editing import bounds, linear, select
from .exact import idle, unreached
from .order import Order, numbers, order

__all__ = ["Sparsity", "Spectrum", "sparsity"]


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Entries and singular values σ of a matrix.

    Attributes:
        shape: Of the matrix.
        nonzeros: How many entries are not zero.
        large: How many are larger than ``tol`` times the largest.
        rank: How many σ are above rounding errors.
        effective: exp of the entropy of σ / Σσ, from 1 to the rank (Roy and Vetterli 2007).
        stable: Σσ² / max σ².
    """

    shape: tuple[int, int]
    nonzeros: int
    large: int
    rank: int
    effective: float
    stable: float


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """What ``sparsity`` has found. States, inputs are named by their numbers.

    Attributes:
        form: The model, float64.
        spectra: Of A, B, C and D.
        constant: States that are proved not to depend on the input, of the region if there is one: dead ones.
        linear: States that are proved to be on one linear piece of φ, constant ones left out.
        idle: States that no output depends on, directly or through others.
        unreached: States that no input reaches.
        duplicates: States that are multiples of others.
        unused_inputs: Inputs that no output depends on.
        duplicate_inputs: Inputs whose columns of [B; D] are multiples of those of others.
        order: In which order the states can be computed.
        activity: On data, the share of the samples in which each state is not zero, (states,), or None.
        inactive: States that have the same value for all data, or None.
    """

    form: AffineForm
    spectra: dict[str, Spectrum]
    constant: Tensor
    linear: Tensor
    idle: Tensor
    unreached: Tensor
    duplicates: Duplicates
    unused_inputs: Tensor
    duplicate_inputs: Duplicates
    order: Order
    activity: Tensor | None = None
    inactive: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """|A B; C D|, (rows + outputs, states + inputs)."""
        return _matrix(self.form)

    @property
    def ordered_matrix(self) -> Tensor:
        """The same with the states in the order of ``order``, which makes A block-triangular."""
        return _matrix(select(self.form, self.order.permutation)[0])

    def rows(self) -> list[tuple[str, str]]:
        """What was found, as names and values for a table."""
        form = self.form
        found = [("states, inputs, outputs", f"{form.states}, {form.inputs}, {form.outputs}")]
        for name, spectrum in self.spectra.items():
            share = spectrum.nonzeros / max(1, spectrum.shape[0] * spectrum.shape[1])
            found.append(
                (
                    f"{name}, {spectrum.shape[0]}×{spectrum.shape[1]}",
                    f"{spectrum.nonzeros} nonzero ({share:.1%}), {spectrum.large} of size; rank {spectrum.rank}, "
                    f"effective {spectrum.effective:.1f}, stable {spectrum.stable:.1f}",
                )
            )
        for name, states in (
            ("constant states", self.constant),
            ("linear states", self.linear),
            ("states without effect on outputs", self.idle),
            ("states that no input reaches", self.unreached),
            ("states that are multiples of others", self.duplicates.entry),
            ("inputs without effect on outputs", self.unused_inputs),
            ("inputs that are multiples of others", self.duplicate_inputs.entry),
        ):
            found.append((name, _named(states)))
        if self.inactive is not None:
            found.append(("states that data leave constant", _named(self.inactive)))
        return [*found, ("order of states", str(self.order))]

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self.rows())


def _matrix(form: AffineForm) -> Tensor:
    return torch.cat([torch.cat([form.A, form.B], 1), torch.cat([form.C, form.D], 1)]).abs()


def _named(numbers: Tensor) -> str:
    listed = ", ".join(map(str, numbers[:8].tolist()))
    return str(len(numbers)) if not len(numbers) else f"{len(numbers)}: {listed}{', ...' if len(numbers) > 8 else ''}"


@torch.no_grad()
def sparsity(
    model: nn.Module,
    x: Tensor | None = None,
    *,
    region: Region | None = None,
    tol: float = 1e-3,
    input_shape: tuple[int, ...] | None = None,
) -> Sparsity:
    """Which weights, states and inputs a model does without, and in which order its states can be computed.

    Examples:
        >>> from implicitnets.models import from_sequential
        >>> network = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> found = sparsity(from_sequential(network, 8))
        >>> print(found.order)
        feed-forward, 2 layers of 5, 4 states from the input on

    Args:
        model: An implicit model, or another one with an affine form (``models.affine``).
        x: Inputs, (samples, ...), on which states are looked at.
        region: The inputs for which states are to be proved constant or linear; None for all.
        tol: Entries no larger than this times the largest of their matrix count as near to zero.
        input_shape: Shape of one input, where the model does not say it.

    Raises:
        ValueError: If an argument does not fit the others.
        NotAffine: If the model has no affine form.
    """
    if not 0 <= tol < 1:
        raise ValueError(f"tol={tol}: it is a share of the largest entry, at least 0 and below 1")
    form = double_form(model, input_shape)
    problem = bounds(form, None if region is None else in_double(region, form))
    slope = torch.full((form.states,), torch.nan) if problem is None else linear(problem).slope
    useless = idle(form)
    states = None if x is None else form.solve(x.flatten(1).double()).value
    return Sparsity(
        form=form,
        spectra={name: _spectrum(getattr(form, name), tol) for name in "ABCD"},
        constant=(slope == 0).nonzero().flatten(),
        linear=(torch.isfinite(slope) & (slope != 0)).nonzero().flatten(),
        idle=useless.nonzero().flatten(),
        unreached=unreached(form).nonzero().flatten(),
        duplicates=duplicates(form),
        unused_inputs=_unused_inputs(form, useless),
        duplicate_inputs=duplicate_columns(torch.cat([form.B, form.D])),
        order=order(form),
        activity=None if states is None else (states != 0).double().mean(0),
        inactive=None if states is None else (states.amin(0) == states.amax(0)).nonzero().flatten(),
    )


def _unused_inputs(form: AffineForm, useless: Tensor) -> Tensor:
    """Inputs that enter neither the outputs nor a state that matters."""
    group_of_row, group_of_state = (torch.from_numpy(numbers(form, axis)) for axis in (1, 2))
    rows = torch.isin(group_of_row, group_of_state[~useless])
    unused = ~((form.B[rows] != 0).any(0) | (form.D != 0).any(0))
    return unused.nonzero().flatten()


def _spectrum(weight: Tensor, tol: float) -> Spectrum:
    sizes, total = torch.linalg.svdvals(weight), weight.abs()
    largest = float(sizes.max())
    shares = sizes / sizes.sum().clamp_min(torch.finfo(sizes.dtype).tiny)
    shares = shares[shares > 0]
    return Spectrum(
        shape=(weight.shape[0], weight.shape[1]),
        nonzeros=int((weight != 0).sum()),
        large=int((total > tol * total.max()).sum()),
        rank=int((sizes > largest * max(weight.shape) * torch.finfo(sizes.dtype).eps).sum()),
        effective=float((-(shares * shares.log()).sum()).exp()) if len(shares) else 0.0,
        stable=float(sizes.square().sum() / largest**2) if largest > 0 else 0.0,
    )
