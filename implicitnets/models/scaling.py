"""The Perron-Frobenius eigenvalue of an implicit model, and the units in which it is a contraction."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigs, spsolve
from torch import Tensor

from ..activations import Activation, Blocks, Scaled, as_activation, plain
from ..constraints import InfNorm
from .implicit import ImplicitModel
from .structures import Triangular

__all__ = ["pf_eigenvalue", "rescale"]

LARGE = 1000
"""Up to this size of an irreducible block all its eigenvalues are computed."""


def pf_eigenvalue(model: ImplicitModel) -> float:
    """λ(|A|), the Perron-Frobenius eigenvalue of the absolute values of A.

    Below 1 the model is well-posed, and the Picard iteration converges, if φ is component-wise non-expansive (El Ghaoui
    et al. 2021, section 2). Where φ maps groups of rows to groups of states, |A| stands for the matrix of the infinity
    norms of its blocks, and the condition is γλ < 1 with γ = ``activation.lipschitz(math.inf)``. 0 if A is strictly
    block-triangular in any order of the groups: every such model is well-posed.

    Example:
        >>> model = ImplicitModel.from_matrices(*(torch.tensor([[x]]) for x in (-0.5, 1.0, 1.0, 0.0)))
        >>> pf_eigenvalue(model)
        0.5
    """
    return _eigenvalue(_group_norms(model))


def _group_norms(model: ImplicitModel) -> Any:
    """By pairs of groups, the largest absolute row sum of the block of A: a sparse array (groups, groups).

    Raises:
        ValueError: If A is not finite.
    """
    groups = as_activation(model.activation).groups(model.rows)
    row_group, state_group = _numbers(groups, 1), _numbers(groups, 2)
    a = model.A.detach().to_dense() if not model.A.is_sparse else model.A.detach().coalesce()
    rows, columns = (a.indices() if a.is_sparse else a.nonzero().T).cpu().numpy()
    entries = (a.values() if a.is_sparse else a[a != 0]).abs().double().cpu().numpy()
    count = row_group[-1] + 1
    if not np.isfinite(entries).all():
        raise ValueError("A is not finite")
    sums = scipy.sparse.coo_array((entries, (rows, state_group[columns])), shape=(model.rows, count)).tocsr().tocoo()
    pair = row_group[sums.coords[0]].astype(np.int64) * count + sums.coords[1]
    order = np.lexsort((-sums.data, pair))  # by pair of groups, the largest first
    place, first = np.unique(pair[order], return_index=True)
    largest = sums.data[order][first]
    return scipy.sparse.coo_array((largest, (place // count, place % count)), shape=(count, count)).tocsr()


def _numbers(groups: list[tuple[int, int, int]], axis: int) -> Any:
    """The number of the group of each row (axis 1) or state (axis 2)."""
    sizes = np.concatenate([np.full(group[0], group[axis]) for group in groups])
    return np.repeat(np.arange(len(sizes)), sizes)


def _eigenvalue(norms: Any) -> float:
    """The spectral radius of a nonnegative matrix: the largest of its irreducible blocks'."""
    count, label = connected_components(norms, connection="strong")
    radius = float(norms.diagonal().max(initial=0.0))
    sizes = np.bincount(label, minlength=count)
    for number in np.flatnonzero(sizes > 1):
        inside = np.flatnonzero(label == number)
        block = norms[inside][:, inside]
        if len(inside) <= LARGE:
            found = np.linalg.eigvals(block.toarray())
        else:
            found = eigs(block, k=1, which="LR", return_eigenvectors=False)
        radius = max(radius, float(found.real.max()))
    return radius


def rescale(model: ImplicitModel, kappa: float | None = None) -> ImplicitModel:
    """The same function of u by a model with ‖A‖∞ < kappa, which any model with λ(|A|) < kappa can be turned into.

    With S = diag(v), v = (I − |A| / kappa)⁻¹ 1 > 0, the states S⁻¹x are those of the model (S⁻¹AS, S⁻¹B, CS, D), whose
    activation is S⁻¹φ(S ·), and (|A|v)ᵢ / vᵢ = kappa (1 − 1 / vᵢ) < kappa (El Ghaoui et al. 2021, section 2). A
    positively homogeneous φ (relu, maxima) is not changed; others become ``Scaled``. Where φ maps groups of rows to
    groups of states, |A| stands for the matrix of infinity norms of its blocks, as in ``pf_eigenvalue``, and each
    group has one unit.

    The smaller kappa, the larger are ‖C‖∞ and what rounding costs, for which there is no need above about 0.5.

    Args:
        model: The model. It is not changed.
        kappa: The bound; None is halfway from λ(|A|) to 1.

    Returns:
        A model with these weights, copied. It keeps ‖A‖∞ ≤ kappa in training by ``InfNorm``, unless A is strictly
        triangular. Its structure is ``Full``, ``Sparse`` or ``Triangular``; its strategies are those of ``model``.

    Raises:
        ValueError: If λ(|A|) is not below 1 and kappa, or the activation is not non-expansive in the infinity norm.
    """
    norms = _group_norms(model)
    radius = _eigenvalue(norms)
    if not radius < 1:
        raise ValueError(f"the model can't be rescaled to an infinity norm below 1, since λ(|A|) = {radius:.6g}")
    kappa = (1 + radius) / 2 if kappa is None else kappa
    if not radius < kappa:
        raise ValueError(f"kappa={kappa!r} must be larger than λ(|A|) = {radius:.6g}")
    identity = scipy.sparse.eye_array(norms.shape[0], format="csc")
    scale = spsolve(identity - norms.tocsc() / kappa, np.ones(norms.shape[0]))
    phi = as_activation(model.activation)
    groups = phi.groups(model.rows)
    like = model.C.to_dense()
    rows, states = (
        torch.from_numpy(scale[_numbers(groups, axis)]).to(device=like.device, dtype=like.dtype) for axis in (1, 2)
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
        activation=_in_units(phi, model.rows, scale.tolist()),
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
