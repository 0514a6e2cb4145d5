"""The record of an iteration that a backward runs itself, in place of the solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..pytree import leaves
from ..solution import Solution, amended
from ..solvers import Solver
from .base import Equation
from .implicit import solve_apart

__all__ = ["measured"]


def measured(equation: Equation, z: Sequence[Tensor], solver: Solver, *, steps: int, evaluations: int) -> Solution:
    """The Solution whose value is ``z``, reached by ``steps`` steps in which f was called ``evaluations`` times.

    The residual is measured by one more call of f, and judged by the tolerances of ``solver``, which takes no step.
    """
    layout = equation.layout

    def f(state: Any) -> Any:
        return layout.tree(equation.apply(leaves(state), equation.operands))

    judge, start = replace(solver, max_steps=0, record=False), [leaf.detach() for leaf in z]
    found = solve_apart(equation, judge, start) if equation.traced else judge.run(f, layout.tree(start))
    return amended(
        found,
        value=layout.tree(z),
        steps=torch.full_like(found.steps, steps),
        evaluations=evaluations + found.evaluations,
    )
