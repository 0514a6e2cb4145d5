"""Minimization of an energy of some parameters, in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["minimize"]

SHRINK, ARMIJO = 0.6, 0.1
"""Of the line search: what Liu and Zhang (2020) use in their code."""
TRIALS = 30


def minimize(energy: Callable[[], Tensor], parameters: Sequence[Tensor], steps: int) -> None:
    """Lower an energy of the parameters by nonlinear conjugate gradients (Fletcher and Reeves) with Armijo's rule.

    The first trial of a line search is the minimum of the parabola through the value, the slope, and the value at
    the last step's length. A line search that finds nothing lower ends the minimization.
    """
    value, gradient = _differentiate(energy, parameters)
    direction, length = -gradient, 1.0
    for _ in range(steps):
        slope = float(gradient @ direction)
        if slope == 0:
            return
        start = nn.utils.parameters_to_vector(parameters).detach()
        moved = _line(energy, parameters, start, direction, (value, slope, length))
        if moved is None:
            return
        length, square = moved, float(gradient @ gradient)
        value, gradient = _differentiate(energy, parameters)
        direction = (float(gradient @ gradient) / square) * direction - gradient
        if not float(gradient @ direction) < 0:
            direction = -gradient


def _line(
    energy: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    start: Tensor,
    direction: Tensor,
    known: tuple[float, float, float],
) -> float | None:
    """Go from ``start`` along ``direction`` to a point that is lower enough: how far, or None if there is none."""
    value, slope, length = known

    def at(t: float) -> float:
        nn.utils.vector_to_parameters(start + t * direction, parameters)
        with torch.no_grad():
            return float(energy())

    bend = at(length) - value - slope * length
    length = -slope * length**2 / (2 * bend) if bend > 0 else length
    for _ in range(TRIALS):
        if at(length) <= value + ARMIJO * length * slope:
            return length
        length *= SHRINK
    nn.utils.vector_to_parameters(start, parameters)
    return None


def _differentiate(energy: Callable[[], Tensor], parameters: Sequence[Tensor]) -> tuple[float, Tensor]:
    value = energy()
    grads = torch.autograd.grad(value, list(parameters))
    return float(value.detach()), torch.cat([g.reshape(-1) for g in grads])
