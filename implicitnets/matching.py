"""State matching: an implicit model fitted to the states of another one by convex problems, one for each row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .activations import as_activation
from .constraints import InfNorm
from .models import ImplicitModel
from .prox import L1, Prox
from .rows import RowFit, match_rows
from .solvers import Anderson, Fallback, Picard, Solver

__all__ = ["Matching", "match_states"]


@dataclass(frozen=True, kw_only=True)
class Matching:
    """The record of ``match_states``.

    Attributes:
        hidden: The rows of [A B b].
        outputs: The rows of [C D c].
    """

    hidden: RowFit
    outputs: RowFit


def match_states(
    teacher: ImplicitModel,
    inputs: Tensor,
    *,
    kappa: float = 0.95,
    penalty: Prox = L1(1e-3),
    exact: bool = False,
    rtol: float = 1e-6,
    max_steps: int = 5000,
    solver: Solver | None = None,
) -> tuple[ImplicitModel, Matching]:
    """State-driven implicit modeling (Tsai, Decugis, El Ghaoui and Atamtürk 2022, arXiv 2209.09389).

    With X = φ(Z) the states of the teacher for the inputs U, and Y its outputs, each row of M = [A B b; C D c] solves

        min  R(M) + 1/(2n) ‖Z − (AX + BU + b)‖² + 1/(2n) ‖Y − (CX + DU + c)‖²   subject to  ‖A‖∞ ≤ kappa,

    or min R(M) subject to Z = AX + BU + b, Y = CX + DU + c and ‖A‖∞ ≤ kappa; R leaves out b and c. Any trained
    feed-forward network can be the teacher by ``models.from_sequential``, and so can an implicit model that is to
    become sparse, or better conditioned, without a gradient through any equilibrium.

    Example:
        >>> from implicitnets.prox import L2
        >>> teacher = ImplicitModel(8, 20, 3)
        >>> model, record = match_states(teacher, torch.randn(200, 8), kappa=0.9, penalty=L2(1e-6))
        >>> bool(model.A.abs().sum(1).max() <= 0.9 + 1e-6), bool(record.hidden.converged.all())
        (True, True)

    Args:
        teacher: Whose states are matched.
        inputs: U, of shape (n, inputs).
        kappa: The bound of ‖A‖∞, below 1 for well-posedness.
        penalty: R: ``prox.L1(weight)`` makes M sparse, and so does ``prox.ReverseHuber(weight, level)``, which shrinks
            large weights less; ``prox.LInf(weight)`` bounds the largest weights of the rows, ``prox.L2(weight)`` is a
            ridge regression.
        exact: Whether the second problem is meant. Where the equations have no solution, as with more samples than
            columns for a kappa that is too small, rows do not converge, or have a misfit.
        rtol: Tolerance of a row's residuals.
        max_steps: Of the alternating direction method.
        solver: Of the model. None is ``Anderson()``, and for samples that it does not solve ``Picard``, which converges
            at the rate kappa.

    Returns:
        The model with ``InfNorm(kappa=kappa)`` and the teacher's φ, and the record. How near its states are to those of
        the teacher, ‖x − x′‖∞ ≤ ‖Z − (AX + BU + b)‖∞ / (1 − kappa) for a φ that is 1-Lipschitz, shows in the misfit.

    Raises:
        TypeError: If the teacher is not an ``ImplicitModel``, or R none of these penalties.
        ValueError: If the inputs have another shape, or the bound does not make a model with this φ well-posed.

    Warns:
        ConvergenceWarning: If a row did not converge, with how many.
    """
    if not isinstance(teacher, ImplicitModel):
        raise TypeError(f"teacher must be an ImplicitModel, not {type(teacher).__name__}: use models.from_sequential")
    constraint = InfNorm(kappa=kappa)
    constraint.for_activation(as_activation(teacher.activation))
    with torch.no_grad():
        x = teacher.state(inputs)
        z = (teacher.A.to_dense() @ x.T + teacher.B.to_dense() @ inputs.T).T + (0 if teacher.b is None else teacher.b)
        y = teacher.readout(x, inputs)
    columns = torch.cat((x, inputs, x.new_ones(len(x), int(teacher.bias))), 1).double()
    blocks = (("[A B b]", z, (teacher.states, kappa)), ("[C D c]", y, (0, kappa)))
    fits: list[RowFit] = []
    for name, target, ball in blocks:
        fit = match_rows(
            columns,
            target.double(),
            penalty=penalty,
            ball=ball,
            unpenalized=int(teacher.bias),
            exact=exact,
            rtol=rtol,
            max_steps=max_steps,
            name=name,
            stacklevel=3,
        )
        fits.append(fit)
    widths = [teacher.states, teacher.inputs, int(teacher.bias)]
    (A, B, b), (C, D, c) = (fit.weights.to(x.dtype).split(widths, 1) for fit in fits)
    biases = {"b": b[:, 0], "c": c[:, 0]} if teacher.bias else {}
    solver = solver or Fallback(Anderson(), Picard(max_steps=1000))
    model = ImplicitModel.from_matrices(
        A, B, C, D, activation=teacher.activation, constraint=constraint, solver=solver, **biases
    )
    return model, Matching(hidden=fits[0], outputs=fits[1])
