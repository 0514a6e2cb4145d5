"""Directional derivatives of models with equilibria inside, as parts of larger equilibria."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.func import jvp
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_map

from ..fixed_point import fixed_point
from ..models import Equilibrium
from ..solution import ConvergenceWarning
from ..solvers import Separable

__all__ = ["tangent"]


def tangent(model: Callable[[Tensor], Tensor], x: Tensor, v: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    """m(x), and Dm(x)v for each of the directions v, differentiable.

    An equilibrium z = f(z, x), also inside of an ``nn.Sequential``, is solved together with its derivatives
    ż = ∂f/∂z ż + ∂f/∂x v as one fixed point (z, ż). Its Jacobian is block triangular with the blocks of f's own on the
    diagonal, so it is as well-posed as f, and differentiating it once takes less time than differentiating a derivative
    (``benchmarks/sobolev.py``). Elsewhere this is ``torch.func.jvp``; also where a sample of (z, ż) does not converge,
    since ∂f/∂z jumps at a kink of f, and solvers can lose their way there, and for maps that are solved by splitting.

    Args:
        model: m, each sample on its own.
        x: Of shape (batch, ...).
        v: Directions, each like x.

    Raises:
        TypeError: If a model of equilibria does not solve for them in the usual way.

    Warns:
        ConvergenceWarning: If a sample did not converge.
    """
    if isinstance(model, nn.Sequential):
        for stage in model:
            x, v = tangent(stage, x, v)
        return x, v
    if isinstance(model, Equilibrium) and model.solver is not None:
        with parametrize.cached():  # constrained weights are computed once
            found = _of_equilibrium(model, x, v)
        if found is not None:
            return found
    return _push(model, (x,), [(w,) for w in v])


def _push(f: Callable[..., Any], at: tuple[Any, ...], along: Sequence[tuple[Any, ...]]) -> tuple[Any, list[Any]]:
    """f, and its derivative along each of the directions."""
    both: list[Any] = [jvp(f, at, direction) for direction in along]
    return both[0][0], [moved for _, moved in both]


def _of_equilibrium(model: Equilibrium, x: Tensor, v: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]] | None:
    """By the larger equilibrium; None if that can't be."""
    f, _ = _equation(model, x)  # not from within a transform, which would leave its traces on the weights
    if isinstance(f, Separable):  # its solver may be one that needs the parts, which (z, ż) has not
        return None
    inputs, moves = _push(lambda x: _equation(model, x)[1], (x,), [(w,) for w in v])
    count = len(inputs)

    def augmented(state: tuple[Any, ...], *given: Any) -> tuple[Any, ...]:
        z, *dots = state
        now, rest = given[:count], given[count:]
        along = [(dot, *rest[i * count : (i + 1) * count]) for i, dot in enumerate(dots)]
        fz, moved = _push(f, (z, *now), along)
        return fz, *moved

    def after(x: Tensor, z: Any) -> Any:
        with _solved_by(model, lambda f, z0, *inputs: z):
            return model(x)

    z = model._start(inputs)
    start = (z, *(tree_map(lambda t: t.new_zeros(t.shape), z) for _ in v))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the forward solve, which has a way out
        found = fixed_point(
            augmented,
            start,
            *inputs,
            *(t for move in moves for t in move),
            solver=model.solver,
            backward=model.backward,
        )
    if not found.all_converged:
        return None
    z, *dots = found.value
    return _push(after, (x, z), list(zip(v, dots, strict=True)))


def _equation(model: Equilibrium, x: Tensor) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The map that the model would solve for its equilibrium, and what the map takes beside the state.

    Raises:
        TypeError: If it does not.
    """

    def stop(f: Any, z0: Any, *inputs: Any) -> Any:
        raise _Stop(f, inputs)

    with _solved_by(model, stop):
        try:
            model(x)
        except _Stop as reached:
            return reached.f, reached.inputs
    raise TypeError(f"{type(model).__name__} does not find its state by self.equilibrium")


class _Stop(Exception):
    """Ends a call where the equilibrium would be solved for."""

    def __init__(self, f: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.f, self.inputs = f, inputs


@contextmanager
def _solved_by(model: Equilibrium, solve: Callable[..., Any]) -> Iterator[None]:
    """Within this block, the model's equilibrium is what ``solve(f, z0, *inputs)`` returns.

    Yields:
        Nothing.
    """
    model.__dict__["equilibrium"] = solve
    try:
        yield
    finally:
        del model.__dict__["equilibrium"]
