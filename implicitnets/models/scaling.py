"""The Perron-Frobenius eigenvalue of an implicit model, and the units in which it is a contraction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..activations import Activation, Blocks, Scaled, as_activation, plain
from ..constraints import InfNorm
from .implicit import ImplicitModel
from .perron import Growth
from .structures import Triangular

__all__ = ["pf_eigenvalue", "rescale"]


def pf_eigenvalue(model: ImplicitModel) -> float:
    """λ(|A|), the Perron-Frobenius eigenvalue of the absolute values of A.

    Below 1 the model is well-posed, and the Picard iteration converges, if φ is component-wise non-expansive (El Ghaoui
    et al. 2021, section 2). It is at most ‖A‖∞, and 0 if A is strictly triangular in any order of the states.

    Where φ maps groups of rows to groups of states, there is one λ for each choice of one row from each group, the
    entries of a row added up by groups of states, and the largest is meant: the infimum of ‖S⁻¹AS‖∞ over units S that
    are the same within a group. The condition is γλ < 1, with γ = ``activation.lipschitz(math.inf)``.

    Examples:
        >>> model = ImplicitModel.from_matrices(*(torch.tensor([[x]]) for x in (-0.5, 1.0, 1.0, 0.0)))
        >>> pf_eigenvalue(model)
        0.5
    """
    return _growth(model).eigenvalue()


def _growth(model: ImplicitModel) -> Growth:
    return Growth(model.A, as_activation(model.activation).groups(model.rows))


def rescale(model: ImplicitModel, kappa: float | None = None) -> ImplicitModel:
    """The same function of u by a model with ‖A‖∞ < kappa, which any model with λ(|A|) < kappa can be turned into.

    With S = diag(v), v = (I − |A| / kappa)⁻¹ 1 > 0, the states S⁻¹x are those of the model (S⁻¹AS, S⁻¹B, CS, D), whose
    activation is S⁻¹φ(S ·), and (|A|v)ᵢ / vᵢ = kappa (1 − 1 / vᵢ) < kappa (El Ghaoui et al. 2021, section 2). A
    positively homogeneous φ (relu, maxima) is not changed; others become ``Scaled``. Where φ maps groups of rows to
    groups of states, each group has one unit, and v is that of the rows of largest growth.

    The closer kappa is to λ(|A|), and the smaller for a feed-forward model, the more do the units v differ. A solver's
    tolerance counts the states together, so that it then means less for those in large units: take a smaller one.

    Args:
        model: The model. It is not changed.
        kappa: The bound; None is halfway from λ(|A|) to 1.

    Returns:
        A model with these weights, copied. It keeps ‖A‖∞ ≤ kappa in training by ``InfNorm``, unless A is strictly
        triangular. Its structure is ``Full``, ``Sparse`` or ``Triangular``; its strategies are those of ``model``.

    Raises:
        ValueError: If λ(|A|) is not below 1 and kappa, or the activation is not non-expansive in the infinity norm.
    """
    growth = _growth(model)
    radius = growth.eigenvalue()
    if not radius < 1:
        raise ValueError(f"the model can't be rescaled to an infinity norm below 1, since λ(|A|) = {radius:.6g}")
    kappa = (1 + radius) / 2 if kappa is None else kappa
    if not radius < kappa:
        raise ValueError(f"kappa={kappa!r} must be larger than λ(|A|) = {radius:.6g}")
    scale, phi = growth.vector(kappa), as_activation(model.activation)
    like = model.C.to_dense()
    rows, states = (
        torch.from_numpy(scale[group]).to(device=like.device, dtype=like.dtype)
        for group in (growth.group, growth.states)
    )
    structure = model.structure
    feed_forward = isinstance(structure, Triangular)
    return ImplicitModel.from_matrices(
        _scaled(model.A, 1 / rows, states),
        _scaled(model.B, 1 / rows, None),
        _scaled(model.C, None, states),
        model.D,
        None if model.b is None else model.b / rows,
        model.c,
        activation=_in_units(phi, model.rows, list(map(float, scale))),
        sizes=structure.sizes if isinstance(structure, Triangular) else None,
        constraint=None if feed_forward else InfNorm(kappa=kappa),
        solver=model.solver,
        backward=model.backward,
        start=model.start,
    )


def _scaled(weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """Diag(rows) weight diag(columns)."""
    weight = weight.detach()
    if not weight.is_sparse:
        weight = weight if rows is None else weight * rows[:, None]
        return weight if columns is None else weight * columns
    values, (i, j) = weight.values(), weight.indices()
    values = values if rows is None else values * rows[i]
    values = values if columns is None else values * columns[j]
    return torch.sparse_coo_tensor(weight.indices(), values, weight.shape, is_coalesced=True, check_invariants=False)


def _in_units(phi: Activation, rows: int, scale: list[float]) -> Any:
    """S⁻¹φ(S ·), with φ itself where it does not depend on units."""
    parts: list[Any] = []
    at = 0
    for part, count in phi.parts if isinstance(phi, Blocks) else [(phi, rows)]:
        groups = sum(n for n, _, _ in part.groups(count))
        own = tuple(scale[at : at + groups])
        at += groups
        parts.append((part if part.homogeneous else _scaled_again(part, own), count))
    return Blocks(*parts) if isinstance(phi, Blocks) else plain(parts[0][0])


def _scaled_again(phi: Activation, scale: tuple[float, ...]) -> Scaled:
    if isinstance(phi, Scaled):
        return Scaled(phi.activation, tuple(a * b for a, b in zip(phi.scale, scale, strict=True)))
    return Scaled(plain(phi), scale)
