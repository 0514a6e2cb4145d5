"""Penalties of whole rows and of the spectrum, for which a diagonal metric leaves no closed form."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ..balls import project_l1_ball
from ..solution import ConvergenceWarning
from .base import Prox, Step, check_weight

__all__ = ["GroupL1", "LInf", "Nuclear"]

NEWTON = 60
"""Steps of the one-dimensional Newton iteration; the most that was ever seen is a dozen."""


@dataclass(frozen=True)
class GroupL1(Prox):
    """weight · Σ‖x_g‖₂ over groups of entries (Yuan and Lin 2006): whole groups become zero.

    In the scalar step s a group goes to v max(1 − s weight/‖v‖₂, 0). With steps sᵢ it is 0 where ‖v/s‖₂ ≤ weight, and
    else xᵢ = vᵢ ρ/(ρ + weight sᵢ), where ρ = ‖x‖₂ solves ‖v/(ρ + weight s)‖₂ = 1. The reciprocal of the left side is
    increasing and concave in ρ, so Newton's iteration from a lower bound rises to the root, at the end quadratically,
    and is run until the equation holds to rounding.

    Attributes:
        weight: Not negative.
        dim: The axis or axes along which a group runs: −1 for the rows of a matrix, 0 for its columns, (1, 2, 3) for
            the output channels of a convolution.

    Raises:
        ValueError: If the weight is negative.
    """

    weight: float = 1.0
    dim: int | tuple[int, ...] = -1

    def __post_init__(self) -> None:
        check_weight(self, self.weight)

    def check(self, v: Tensor) -> None:
        """Refuse tensors without these axes.

        Raises:
            ValueError: If v has no such axis.
        """
        super().check(v)
        axes = self._axes
        if len({axis % max(v.dim(), 1) for axis in axes}) < len(axes) or any(not -v.dim() <= a < v.dim() for a in axes):
            raise ValueError(f"{self!r} is not for a tensor of shape {tuple(v.shape)}: dim must name axes of it")

    @property
    def _axes(self) -> tuple[int, ...]:
        return (self.dim,) if isinstance(self.dim, int) else tuple(self.dim)

    def penalty(self, x: Tensor) -> Tensor:
        """The weighted sum of norms."""
        total: Tensor = torch.linalg.vector_norm(x, dim=self._axes).sum()
        return self.weight * total

    def minimize(self, v: Tensor, step: Step) -> Tensor:
        """The minimizer."""
        if self.weight == 0:
            return v.clone()
        if isinstance(step, Tensor):
            threshold = step.to(v) * self.weight
            length = self._length(v, threshold)
            return v * length / (length + threshold)
        norm: Tensor = torch.linalg.vector_norm(v, dim=self._axes, keepdim=True)
        return v * ((norm - step * self.weight).clamp_min(0) / norm.clamp_min(torch.finfo(v.dtype).tiny))

    def _length(self, v: Tensor, threshold: Tensor) -> Tensor:
        """The ‖x‖₂ of each group: the root ρ of ‖v/(ρ + threshold)‖₂ = 1, or 0 if there is none.

        Warns:
            ConvergenceWarning: If that was not reached.
        """
        # ρ ≥ |vᵢ| − thresholdᵢ for each i; from there no quotient is above 1.
        root = (v.abs() - threshold).amax(self._axes, keepdim=True).clamp_min(0)
        for _ in range(NEWTON):
            quotient = v / (root + threshold)
            length = torch.linalg.vector_norm(quotient, dim=self._axes, keepdim=True)
            if not bool((length > 1 + 8 * torch.finfo(v.dtype).eps).any()):
                return root
            slope = (quotient.square() / (root + threshold)).sum(self._axes, keepdim=True)
            root = root + ((length - 1) * length.square() / slope).nan_to_num(0.0).clamp_min(0)
        warnings.warn(
            f"the norm of a group of {self!r} was not found in {NEWTON} steps of Newton's iteration: the steps of its "
            "coordinates differ too much for this precision; use float64, or a larger eps of the optimizer",
            ConvergenceWarning,
            stacklevel=4,
        )
        return root


@dataclass(frozen=True)
class LInf(Prox):
    """weight · Σ max|xᵢ| over the rows, along the last axis: large entries are cut, and none becomes zero.

    By Moreau's identity the map is v − s y, with y the point of the ℓ1 ball of radius ``weight`` that is nearest to v/s
    in the metric Σ sᵢ yᵢ²: the entries of a row are cut off at ±t, with t such that Σ (|vᵢ| − t)₊/sᵢ = weight.

    Attributes:
        weight: Not negative.

    Raises:
        ValueError: If the weight is negative.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_weight(self, self.weight)

    def check(self, v: Tensor) -> None:
        """Refuse what has no rows.

        Raises:
            ValueError: If v is a number.
        """
        super().check(v)
        if v.dim() == 0:
            raise ValueError(f"{self!r} is a penalty of rows along the last axis: a number has none")

    def penalty(self, x: Tensor) -> Tensor:
        """The weighted sum of the largest absolute values."""
        return self.weight * x.abs().amax(-1).sum()

    def minimize(self, v: Tensor, step: Step) -> Tensor:
        """The minimizer."""
        if self.weight == 0:
            return v.clone()
        if not isinstance(step, Tensor):
            return v - step * project_l1_ball(v / step, self.weight)
        steps = step.to(v).expand_as(v)
        return v - steps * project_l1_ball(v / steps, self.weight, 1 / steps)


@dataclass(frozen=True)
class Nuclear(Prox):
    """weight · ‖x‖_*, the sum of the singular values: matrices of low rank.

    In a scalar step the singular values are soft-thresholded. With steps sᵢ there is no closed form, and an accelerated
    proximal-gradient iteration with restarts is run (O'Donoghue and Candès 2015) until it is proved that
    ‖x − x*‖ ≤ rtol ‖v‖ in the norm Σ xᵢ²/sᵢ: each step gives an element Y of the subdifferential at its x, and the
    duality gap ½ ‖x − v + s∘Y‖² bounds ½ ‖x − x*‖². The steps it takes grow with the ratio of the largest and the
    smallest sᵢ, and each takes a singular value decomposition.

    Attributes:
        weight: Not negative.
        rtol: What is proved of the error.
        max_steps: Of the iteration.

    Raises:
        ValueError: If weight is negative, rtol below 1e-12, or max_steps below 1.
    """

    weight: float = 1.0
    rtol: float = 1e-6
    max_steps: int = 1000

    def __post_init__(self) -> None:
        check_weight(self, self.weight)
        if not self.rtol >= 1e-12:
            raise ValueError(f"{self!r}: rtol must be at least 1e-12, as far as float64 goes")
        if self.max_steps < 1:
            raise ValueError(f"{self!r}: max_steps must be at least 1")

    def check(self, v: Tensor) -> None:
        """Refuse what is not a matrix.

        Raises:
            ValueError: If v does not have two axes.
        """
        super().check(v)
        if v.dim() != 2:
            raise ValueError(f"{self!r} is for matrices, not for a tensor of shape {tuple(v.shape)}")

    def penalty(self, x: Tensor) -> Tensor:
        """The weighted sum of singular values."""
        total: Tensor = torch.linalg.svdvals(_wide(x)).sum()
        return self.weight * total.to(x.dtype)

    def minimize(self, v: Tensor, step: Step) -> Tensor:
        """The minimizer."""
        if not isinstance(step, Tensor):
            return _shrink_spectrum(_wide(v), step * self.weight).to(v.dtype)
        # In float64, since rounding errors grow with the ratio of the steps.
        return self._iterate(v.double(), step.double().expand_as(v)).to(v)

    def _iterate(self, v: Tensor, step: Tensor) -> Tensor:
        """The minimizer, to the tolerance.

        Warns:
            ConvergenceWarning: If it was not reached.
        """
        length = step.min()  # 1/L of the smooth part
        size = (v.square() / step).sum().sqrt()
        x = ahead = v
        momentum = 1.0
        for _ in range(self.max_steps):
            moved = ahead - (length / step) * (ahead - v)
            new = _shrink_spectrum(moved, length * self.weight)
            error = ((new - v + (moved - new) * (step / length)).square() / step).sum().sqrt()
            if not bool(error > self.rtol * size):
                return new
            if bool(((ahead - new) * (new - x)).sum() > 0):  # the momentum points uphill
                momentum = 1.0
            following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead, x, momentum = new + ((momentum - 1) / following) * (new - x), new, following
        warnings.warn(
            f"{self!r} did not converge in the metric of steps from {float(length):.1e} to {float(step.max()):.1e}: "
            f"the error may be {float(error / size):.1e} of the norm of v. Allow more max_steps or a larger rtol, use "
            "a larger eps of the optimizer, or ProxSGD, whose scalar step has a closed form",
            ConvergenceWarning,
            stacklevel=4,
        )
        return new


def _wide(v: Tensor) -> Tensor:
    """In float32 at least, which singular values need."""
    return v.to(torch.promote_types(v.dtype, torch.float32))


def _shrink_spectrum(v: Tensor, threshold: Step) -> Tensor:
    left, sizes, right = torch.linalg.svd(v, full_matrices=False)
    shrunk: Tensor = (left * (sizes - threshold).clamp_min(0)) @ right
    return shrunk
