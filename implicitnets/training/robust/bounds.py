"""Bounds of a model's outputs over a region of inputs that are differentiable in its parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...analysis import Box, Region, region
from ...analysis.gains import Gains, gains, slopes, spread
from ...fixed_point import fixed_point
from ...models import AffineForm, NotAffine, affine
from ...solvers import Anderson, Solver
from ..method import Loss

__all__ = ["Relaxation", "certified_loss", "contracted", "is_stable", "worst_outputs"]

Relaxation = Literal["interval", "linear"]

RELAXATIONS = ("interval", "linear")


def certified_loss(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    radius: float | Tensor,
    *,
    norm: float | str = "inf",
    domain: tuple[float, float] | None = None,
    bounds: Relaxation = "interval",
    loss: Loss = functional.cross_entropy,
    solver: Solver = Anderson(),
) -> Tensor:
    """An upper bound of the mean over the samples of the largest loss within a radius of each, differentiable.

    It is the loss of ``worst_outputs``: a bound for every loss that depends on the differences yⱼ − y of an output to
    the label's and rises with each, as the cross entropy does (Wong and Kolter 2018, theorem 2; for implicit models
    Wei and Kolter 2022). It holds up to the tolerance of the solver, and is no proof: that is ``analysis.certify``.

    Examples:
        >>> from implicitnets.models import ImplicitModel
        >>> model, x, labels = ImplicitModel(8, 20, 3), torch.rand(5, 8), torch.arange(5) % 3
        >>> loss = certified_loss(model, x, labels, 0.1)
        >>> loss.backward()
        >>> bool(loss >= functional.cross_entropy(model(x), labels))
        True

    Args:
        model: A module with an affine form, see ``models.affine``.
        x: (batch, ...).
        labels: (batch,), int64.
        radius: As ``analysis.region`` takes it, and so are norm and domain.
        norm: "inf", 2 or 1.
        domain: The least and the largest value that an entry of an input can have, or None.
        bounds: "interval", or "linear", which is tighter and costs a solve for each class; see ``worst_outputs``.
        loss: From outputs and labels to a scalar.
        solver: What finds the equilibria of the bounds.

    Returns:
        A scalar.

    Raises:
        NotAffine: If the model has no affine form, or none whose bounds have an equilibrium.
        ValueError: If an argument is not among those named.

    Warns:
        ConvergenceWarning: If the bounds of a sample did not converge.
    """
    return loss(worst_outputs(model, x, labels, radius, norm=norm, domain=domain, bounds=bounds, solver=solver), labels)


def worst_outputs(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    radius: float | Tensor,
    *,
    norm: float | str = "inf",
    domain: tuple[float, float] | None = None,
    bounds: Relaxation = "interval",
    solver: Solver = Anderson(),
) -> Tensor:
    """Upper bounds of yⱼ − y, y the label's output, over the inputs within a radius, (batch, outputs): 0 for the label.

    A sample is robust where all others are negative. ``bounds="interval"``: the states are between the two halves of
    the equilibrium (l, h) of

        l = φ(A⁺l − A⁻h + min Bu + b),  h = φ(A⁺h − A⁻l + max Bu + b),   A = A⁺ − A⁻,

    an implicit model of twice the states (Jafarpour et al. 2021, arXiv 2112.05310; Wei and Kolter 2022). Where φ is
    the ReLU, A is first freed from its diagonal, x = relu(ax + r) being relu(r / (1 − a)). ``bounds="linear"``, for
    ReLUs: with these bounds of the pre-activations, z between p and q, each ReLU is between two lines, of slopes s and
    t, and c·x is at most, with the adjoint equilibrium v = c + Aᵀw, w = s max(v, 0) + t min(v, 0),

        max_u w·(Bu + b) − Σ s max(v, 0) min(p, 0)

    (CROWN, Zhang et al. 2018; for equilibria Li et al. 2022), and the smaller of both bounds is taken.

    Args:
        model: A module with an affine form.
        x: (batch, ...).
        labels: (batch,).
        radius: Of the region, and so are norm and domain: see ``analysis.region``.
        norm: "inf", 2 or 1.
        domain: The least and the largest value of an entry, or None.
        bounds: "interval" or "linear".
        solver: What finds the equilibria.

    Raises:
        NotAffine: If the model has no affine form, or none whose bounds have an equilibrium.
        ValueError: If bounds is neither, or does not fit the activation.

    Warns:
        ConvergenceWarning: If the bounds of a sample did not converge.
    """
    if bounds not in RELAXATIONS:
        raise ValueError(f"bounds={bounds!r}: it is 'interval' or 'linear'")
    form, where = contracted(affine(model, tuple(x.shape[1:]))), region(x, radius, norm, domain=domain)
    z = _interval(form, where, solver)
    low, high = form.activation(z[0]), form.activation(z[1])
    C, D, c = (_differences(part) for part in (form.C, form.D, form.c))
    worst = functional.linear((low + high) / 2, C, c) + functional.linear((high - low) / 2, C.abs())
    if bool(form.D.any()):
        worst = worst + _largest(where, D)
    chosen: Tensor = worst.unflatten(1, (form.outputs, form.outputs))[torch.arange(len(labels)), labels]
    if bounds == "linear":
        own = functional.one_hot(labels, form.outputs).to(c)  # a product, since the gradient of an index is slow
        weights = form.C - (own @ form.C)[:, None], form.D - (own @ form.D)[:, None]
        chosen = torch.minimum(chosen, _linear(form, where, z, weights, solver) + form.c - own @ form.c[:, None])
    return chosen


def _differences(part: Tensor) -> Tensor:
    """The j-th row minus the i-th, in row i · rows + j."""
    return (part[None] - part[:, None]).flatten(0, 1)


def _largest(where: Region, w: Tensor) -> Tensor:
    """The largest w·u for each row of w, (batch, rows), up to what a domain cuts off."""
    if isinstance(where, Box):  # fewer products than in general
        return functional.linear((where.low + where.high) / 2, w) + functional.linear(
            (where.high - where.low) / 2, w.abs()
        )
    return functional.linear(where.centre, w) + where.support(w)


def contracted(form: AffineForm) -> AffineForm:
    """The form, without the diagonal of A where φ is the ReLU, of which interval bounds have one equilibrium.

    That is so if the gains G = γ|A|, γ the largest slope of φ, have a spectral radius below 1.

    Raises:
        NotAffine: If it is not so, or φ is not component-wise and rising.
    """
    bounds = slopes(form)
    if bounds is None or bool((bounds[0] < 0).any()):
        raise NotAffine(f"activation={form.activation!r} has no interval bounds: it must be component-wise and rising")
    own = form.A.diagonal()
    if _is_relu(form) and bool((own < 1).all()):
        scale = 1 / (1 - own)
        A = scale[:, None] * (form.A - torch.diag(own))
        form = replace(form, A=A, B=scale[:, None] * form.B, b=scale * form.b, weights=None)
    with torch.no_grad():
        if not is_stable(gains(form, eliminate=False)):
            raise NotAffine(
                "interval bounds of this model have no equilibrium, since |A| has an eigenvalue of 1 or more: train an "
                "ImplicitModel with InfNorm or PerronFrobenius, an IntervalMonotoneDEQ, or a NonEuclideanDEQ of ReLUs"
            )
    return form


def is_stable(gain: Gains | None) -> bool:
    """Whether there are such gains, of a spectral radius below 1."""
    if gain is None:
        return False
    states = gain.states.detach().double()
    return bool(spread(states, states.new_ones(1, len(states))).isfinite().all())


def _is_relu(form: AffineForm) -> bool:
    return getattr(form.activation, "name", None) == "relu"


def _interval(form: AffineForm, where: Region, solver: Solver) -> tuple[Tensor, Tensor]:
    """Bounds of Ax + Bu + b, each (batch, states)."""
    up, down = form.A.clamp_min(0), form.A.clamp_max(0)
    both = torch.cat([torch.cat([up, down], 1), torch.cat([down, up], 1)]).T
    injection = torch.cat(_injection(form, where), 1)

    def step(x: Tensor, v: Tensor) -> Tensor:
        return form.activation(torch.addmm(v, x, both))

    x = fixed_point(step, torch.zeros_like(injection), injection, solver=solver).value
    low, high = torch.addmm(injection, x, both).chunk(2, 1)
    return low, high


def _injection(form: AffineForm, where: Region) -> tuple[Tensor, Tensor]:
    """The least and the largest Bu + b."""
    if isinstance(where, Box):  # fewer products than in general
        middle = functional.linear((where.low + where.high) / 2, form.B, form.b)
        reach = functional.linear((where.high - where.low) / 2, form.B.abs())
        return middle - reach, middle + reach
    middle = functional.linear(where.centre, form.B, form.b)
    return middle - where.support(-form.B), middle + where.support(form.B)


def _linear(
    form: AffineForm, where: Region, z: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor], solver: Solver
) -> Tensor:
    """Upper bounds of c·x + d·u, (batch, k), for weights (c, d) of shapes (batch, k, states) and (batch, k, inputs).

    Raises:
        ValueError: If the activation is not the ReLU.
    """
    if not _is_relu(form):
        raise ValueError(f"bounds='linear' is for ReLUs, not for activation={form.activation!r}: say 'interval'")
    (least, largest), (c, d) = z, weights
    rise, fall = largest.clamp_min(0), least.clamp_max(0)
    upper = (rise / (rise - fall).clamp_min(torch.finfo(rise.dtype).tiny))[:, None]
    lower = (largest > -least).to(rise)[:, None]

    def lines(v: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return s * v.clamp_min(0) + t * v.clamp_max(0)

    def step(v: Tensor, c: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return c + lines(v, s, t) @ form.A

    v = fixed_point(step, torch.zeros_like(c), c, upper, lower, solver=solver).value
    w = lines(v, upper, lower)
    gap = (upper * v.clamp_min(0)) @ fall[:, :, None]
    d = d + w @ form.B
    value: Tensor = (d @ where.centre[:, :, None] - gap)[..., 0] + where.support(d) + w @ form.b
    return value
