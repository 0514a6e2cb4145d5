"""How far each output can move with each input, in the worst case over all inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import AffineForm
from .criteria import perron_scaling
from .forms import Model, double_form
from .gains import EPS, gains, spread, to_states

__all__ = ["Sensitivity", "sensitivity", "sensitivity_matrix"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sensitivity:
    """|y(u) − y(v)| ≤ S|u − v| and |x(u) − x(v)| ≤ R|u − v| for all inputs u and v, entry by entry.

    Attributes:
        matrix: S, (outputs, inputs), float64, rounding included.
        states: R, (states, inputs).
        readout: |C|, (outputs, states).
        eliminated: Whether the diagonal of A was taken out first.
    """

    matrix: Tensor
    states: Tensor
    readout: Tensor
    eliminated: bool

    def input_scores(self, output: int | None = None) -> Tensor:
        """The furthest that an output can move for one unit of each input, (inputs,): this one, or any if None."""
        return self.matrix.amax(0) if output is None else self.matrix[output]

    def state_scores(self, output: int | None = None) -> Tensor:
        """The furthest that an output can move through each state while every input moves by up to 1, (states,).

        That is |Cᵢⱼ| times the row sum of R, of this output or the largest of all.
        """
        share = self.readout.amax(0) if output is None else self.readout[output]
        return share * self.states.sum(1)

    def inputs(self, output: int | None = None) -> Tensor:
        """The inputs from the one with the largest score to the one with the least."""
        return self.input_scores(output).argsort(descending=True, stable=True)

    def ranked_states(self, output: int | None = None) -> Tensor:
        """The states likewise."""
        return self.state_scores(output).argsort(descending=True, stable=True)


def sensitivity(model: Model, input_shape: tuple[int, ...] | None = None, *, eliminate: bool = True) -> Sensitivity:
    """The sensitivity matrix S = |C| (I − |A|)⁻¹ |B| + |D| (El Ghaoui et al. 2021, section 4).

    Where φ is component-wise with slopes in [0, γ], the diagonal of A is first taken out, see ``gains``: S is then
    never larger, and exists for more models: those of ``NonEuclideanDEQ`` instead of those with λ(|A|) < 1. S shows
    what matters to the model anywhere; it is a loose bound of what happens at an input.

    Examples:
        >>> from implicitnets.models import ImplicitModel
        >>> model = ImplicitModel(inputs=64, states=32, outputs=10)
        >>> found = sensitivity(model)
        >>> u, v = torch.rand(2, 5, 64)
        >>> bool(((model(u) - model(v)).abs() <= (u - v).abs() @ found.matrix.T.float() + 1e-4).all())
        True
        >>> found.inputs(output=3).shape
        torch.Size([64])

    Args:
        model: A model with an affine form, such a form, or a square matrix A.
        input_shape: Shape of one input, where the model does not say it.
        eliminate: Whether to take out the diagonal. False gives the matrix as it was published.

    Raises:
        NotAffine: If the model has no affine form.
        TypeError: If it is none of these.
        ValueError: If (I − |A|)⁻¹ is not a nonnegative matrix, or a weight is not finite.
    """
    form = double_form(model, input_shape)
    found = sensitivity_matrix(form, eliminate=eliminate)
    if found is None:
        raise ValueError(f"there is no sensitivity matrix: {_reason(form, eliminate)}")
    return found


def sensitivity_matrix(form: AffineForm, *, eliminate: bool = True) -> Sensitivity | None:
    """The record, or None if it does not exist."""
    found = gains(form, eliminate=eliminate)
    if found is None:
        return None
    right = to_states(form, (found.rows[:, None] * form.B.abs()).T)
    states = spread(found.states, right).T
    if not bool(torch.isfinite(states).all()):
        return None
    readout = form.C.abs()
    matrix = (readout @ states + form.D.abs()) * (1 + 4 * (form.states + 8) * EPS)
    eliminated = bool((found.own != 1).any())
    return Sensitivity(matrix=matrix, states=states, readout=readout, eliminated=eliminated)


def _reason(form: AffineForm, eliminate: bool) -> str:
    found = gains(form, eliminate=eliminate)
    if found is None:
        return f"activation={form.activation!r} has no Lipschitz constant"
    radius = 1 - perron_scaling(found.states.numpy())[0]
    what = "λ(|A|)" if bool((found.own == 1).all()) else "λ of |A|, its diagonal taken out,"
    return (
        f"{what} must be below 1 and is about {radius:.4g}. lipschitz(model) has bounds for monotone models, "
        "and well_posedness(model) tells which criterion holds"
    )
