"""What is analysed: the affine form of a model in float64."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..activations import as_activation
from ..models import AffineForm, affine

__all__ = ["Model", "double_form"]

Model = nn.Module | AffineForm | Tensor


@torch.no_grad()
def double_form(model: Model, input_shape: tuple[int, ...] | None = None) -> AffineForm:
    """The affine form in float64 on the CPU, detached: of a module, a form, or of x = relu(Ax + u) for a matrix A.

    Raises:
        NotAffine: If the model has no affine form.
        TypeError: If it is none of these.
        ValueError: If the matrix is not square, a weight is not finite, or input_shape is needed or wrong.
    """
    if isinstance(model, nn.Module):
        form = affine(copy.deepcopy(model).cpu().double().eval(), input_shape)
    elif isinstance(model, AffineForm):
        form = model
    elif isinstance(model, Tensor):
        form = _of_matrix(model)
    else:
        raise TypeError(f"model must be a module, an AffineForm or a square matrix, not {type(model).__name__}")
    form = form.map(lambda tensor: tensor.detach().to("cpu", torch.float64))
    for name in "ABCDbc":
        if not bool(torch.isfinite(getattr(form, name)).all()):
            raise ValueError(f"{name} of the model is not finite")
    return form


def _of_matrix(matrix: Tensor) -> AffineForm:
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a matrix that stands for a model must be square, and this has shape {tuple(matrix.shape)}")
    A = matrix.detach().to_dense()
    eye, zeros = torch.eye(len(A)).to(A), A.new_zeros(len(A))
    return AffineForm(A=A, B=eye, C=eye, D=torch.zeros_like(eye), b=zeros, c=zeros, activation=as_activation("relu"))
