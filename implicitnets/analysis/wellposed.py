"""Does a model have exactly one state for every input? Every criterion with its margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..models import AffineForm
from .criteria import Array, best_choice, lyapunov_scaling, monotone, nemon, scaled_rows, two_norm, weighted
from .forms import Model, double_form
from .gains import constants, slopes
from .ladder import Invertibility, SingularElement, decide, reduce, singular_element, undecided
from .partition import Index, Partition, loops
from .twins import Twins, twins

__all__ = ["WellPosedness", "well_posedness"]


@dataclass(frozen=True, kw_only=True)
class WellPosedness:
    """Whether x = φ(Ax + v) has exactly one solution for every v.

    ``str`` of it is a table.

    Attributes:
        verdict: "proved"; "refuted", with a witness; or "unknown".
        criterion: What decided: the first in ``margins`` that holds, "feed-forward", "loops" (each was proved on its
            own), or the exact test.
        margin: Of that criterion: positive where it holds, after rounding was taken off.
        margins: Of all criteria for the whole of A; each that is positive is a proof of its own. 1 − its margin bounds
            ‖A‖∞, the scaled ‖A‖∞, ‖A‖₂ and so on, of γA where φ has another Lipschitz constant γ than 1.
        scaling: The positive vector η with the smallest max (|A|η)ᵢ / ηᵢ, the ‖A‖∞ of the states in units η: the Perron
            vector of |A| in the limit. One entry for each state.
        weights: The diagonal of Λ with the largest margin of Λ(I − A) + (I − A)ᵀΛ > 0, or None if φ is none for which
            that is a criterion.
        loops: The sets of states that depend on themselves, by way of each other, as indices.
        answers: What was found of each loop, where no criterion held for the whole.
        witness: If refuted: slopes D with I − DA singular up to rounding.
        twins: If refuted and φ is relu or another with one slope on each side of 0: a v with two equilibria.
    """

    verdict: Literal["proved", "refuted", "unknown"]
    criterion: str
    margin: float
    margins: dict[str, float]
    scaling: Tensor
    weights: Tensor | None
    loops: tuple[Tensor, ...]
    answers: tuple[Invertibility, ...] = ()
    witness: SingularElement | None = None
    twins: Twins | None = None

    def __str__(self) -> str:
        lines = ["| criterion | margin | proves it |", "|---|---:|---|"]
        rows = self.margins if self.criterion in self.margins else self.margins | {self.criterion: self.margin}
        lines += [f"| {name} | {margin:.4g} | {'yes' if margin > 0 else ''} |" for name, margin in rows.items()]
        inside = sum(map(len, self.loops))
        shape = f"{inside} of {len(self.scaling)} states in loops, of {[len(loop) for loop in self.loops][:8]} states"
        lines += ["", f"well-posed: {self.verdict} ({self.criterion}); {shape if inside else 'feed-forward'}"]
        if self.twins is not None:
            lines.append(
                f"two equilibria of one v, {self.twins.distance:.3g} apart, residual {self.twins.residual:.1e}"
            )
        elif self.witness is not None:
            lines.append(f"witness: slopes with smallest singular value {self.witness.singular_value:.1e}")
        return "\n".join(lines)


def well_posedness(
    model: Model, input_shape: tuple[int, ...] | None = None, *, time_limit: float = 60.0
) -> WellPosedness:
    """Is there exactly one x = φ(Ax + Bu + b) for every u and b?

    The criteria, by their margins (proofs in the sources): 1 − ‖γA‖∞, 1 − λ(γ|A|) and 1 − λ(N) with the block norms
    Nᵢⱼ = γᵢ‖Aᵢⱼ‖ where φ acts on blocks (El Ghaoui et al. 2021, section 2), 1 − ‖γA‖₂; and for component-wise φ with
    bounded slopes NEMON, monotonicity and Lyapunov diagonal stability, see ``invertibility``. If none holds, A is taken
    apart: it is well-posed if and only if it is on every set of states that depend on each other. These get the exact
    test, are all I − DA invertible for slopes D of φ: a P-matrix test for relu.

    A refutation is of all φ with such slopes at once. For relu it is also one of this model, shown by ``twins``.

    Examples:
        >>> print(well_posedness(torch.tensor([[-3.0, 0.5], [0.5, 0.2]])))
        | criterion | margin | proves it |
        |---|---:|---|
        | infinity norm | -2.5 |  |
        | Perron-Frobenius | -2.087 |  |
        | 2-norm | -2.076 |  |
        | NEMON | 0.7237 | yes |
        | monotone | 0.7237 | yes |
        | Lyapunov | 0.7237 | yes |
        <BLANKLINE>
        well-posed: proved (NEMON); 2 of 2 states in loops, of [2] states

    Args:
        model: A model with an affine form, such a form, or a square matrix A, for which φ is relu.
        input_shape: Shape of one input, where the model does not say it.
        time_limit: Seconds for the exact test of a loop of more than 20 states.

    Raises:
        NotAffine: If the model has no affine form.
        TypeError: If it is none of these.
        ValueError: If a weight is not finite, or input_shape is needed or wrong.
    """
    form = double_form(model, input_shape)
    A, groups = form.A.numpy(), Partition.of(form, fine=True)
    norms, owner = groups.norms(A)
    cycles = loops(norms, owner)
    scaling = _scaling(norms, owner) if cycles else _substituted(norms, owner)
    margins = {"infinity norm": _unscaled(norms, owner), "Perron-Frobenius": scaling[0]}
    weights = None
    if cycles:
        found, weights = _spectral(form)
        margins |= found
    record: dict[str, Any] = {
        "margins": margins,
        "scaling": torch.from_numpy(np.repeat(scaling[1], groups.states)),
        "weights": None if weights is None else torch.from_numpy(weights),
        "loops": tuple(torch.from_numpy(groups.members(cycle)[1]) for cycle in cycles),
    }
    if not cycles:
        return WellPosedness(verdict="proved", criterion="feed-forward", margin=1.0, **record)
    holds = next((name for name, margin in margins.items() if margin > 0), None)
    if holds is not None:
        return WellPosedness(verdict="proved", criterion=holds, margin=margins[holds], **record)
    answers = tuple(_of_loop(form, groups, (norms, owner), cycle, time_limit) for cycle in cycles)
    return _summary(form, groups, cycles, answers, record)


def _summary(
    form: AffineForm, groups: Partition, cycles: list[Index], answers: tuple[Invertibility, ...], record: dict[str, Any]
) -> WellPosedness:
    """What the answers for the loops say of the whole: one that is refuted refutes it, and all must be proved."""
    worst = min(answers, key=lambda answer: ("refuted", "unknown", "proved").index(answer.verdict))
    record |= {"answers": answers, "criterion": worst.criterion, "margin": worst.margin}
    if worst.verdict == "proved":
        name = worst.criterion if len(answers) == 1 else "loops"
        record |= {"criterion": name, "margin": min(answer.margin for answer in answers)}
        return WellPosedness(verdict="proved", **record)
    witness = _witness(form, groups, cycles[answers.index(worst)], worst)
    if witness is None:
        return WellPosedness(verdict="unknown", **record)
    return WellPosedness(verdict="refuted", witness=witness, twins=twins(form, witness), **record)


def _unscaled(norms: Array, owner: Index) -> float:
    return scaled_rows(norms, np.ones(norms.shape[1]), owner) if np.isfinite(norms).all() else -np.inf


def _scaling(norms: Array, owner: Index) -> tuple[float, Array]:
    return best_choice(norms, owner) if np.isfinite(norms).all() else (-np.inf, np.ones(norms.shape[1]))


def _substituted(norms: Array, owner: Index) -> tuple[float, Array]:
    """The same where there is no loop: η = 1 + 1000 times the largest Nη of the block, block after block."""
    eta = ones = np.ones(norms.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(norms.shape[1]):
            before, eta = eta, ones.copy()
            np.maximum.at(eta, owner, 1 + 1e3 * (norms @ before))
            if np.array_equal(before, eta) and np.isfinite(eta).all():
                return scaled_rows(norms, eta, owner), eta
    return _unscaled(norms, owner), ones  # numbers too large for the dtype


def _spectral(form: AffineForm) -> tuple[dict[str, float], Array | None]:
    """The margins of the criteria in Euclidean norms, and Λ where there is one."""
    A, found = form.A.numpy(), dict[str, float]()
    steepest = constants(form, 2)
    if not form.activation.componentwise:
        found["block norms"] = _scaling(*Partition.of(form, fine=False).norms(A))[0]
    if bool(torch.isfinite(steepest).all()):
        scaled = steepest[:, None].numpy() * A
        found["2-norm"] = two_norm(scaled, np.finfo(np.float64).eps * np.abs(scaled))
    bounds = slopes(form)
    if bounds is None:
        return found, None
    reduced = reduce(A, bounds[0].numpy(), bounds[1].numpy())
    if not (len(reduced.free) and np.isfinite(reduced.radius).all()):
        return found, None
    w, radius = reduced.matrix, reduced.radius
    found |= {"NEMON": nemon(w, radius), "monotone": monotone(w, radius)}
    margin = found["monotone"]
    weights: Array = np.ones(len(w))
    if form.weights is not None and len(w) == form.states:
        own = form.weights.numpy()
        margin, weights = max((margin, weights), (weighted(w, radius, own), own), key=lambda pair: pair[0])
    if max(*found.values(), margin) <= 0:
        margin, weights = max((margin, weights), lyapunov_scaling(w, radius), key=lambda pair: pair[0])
    found["Lyapunov"] = margin
    return found, weights if len(w) == form.states else None


def _of_loop(
    form: AffineForm, groups: Partition, gains: tuple[Array, Index], cycle: Index, time_limit: float
) -> Invertibility:
    """The question for some blocks alone."""
    norms, owner = gains
    rows, states = groups.members(cycle)
    part = form.A.numpy()[np.ix_(rows, states)]
    bounds = slopes(form, rows)
    if bounds is not None:
        return decide(part, bounds[0].numpy(), bounds[1].numpy(), time_limit)
    mine = np.isin(owner, cycle)
    inside = norms[mine][:, cycle], np.searchsorted(cycle, owner[mine])
    tried = {"infinity norm": _unscaled(*inside), "Perron-Frobenius": _scaling(*inside)[0]}
    steepest = constants(form, 2).numpy()[rows, None]
    if np.isfinite(steepest).all():
        tried["2-norm"] = two_norm(steepest * part, np.finfo(np.float64).eps * np.abs(steepest * part))
    name = max(tried, key=lambda key: tried[key])
    if tried[name] > 0:
        return Invertibility(verdict="proved", criterion=name, margin=tried[name], tried=tried, free=len(states))
    return undecided(name, tried, len(states))


def _witness(form: AffineForm, groups: Partition, cycle: Index, answer: Invertibility) -> SingularElement | None:
    """The slopes of a loop, beside the least slopes of the other states: det(I − DA) is the product of the loops'."""
    if answer.witness is None:
        return None
    bounds = slopes(form)
    if bounds is None:
        return None  # other states have no slopes: the answer for the loop stands alone
    D = bounds[0].numpy().copy()
    D[groups.members(cycle)[0]] = answer.witness.slopes.numpy()
    return singular_element(form.A.numpy(), D)
