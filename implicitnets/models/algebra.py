"""Compositions of implicit models, which are implicit models again (El Ghaoui et al. 2021, section 3).

The states of the result are in the order *last block first*: what is computed later stands before what it depends
on. So A is block-triangular where nothing is fed back, its diagonal blocks being those of the parts, and the result is
well-posed exactly if all parts are. Its λ(|A|) is the largest of theirs (``pf_eigenvalue``), while ‖A‖∞ may be larger:
``rescale`` brings it below 1 again. If all parts are ``Triangular`` the result is, and is solved in one pass.

Weights are copied. The result has no constraint; its solver and backward are those of the first part that has a solver.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from ..activations import Product, as_activation
from .implicit import ImplicitModel
from .scaling import pf_eigenvalue
from .systems import System, after, block, check_map, diagonal, join, mm, plus, same_outputs, systems

__all__ = [
    "add",
    "affine_input",
    "affine_output",
    "cascade",
    "concatenate",
    "feedback",
    "multiply",
    "parallel",
]


def cascade(*models: ImplicitModel) -> ImplicitModel:
    """One after the other: y = Mₖ(... M₂(M₁(u))).

    Two of them have A = [[A₂, B₂C₁], [0, A₁]], B = [B₂D₁; B₁], C = [C₂, D₂C₁], D = D₂D₁. Well-posed if all are.

    Args:
        models: In the order in which they are applied.

    Raises:
        ValueError: If the outputs of one are not as many as the inputs of the next.
        TypeError: If one is not an ImplicitModel.
    """

    def pair(first: System, second: System) -> System:
        if first.C.shape[0] != second.B.shape[1]:
            raise ValueError(
                f"a model with {first.C.shape[0]} outputs is followed by one of {second.B.shape[1]} inputs"
            )
        zero = (first.A.shape[0], second.A.shape[1])
        return System(
            A=block([[second.A, mm(second.B, first.C)], [zero, first.A]]),
            B=block([[mm(second.B, first.D)], [first.B]]),
            C=block([[second.C, mm(second.D, first.C)]]),
            D=mm(second.D, first.D),
            b=torch.cat([second.B @ first.c + second.b, first.b]),
            c=second.D @ first.c + second.c,
            **join(second, first),
        )

    return reduce(pair, systems(models)).model()


def parallel(*models: ImplicitModel) -> ImplicitModel:
    """Side by side: (u₁, u₂, ...) -> (M₁(u₁), M₂(u₂), ...), inputs and outputs concatenated. Well-posed if all are.

    Args:
        models: In the order of inputs and outputs.

    Raises:
        TypeError: If one is not an ImplicitModel.
    """

    def pair(first: System, second: System) -> System:
        return System(
            A=diagonal(first.A, second.A),
            B=diagonal(first.B, second.B),
            C=diagonal(first.C, second.C),
            D=diagonal(first.D, second.D),
            b=torch.cat([first.b, second.b]),
            c=torch.cat([first.c, second.c]),
            **join(first, second),
        )

    return reduce(pair, systems(models)).model()


def concatenate(*models: ImplicitModel) -> ImplicitModel:
    """Of one input, all outputs: u -> (M₁(u), M₂(u), ...). Well-posed if all are.

    Args:
        models: In the order of outputs.

    Raises:
        ValueError: If they have different numbers of inputs.
        TypeError: If one is not an ImplicitModel.
    """
    return reduce(_concatenated, systems(models)).model()


def _concatenated(first: System, second: System) -> System:
    if first.B.shape[1] != second.B.shape[1]:
        raise ValueError(f"models with {first.B.shape[1]} and with {second.B.shape[1]} inputs can't share one")
    return System(
        A=diagonal(first.A, second.A),
        B=block([[first.B], [second.B]]),
        C=diagonal(first.C, second.C),
        D=block([[first.D], [second.D]]),
        b=torch.cat([first.b, second.b]),
        c=torch.cat([first.c, second.c]),
        **join(first, second),
    )


def add(*models: ImplicitModel) -> ImplicitModel:
    """The sum of the outputs: u -> M₁(u) + M₂(u) + ... Well-posed if all are.

    Args:
        models: The terms.

    Raises:
        ValueError: If they have different numbers of inputs or outputs.
        TypeError: If one is not an ImplicitModel.
    """
    terms = systems(models)
    outputs = same_outputs(terms)
    ones = torch.eye(outputs).repeat(1, len(terms)).to(terms[0].c)
    return after(reduce(_concatenated, terms), ones, torch.zeros_like(terms[0].c)).model()


def multiply(first: ImplicitModel, second: ImplicitModel) -> ImplicitModel:
    """The element-wise product of the outputs, u -> M₁(u) · M₂(u), by a block of products of two rows.

    Well-posed if both are. A product is not Lipschitz on all inputs, so that bounds for all inputs (and ``rescale``) do
    not exist; nothing is fed back from the products, so that this does not endanger the equilibrium. (By polarization,
    ((y₁ + y₂) / 2)² − ((y₁ − y₂) / 2)², it could be done with squares alone, at a loss of digits where y₁ and y₂ differ
    in size.)

    Args:
        first: One factor.
        second: The other.

    Raises:
        ValueError: If they have different numbers of inputs or outputs.
        TypeError: If one is not an ImplicitModel.
    """
    factors = systems((first, second))
    outputs = same_outputs(factors)
    unit = torch.eye(outputs).to(factors[0].c)
    paired = torch.eye(2 * outputs).to(unit).unflatten(0, (2, outputs)).transpose(0, 1).flatten(0, 1)
    mixed = after(reduce(_concatenated, factors), paired, paired.new_zeros(2 * outputs))
    (rows, states), inputs = mixed.A.shape, mixed.B.shape[1]
    return System(
        A=block([[(2 * outputs, outputs), mixed.C], [(rows, outputs), mixed.A]]),
        B=block([[mixed.D], [mixed.B]]),
        C=block([[unit, (outputs, states)]]),
        D=unit.new_zeros(outputs, inputs),
        b=torch.cat([mixed.c, mixed.b]),
        c=torch.zeros_like(factors[0].c),
        blocks=((Product(size=2), 2 * outputs), *mixed.blocks),
        sizes=None if mixed.sizes is None else (outputs, *mixed.sizes),
        solver=mixed.solver,
        backward=mixed.backward,
    ).model()


def affine_input(
    model: ImplicitModel,
    K: Tensor,
    k: Tensor | None = None,
) -> ImplicitModel:
    """An affine map first: u -> M(Ku + k). Well-posed if M is.

    Args:
        model: M.
        K: (inputs of M, inputs of the result), dense or sparse.
        k: (inputs of M,).

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If the model is not an ImplicitModel.
    """
    system = System.of(model)
    check_map(K, system.B.shape[1], None)
    k = system.b.new_zeros(K.shape[0]) if k is None else k
    b, c = system.b + system.B @ k, system.c + system.D @ k
    return replace(system, B=mm(system.B, K), D=mm(system.D, K), b=b, c=c).model()


def affine_output(
    model: ImplicitModel,
    K: Tensor,
    k: Tensor | None = None,
) -> ImplicitModel:
    """An affine map last: u -> K M(u) + k. Well-posed if M is.

    Args:
        model: M.
        K: (outputs of the result, outputs of M), dense or sparse.
        k: (outputs of the result,).

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If the model is not an ImplicitModel.
    """
    system = System.of(model)
    check_map(K, None, system.C.shape[0])
    return after(system, K, system.c.new_zeros(K.shape[0]) if k is None else k).model()


def feedback(model: ImplicitModel, K: Tensor) -> ImplicitModel:
    """The closed loop: v -> y with y = M(u), u = v + Ky.

    With R = (I − DK)⁻¹ it is (A + BKRC, B + BKRD, RC, RD). Its well-posedness does not follow from that of M, and is
    checked: with γ the Lipschitz constant of φ in the infinity norm, γλ(|A + BKRC|) < 1 proves it.

    Args:
        model: M.
        K: (inputs, outputs) of M, dense.

    Raises:
        ValueError: If the shape does not fit, or I − DK is singular.
        TypeError: If the model is not an ImplicitModel.

    Warns:
        UserWarning: If the result is not proved to be well-posed.
    """
    system = System.of(model)
    check_map(K, system.B.shape[1], system.C.shape[0])
    loop = torch.eye(K.shape[1]).to(K) - system.D @ K
    if not torch.linalg.matrix_rank(loop) == len(loop):
        raise ValueError("the loop has no solution, since I - DK is singular: change K, or use a model with D = 0")
    R = torch.linalg.inv(loop)
    into = mm(system.B, K @ R)
    closed = replace(
        system,
        A=plus(system.A, mm(into, system.C)),
        B=plus(system.B, mm(into, system.D)),
        C=mm(R, system.C),
        D=mm(R, system.D),
        b=system.b + into @ system.c,
        c=R @ system.c,
        sizes=None,
    ).model()
    radius, gamma = pf_eigenvalue(closed), as_activation(closed.activation).lipschitz(math.inf)
    if radius > 0 and not gamma * radius < 1:
        warnings.warn(
            f"the closed loop is not proved to be well-posed: λ(|A|) = {radius:.6g}, where {1 / gamma:.6g} is the "
            "limit for its activation. A smaller K may help, and analysis.invertibility knows more criteria",
            stacklevel=2,
        )
    return closed
