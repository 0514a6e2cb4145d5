"""Ways to store the weights in fewer numbers, or fewer bits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...activations import plain
from ...matching import match_states
from ...models import ImplicitModel
from ...prox import L1, Prox
from ...solvers import Anderson, Fallback, Newton
from .reduction import Evidence, Reduced, Reduction, require_count, require_matrices

__all__ = ["LowRank", "Match", "Quantize", "Share"]

ROUNDS = 60
"""Alternations between two parts, and steps of k-means."""
TIGHT = Fallback(Anderson(rtol=1e-9, atol=1e-12, max_steps=200), Newton(rtol=1e-9, atol=1e-12))


@dataclass(frozen=True, kw_only=True)
class LowRank(Reduction):
    """A ← S + LRᵀ with L and R of few columns, and S the diagonal or a few entries, so that ‖A − S − LRᵀ‖ is small.

    By turns LRᵀ is the best of its rank for A − S (a singular value decomposition), and S what is left of A − LRᵀ on
    the diagonal, or its largest entries (Zhou and Tao 2011). With a diagonal the model gets the structure ``LowRank``.

    Attributes:
        rank: Columns of L and R.
        sparse: How many entries S has, anywhere; None for the diagonal.
    """

    rank: int
    sparse: int | None = None

    def __post_init__(self) -> None:
        require_count(self, "rank", self.rank, 1)
        if self.sparse is not None:
            require_count(self, "sparse", self.sparse, 0)

    def __call__(self, model: Reduced, evidence: Evidence) -> Reduced:  # noqa: D102
        A = model.form.A
        if A.shape[0] != A.shape[1]:
            raise ValueError(f"{self!r} is for a square A, and it is of shape {tuple(A.shape)}")
        rest = torch.zeros_like(A)
        for _ in range(ROUNDS):
            U, size, V = torch.linalg.svd(A - rest, full_matrices=False)
            root = size[: self.rank].sqrt()
            left, right = U[:, : self.rank] * root, V[: self.rank].T * root
            gap = A - left @ right.T
            rest = torch.diag(gap.diagonal()) if self.sparse is None else _largest(gap, self.sparse)
        changed = model.set(A=rest + left @ right.T)
        if self.sparse is None:
            return replace(changed, factors=(rest.diagonal(), left, right))
        return replace(changed, numbers=int((rest != 0).sum()) + left.numel() + right.numel())


def _largest(weight: Tensor, count: int) -> Tensor:
    """The largest entries, the others zero."""
    flat = weight.flatten()
    kept = torch.zeros_like(flat)
    best = flat.abs().topk(min(count, len(flat))).indices
    kept[best] = flat[best]
    return kept.view_as(weight)


@dataclass(frozen=True, kw_only=True)
class Quantize(Reduction):
    """Each entry becomes the nearest multiple of a step, one for each matrix: k bits an entry, with its sign.

    The step is max|M| / (2ᵏ⁻¹ − 1), so that no entry moves by more than half of it, and zero stays zero.

    Attributes:
        bits: k, from 2 to 24.
        matrices: Which are meant.
    """

    bits: int = 8
    matrices: str = "ABCD"

    def __post_init__(self) -> None:
        require_count(self, "bits", self.bits, 2, 24)
        require_matrices(self, self.matrices)

    def __call__(self, model: Reduced, evidence: Evidence) -> Reduced:  # noqa: D102
        levels = 2 ** (self.bits - 1) - 1
        rounded = {}
        for name in self.matrices:
            weight: Tensor = getattr(model.form, name)
            step = weight.abs().max() / levels
            rounded[name] = weight if step == 0 else (weight / step).round() * step
        changed = model.set(**rounded)
        return replace(changed, bits=changed.bits | dict.fromkeys(self.matrices, (self.bits, 1)))


@dataclass(frozen=True, kw_only=True)
class Share(Reduction):
    """The nonzeros of each matrix share a few values, those of k-means (Han, Mao and Dally 2016); zero stays zero.

    Attributes:
        values: How many, from 1 to 65536.
        matrices: Which are meant.
    """

    values: int = 16
    matrices: str = "ABCD"

    def __post_init__(self) -> None:
        require_count(self, "values", self.values, 1, 65536)
        require_matrices(self, self.matrices)

    def __call__(self, model: Reduced, evidence: Evidence) -> Reduced:  # noqa: D102
        shared = {name: _shared(getattr(model.form, name), self.values) for name in self.matrices}
        changed = model.set(**shared)
        bits = (max(1, math.ceil(math.log2(self.values))), self.values)
        return replace(changed, bits=changed.bits | dict.fromkeys(self.matrices, bits))


def _shared(weight: Tensor, count: int) -> Tensor:
    """Each nonzero at the mean of its cluster: Lloyd's steps from quantiles."""
    nonzero = weight != 0
    entries = weight[nonzero]
    if not len(entries):
        return weight
    ordered = entries.sort().values
    at = torch.linspace(0, len(ordered) - 1, count, dtype=torch.float64).round().long()
    centres = ordered[at].unique()
    for _ in range(ROUNDS):
        label = torch.bucketize(ordered, (centres[1:] + centres[:-1]) / 2)
        total = torch.zeros_like(centres).index_add(0, label, ordered)
        number = torch.bincount(label, minlength=len(centres))
        moved = torch.where(number > 0, total / number.clamp_min(1), centres).sort().values
        if torch.equal(moved, centres):
            break
        centres = moved
    shared = weight.clone()
    shared[nonzero] = centres[torch.bucketize(entries, (centres[1:] + centres[:-1]) / 2)]
    return shared


@dataclass(frozen=True, kw_only=True)
class Match(Reduction):
    """All weights anew, by the convex programs of ``training.match_states`` on the states of the model for data.

    Each row of [A B b; C D c] is the one of least R(M) + misfit/(2n) with ‖A‖∞ ≤ kappa (Tsai et al. 2022).

    Attributes:
        penalty: R: ``prox.L1(weight)``, ``prox.ReverseHuber(weight, level)``, ``prox.L2`` or ``prox.LInf``.
        kappa: The bound, below 1.
        max_steps: Of the alternating direction method.
    """

    penalty: Prox = L1(1e-3)
    kappa: float = 0.95
    max_steps: int = 5000

    def __call__(self, model: Reduced, evidence: Evidence) -> Reduced:  # noqa: D102
        u, form = evidence.data(self), model.form
        teacher = ImplicitModel.from_matrices(
            form.A, form.B, form.C, form.D, form.b, form.c, activation=plain(form.activation), solver=TIGHT
        )
        found, _ = match_states(teacher, u, kappa=self.kappa, penalty=self.penalty, max_steps=self.max_steps)
        new = found.affine().map(Tensor.detach)
        return model.set(A=new.A, B=new.B, C=new.C, D=new.D, b=new.b, c=new.c)
