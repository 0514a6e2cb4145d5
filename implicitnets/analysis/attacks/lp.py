"""The attack by linear programmes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...models import affine
from ..certificates.crown import Crown
from ..certificates.lp import LinearProgram
from ..certificates.prepare import found_states, prepare
from .methods import AttackMethod
from .search import Search

__all__ = ["LinearProgramAttack"]


@dataclass(frozen=True, kw_only=True)
class LinearProgramAttack(AttackMethod):
    """The inputs for which the linear relaxation of the model is worst (El Ghaoui et al. 2021, section 4).

    For each of the likeliest wrong classes, the largest lead over the label is sought among all u of the region and x
    that satisfy the relaxed equation; see ``LinearProgram``. What is found of the relaxation need not hold of the
    model, so its u is tried. It takes a programme for each sample and class, and is in general weaker than ``PGD``, but
    it looks at the whole region at once and needs no gradient.

    Attributes:
        classes: How many wrong classes are aimed at.

    Raises:
        ValueError: If classes is not positive; when run, if the copy is not of float64.
        NotAffine: When run, if the model has no affine form, or nothing can be proved of its activation.
    """

    classes: int = 3

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"LinearProgramAttack(classes={self.classes!r}): classes must be at least 1")

    @torch.no_grad()
    def run(self, search: Search) -> None:  # noqa: D102
        if search.best.dtype != torch.float64:
            raise ValueError(f"{self!r} computes in float64: leave out attack(..., dtype=)")
        rows = search.open
        if not len(rows):
            return
        form = affine(search.victim.judge.module, search.victim.judge.shape)
        region, labels, ranking = search.region.take(rows), search.labels[rows], search.ranking[rows]
        problem = Crown().tighten(prepare(form, region, found_states(form, region.centre)))
        C, D = problem.form.C, problem.form.D
        for target in ranking[:, : self.classes].unbind(1):
            left = (~search.fooled[rows]).nonzero()[:, 0]
            if not len(left):
                return
            c, d = ((part[target] - part[labels])[left, None] for part in (C, D))
            all_of_them = c.new_full((len(left), 1), -torch.inf)
            found = LinearProgram().answer(problem.take(left), c, d, all_of_them)
            if found.u is not None:
                search.tell(rows[left], found.u)
