"""Lipschitz constants of models: what proofs say from above, and pairs of inputs from below."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import AffineForm
from .criteria import lyapunov_scaling, monotone, weighted
from .forms import Model, double_form
from .gains import EPS, constants, slopes
from .semidefinite import multiplier_bound
from .sensitivity import sensitivity_matrix
from .steepest import Pair, steepest_pair

__all__ = ["Lipschitz", "lipschitz"]

DOUBT = 1e-6
"""What is taken off a ratio, relatively, for the error of the equilibria."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lipschitz:
    """lower ≤ sup ‖y(u) − y(v)‖ / ‖u − v‖ ≤ each of ``upper``. ``str`` of it is a table.

    Attributes:
        norm: The norm of inputs and outputs: 2, 1 or infinity.
        upper: The bounds by name, rounding included; infinite where one does not apply.
        lower: A ratio that two inputs have.
        pair: These, (2, inputs), or None where no equilibrium was found.
    """

    norm: float
    upper: dict[str, float]
    lower: float
    pair: Tensor | None

    def __post_init__(self) -> None:
        for name, bound in self.upper.items():
            if not bound >= self.lower:
                raise ArithmeticError(
                    f"two inputs have the ratio {self.lower!r}, above the bound {name} = {bound!r}: please report it"
                )

    @property
    def best(self) -> str:
        """The name of the smallest bound."""
        return min(self.upper, key=lambda name: self.upper[name])

    @property
    def bound(self) -> float:
        """The smallest bound."""
        return self.upper[self.best]

    def __str__(self) -> str:
        lines = [f"| bound in the {self.norm:g}-norm | constant |", "|---|---:|"]
        lines += [f"| {name} | {f'{bound:.4g}' if bound < math.inf else '—'} |" for name, bound in self.upper.items()]
        return "\n".join([*lines, f"| found, from below | {self.lower:.4g} |"])


@torch.no_grad()
def lipschitz(
    model: Model,
    norm: float | str = 2,
    x: Tensor | None = None,
    *,
    input_shape: tuple[int, ...] | None = None,
    multipliers: bool = True,
    steps: int = 30,
    seed: int = 0,
) -> Lipschitz:
    """Bounds of the Lipschitz constant of u ↦ y.

    With γ the Lipschitz constants of φ, the bounds from above are

    - product: ‖C‖‖γB‖ / (1 − ‖γA‖) + ‖D‖, the states in this norm or in the 2-norm or maximum norm;
    - sensitivity: ‖S‖ of the matrix of ``sensitivity``, which in the maximum norm is at most the product with the
      states in that norm, in whatever units (El Ghaoui et al. 2021, section 4);
    - monotone: ‖C‖‖B‖ / m + ‖D‖, with the margin m of monotonicity, for slopes in [0, 1] (Pabbaraju, Winston and Kolter
      2021, theorem 1), and weighted: the same in a norm ‖x‖² = xᵀΛx in which I − A is monotone;
    - multipliers: the best that a linear matrix inequality in weights of the units proves (Revay, Wang and Manchester
      2020; for feed-forward networks Fazlyab et al. 2019), found by Newton steps of O((states + outputs)³). In the
      other norms it is one for each output or each input, see ``multiplier_bound``.

    Examples:
        >>> from implicitnets.models import LipschitzDEQ
        >>> model = LipschitzDEQ(inputs=64, states=20, outputs=10, lipschitz=2.0)
        >>> found = lipschitz(model)
        >>> found.best, found.lower <= found.bound <= 2.0001
        ('multipliers', True)

    Args:
        model: A model with an affine form, such a form, or a square matrix A.
        norm: Of inputs and outputs: 2, "inf" or 1.
        x: Inputs to look for steep places at, (batch, ...), flattened. By default 64 normal draws.
        input_shape: Shape of one input, where the model does not say it.
        multipliers: Whether to solve the matrix inequality.
        steps: Of the ascent from the steepest samples.
        seed: Of the draws.

    Raises:
        NotAffine: If the model has no affine form.
        TypeError: If it is none of these.
        ValueError: If the norm is another, a weight is not finite, or x or input_shape does not fit.

    Warns:
        ConvergenceWarning: If an equilibrium was not found.
    """
    p = {"2": 2.0, "inf": math.inf, "1": 1.0}.get(str(norm).removesuffix(".0"))
    if p is None:
        raise ValueError(f'norm={norm!r}: the norms are 2, "inf" and 1')
    form = double_form(model, input_shape)
    if x is None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(64, form.inputs, generator=generator, dtype=torch.float64)
    elif x.flatten(1).shape[1] != form.inputs:
        raise ValueError(f"x has shape {tuple(x.shape)}, and the model has {form.inputs} inputs")
    pair: Pair = steepest_pair(form, p, x.detach().to("cpu", torch.float64).flatten(1), steps)
    upper = {"product": _product(form, p), "sensitivity": _sensitivity(form, p), **_monotone(form, p)}
    if multipliers:
        upper["multipliers"] = multiplier_bound(form, p, pair.jacobian)
    return Lipschitz(norm=p, upper=upper, lower=pair.ratio * (1 - DOUBT), pair=pair.inputs)


def _product(form: AffineForm, p: float) -> float:
    """With the states in the p-norm, or in another in which γ‖A‖ may be smaller."""
    found = math.inf
    for inner in {p, 2.0, math.inf if p == 2 else p}:
        steepest = constants(form, inner)
        if not bool(torch.isfinite(steepest).all()):
            continue
        gain = _norm(steepest[:, None] * form.A, inner, inner)
        if gain < 1:
            inputs = _norm(steepest[:, None] * form.B, p, inner)
            found = min(found, _norm(form.C, inner, p) * inputs / (1 - gain) + _norm(form.D, p, p))
    return found


def _sensitivity(form: AffineForm, p: float) -> float:
    found = sensitivity_matrix(form)
    return math.inf if found is None else _norm(found.matrix, p, p)


def _monotone(form: AffineForm, p: float) -> dict[str, float]:
    """‖CE⁻¹‖‖EB‖ / m + ‖D‖ with E² = Λ = I, and with the better of the form's Λ and one that is looked for."""
    bounds = slopes(form)
    if bounds is None or bool((bounds[0] < 0).any() | (bounds[1] > 1).any()):
        return {"monotone": math.inf, "monotone, weighted": math.inf}
    A, nothing = form.A.numpy(), torch.zeros_like(form.A).numpy()
    own = A[:0, 0] if form.weights is None else form.weights.numpy()
    margin, found = (weighted(A, nothing, own), own) if len(own) else lyapunov_scaling(A, nothing)
    root = torch.from_numpy(found).sqrt()

    def bound(margin: float, root: Tensor) -> float:
        if not margin > 0:
            return math.inf
        return _norm(form.C / root, 2, p) * _norm(root[:, None] * form.B, p, 2) / margin + _norm(form.D, p, p)

    return {
        "monotone": bound(monotone(A, nothing), torch.ones_like(root)),
        "monotone, weighted": bound(margin, root),
    }


def _norm(matrix: Tensor, before: float, after: float) -> float:
    """A bound of ‖M‖ from one norm to another, of equal ones or one of them 2; rounding included.

    It is exact except from the maximum norm to 2, and from 2 to 1.
    """
    if before == after == 2:
        value = torch.linalg.matrix_norm(matrix, 2)
    elif before == after:
        value = torch.linalg.matrix_norm(matrix, before)
    elif before == 2:  # of the rows as functionals, added up for the norm 1
        value = torch.linalg.vector_norm(matrix, dim=1).max() if after == math.inf else matrix.abs().sum(0).norm()
    else:
        value = torch.linalg.vector_norm(matrix, dim=0).max() if before == 1 else matrix.abs().sum(1).norm()
    return float(value) * (1 + 8 * EPS * (sum(matrix.shape) + 8))
