"""The Lipschitz constant by a linear matrix inequality in the multipliers of the units."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..models import AffineForm
from .criteria import EPS, Array
from .gains import slopes
from .multipliers import Pencil, minimize, stabilizer

__all__ = ["multiplier_bound"]


def multiplier_bound(form: AffineForm, p: float, like: Tensor | None = None) -> float:
    """The least γ that multipliers prove, with ‖y(u) − y(v)‖ ≤ γ‖u − v‖ in the p-norm; ∞ if they prove none.

    In the maximum norm it is found for each output in turn, in the norm ‖u‖² = Σ tⱼuⱼ² / Σ tⱼ that is at most
    the maximum norm, for any t > 0: for a linear map it is exact with tⱼ = |Jᵢⱼ|. In the 1-norm it is found for each
    input in turn, in the norm ‖y‖² = Σ yᵢ² / tᵢ · Σ tᵢ that is at least the 1-norm.

    Args:
        form: The model.
        p: 2, 1 or infinity.
        like: A Jacobian, (outputs, inputs), from which t is taken; ones by default.
    """
    bounds = slopes(form)
    if bounds is None:
        return np.inf
    weights = stabilizer(form.A.numpy(), bounds[0].numpy(), bounds[1].numpy())
    if p == 2:
        return _bound(form, weights)
    like = torch.ones_like(form.D) if like is None else like.abs()
    shapes, found = like if p == np.inf else like.T, 0.0
    for i in shapes.sum(1).argsort(descending=True).tolist():  # the first are likely to be the largest
        share = shapes[i] + 0.1 * shapes[i].mean() + torch.finfo(like.dtype).tiny
        share = share / share.sum() * (1 + 8 * EPS * len(share))
        one, scale = torch.eye(len(shapes)).to(share)[i : i + 1], torch.diag(share.rsqrt())
        left, right = (one, scale) if p == np.inf else (scale, one.T)
        part = form.then(left, left.new_zeros(len(left))).before(right, right.new_zeros(len(right)))
        found = max(found, _bound(part, weights, enough=found**2) * (1 + 4 * EPS))
    return found


def _bound(form: AffineForm, weights: Array, enough: float = 0.0) -> float:
    """The least γ in the 2-norm, or one with γ² ≤ ``enough``, from weights with which the inequality without C holds.

    Differences fulfil Δx = DΔz, Δz = AΔx + BΔu with slopes D in [a, b], thus (Δx − aΔz)ᵢ (bΔz − Δx)ᵢ ≥ 0. If

        γ²‖Δu‖² − ‖CΔx + DΔu‖² ≥ 2 Σ λᵢ (Δx − aΔz)ᵢ (bΔz − Δx)ᵢ

    for all Δx and Δu, with some λ > 0, the left side is not negative where it matters (Revay, Wang and Manchester 2020,
    for slopes in [0, 1]). It is linear in λ and γ². It is solved on the row space of the input weights; then γ² is
    raised until the matrix of the whole inequality is positive definite, its rounding included, so that nothing
    depends on how well it was solved.
    """
    bounds = slopes(form)
    assert bounds is not None  # else there are no weights
    A, B, C, D = (tensor.numpy() for tensor in (form.A, form.B, form.C, form.D))
    least, largest = (bound.numpy() for bound in bounds)
    inputs = np.concatenate([B, D]) if D.any() else B
    triangle: Array = np.linalg.qr(inputs.T, mode="r")  # type: ignore[assignment]
    inputs = triangle.T
    direct = inputs[len(B) :] if D.any() else np.zeros((len(C), inputs.shape[1]))
    pencil = _inequality(A, inputs[: len(B)], C, direct, least, largest)
    start = _feasible(pencil, len(A), weights)
    if start is None:
        return np.inf
    square = _proved(form, least, largest, *minimize(pencil, *start, 1e4 * start[0], enough=enough))
    return float(np.sqrt(square) * (1 + 4 * EPS))


def _inequality(A: Array, B: Array, C: Array, D: Array, least: Array, largest: Array, sign: float = 1.0) -> Pencil:
    """F(λ, γ²) of (Δx, Δu); with sign −1, of absolute values, a bound of all that is added up in it."""
    states, inputs = A.shape[1], B.shape[1]
    x, z = np.eye(states, states + inputs), np.concatenate([A, B], 1)
    y = np.concatenate([C, D], 1)
    return Pencil(
        p=x - sign * least[:, None] * z,
        q=x - sign * largest[:, None] * z,
        g=np.repeat([0.0, 1.0], [states, inputs]),
        constant=sign * (y.T @ y),
    )


def _feasible(pencil: Pencil, states: int, weights: Array) -> tuple[Array, float] | None:
    """Multiples of these weights and a γ² for which F is positive definite, if F without C is in Δx."""
    bare = pencil(weights, 0.0) + pencil.constant
    own = bare[:states, :states]
    if not own.diagonal().min() > 0:
        return None
    scale = 1 / np.sqrt(own.diagonal())
    values, vectors = np.linalg.eigh(own * scale[:, None] * scale)
    if not values[0] > 0:
        return None
    root = scale[:, None] * vectors / np.sqrt(values)  # rootᵀ own root = I
    output = root.T @ pencil.constant[:states, :states] @ root
    factor = 2 * max(float(np.linalg.eigvalsh(output)[-1]), 1e-3)
    whole = factor * bare - pencil.constant
    cross = root.T @ whole[:states, states:]
    core = np.linalg.solve(factor * np.eye(states) - output, cross)
    least = float(np.linalg.eigvalsh(cross.T @ core - whole[states:, states:])[-1])
    return factor * weights, 2 * max(least, 0.0) + 1e-6 * factor * float(np.abs(bare).max())


def _proved(form: AffineForm, least: Array, largest: Array, weights: Array, square: float) -> float:
    """A γ² at least this, for which F is positive definite whatever its rounding; ∞ if there is none."""
    A, B, C, D = (tensor.numpy() for tensor in (form.A, form.B, form.C, form.D))
    exact = _inequality(A, B, C, D, least, largest)
    a, b, c, d = np.abs(A), np.abs(B), np.abs(C), np.abs(D)
    absolute = _inequality(a, b, c, d, np.abs(least), np.abs(largest), sign=-1.0)
    size, terms = len(exact.g), len(weights) + len(form.C) + 8
    for more in 10.0 ** np.arange(-9, 3):
        value, sums = exact(weights, square * (1 + more)), absolute(weights, square * (1 + more))
        if not value.diagonal().min() > 0:
            continue
        scale = 1 / np.sqrt(value.diagonal())
        value, sums = value * scale[:, None] * scale, sums * scale[:, None] * scale
        error = EPS * (terms * float(np.linalg.norm(sums)) + 8 * size * float(np.linalg.norm(value)))
        if np.linalg.eigvalsh(value)[0] > error:
            return float(square * (1 + more) * (1 + 4 * EPS))
    return np.inf
