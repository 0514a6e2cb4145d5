"""The same equilibria written otherwise: by component-wise activations alone, and with no state that feeds itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...activations import Activation, Blocks, GroupSort, MaxPool
from .problem import EPS, Bounds, Problem

__all__ = ["componentwise", "eliminated"]


@dataclass(frozen=True)
class Part:
    """A block of rows that becomes others: z′ = choose(z) + own x′, x′ = φ′(z′).

    Attributes:
        phi: The activation of the block.
        count: Groups of rows in it.
        network: How the rows of a group become relus and then its states: (relus + states, rows + relus), or None for
            a component-wise block, which stays as it is.
        rows: Rows in a group.
    """

    phi: Activation
    count: int
    network: Tensor | None
    rows: int

    @property
    def relus(self) -> int:
        """Relus that a group becomes."""
        return 0 if self.network is None else self.network.shape[1] - self.rows

    @property
    def blocks(self) -> tuple[tuple[Activation | str, int], ...]:
        """The new activation."""
        if self.network is None:
            return ((self.phi, self.count * self.rows),)
        states = self.count * (len(self.network) - self.relus)
        return (("relu", self.count * self.relus), ("identity", states)) if self.relus else (("identity", states),)

    @property
    def kept(self) -> list[bool]:
        """Which of the new states there were before."""
        added = self.count * self.relus
        return [i >= added for i in range(sum(n for _, n in self.blocks))]

    def choose(self, rows: Tensor) -> Tensor:
        """What becomes of the rows of a matrix: the relus first, then the states group by group."""
        if self.network is None:
            return rows
        made = torch.einsum("pk,ckn->pcn", self.network[:, : self.rows], rows.unflatten(0, (-1, self.rows)))
        return torch.cat([made[: self.relus].flatten(0, 1), made[self.relus :].transpose(0, 1).flatten(0, 1)])

    @property
    def own(self) -> Tensor:
        """The weights between the new states."""
        size = sum(n for _, n in self.blocks)
        weights = torch.zeros(size, size, dtype=torch.float64)
        if self.network is not None:
            link, eye = self.network[:, self.rows :], torch.eye(self.count, dtype=torch.float64)
            added = self.count * self.relus
            weights[:added, :added] = torch.kron(link[: self.relus], eye)
            weights[added:, :added] = torch.einsum("oq,cd->coqd", link[self.relus :], eye).reshape(size - added, added)
        return weights


def componentwise(problem: Problem) -> Problem:
    """The problem with MaxPool and GroupSort as relus: max(a, b) = b + relu(a − b), min(a, b) = a − relu(a − b).

    The rows of such a block become rows of relus and then one identity row for each of its states. The states that
    there were are among the new ones, in the same order; C has columns of zeros for the others.
    """
    form, u0 = problem.form, problem.region.centre
    if form.activation.componentwise:
        return problem
    parts = [_part(phi, rows) for phi, rows in Blocks((form.activation, form.rows)).parts]
    sizes = [rows for _, rows in Blocks((form.activation, form.rows)).parts]
    kept = torch.tensor([k for part in parts for k in part.kept], device=form.A.device)

    def chosen(matrix: Tensor) -> Tensor:
        return torch.cat([part.choose(rows) for part, rows in zip(parts, matrix.split(sizes), strict=True)])

    def spread(columns: Tensor) -> Tensor:
        return columns.new_zeros(len(columns), len(kept)).index_copy_(1, kept.nonzero().flatten(), columns)

    own = torch.block_diag(*(part.own for part in parts)).to(form.A)
    new = replace(
        form,
        A=spread(chosen(form.A)) + own,
        B=chosen(form.B),
        b=chosen(form.b[:, None])[:, 0],
        C=spread(form.C),
        activation=Blocks(*(block for part in parts for block in part.blocks)),
        weights=None,
    )
    start = x0 = spread(problem.x0)
    for _ in range(1 + max(part.relus for part in parts)):  # the relus of a group follow from another
        x0 = torch.where(kept, start, new.activation(new.preactivation(x0, u0)))
    fresh = Problem.of(new, problem.region, x0)
    known = [torch.where(kept, spread(old), x) for old, x in zip(problem.x, fresh.x, strict=True)]
    return replace(fresh, kept=kept).tighten(x=Bounds(*known), unique=problem.unique)


def _part(phi: Activation, rows: int) -> Part:
    if not isinstance(phi, MaxPool | GroupSort):
        return Part(phi, rows, None, 1)
    return Part(phi, rows // phi.size, _network(phi.size, sort=isinstance(phi, GroupSort)), phi.size)


def _network(size: int, *, sort: bool) -> Tensor:
    """Rows of relus and then of results, in terms of the values compared and of the relus: a tournament or a sort."""
    eye = torch.eye(size + (size * (size - 1) // 2 if sort else size - 1), dtype=torch.float64)
    values, relus = list(eye[:size]), []

    def exchange(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        relus.append(a - b)
        r = eye[size + len(relus) - 1]
        return a - r, b + r

    if sort:
        for end in range(size - 1, 0, -1):
            for i in range(end):
                values[i], values[i + 1] = exchange(values[i], values[i + 1])
    else:
        while len(values) > 1:
            left = values[len(values) // 2 * 2 :]
            values = [exchange(a, b)[1] for a, b in zip(values[::2], values[1::2], strict=False)] + left
    return torch.stack(relus + values)


def eliminated(problem: Problem) -> Problem:
    """The problem without aᵢᵢ: x = relu(ax + w) has for a < 1 the one solution relu(w / (1 − a)), and so has identity.

    Linear bounds and radii of |A| become much better (Jacobi's splitting).
    """
    form = problem.form
    names = [(getattr(phi, "name", ""), rows) for phi, rows in Blocks((form.activation, form.rows)).parts]
    plain = torch.cat([form.A.new_full((rows,), name in ("relu", "identity")) for name, rows in names]) > 0
    own = torch.where(plain & (form.A.diagonal() < 1), form.A.diagonal(), 0.0)
    if not bool(own.any()):
        return problem
    keep, relu = 1 - own, torch.cat([form.A.new_full((n,), name == "relu") for name, n in names]) > 0
    new = replace(
        form,
        A=(form.A - torch.diag(own)) / keep[:, None],
        B=form.B / keep[:, None],
        b=form.b / keep,
        weights=keep if form.weights is None else form.weights * keep,
    )
    low, high = (torch.where((z > 0) | ~relu, z, z / keep) for z in problem.z)
    z = Bounds(low - 4 * EPS * low.abs(), high + 4 * EPS * high.abs())
    return replace(problem, form=new, z=z)
