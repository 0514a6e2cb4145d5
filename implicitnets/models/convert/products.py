"""Products, on forms: with constants they are affine, of two tensors they are blocks of pairs of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...activations import Product
from .activations import hardsigmoid, softmax
from .form import Form
from .layers import linear, stack, total


def multiply(x: Any, y: Any) -> Form:
    """The product, entry by entry, of two tensors or of one and a constant."""
    form: Form = x if isinstance(x, Form) else y
    factor = y if form is x else x
    if not isinstance(factor, Form):
        return form.times(factor)
    shape = torch.broadcast_shapes(form.shape, factor.shape)
    # a factor that is repeated, as the gate of a channel, is computed once
    factors = [t.shared(shape.numel() // t.shape.numel()).broadcast(shape) for t in (form, factor)]
    pairs = stack(factors, -1)
    return pairs.of.emit(Product(size=2), pairs.matrix, shape.numel(), shape)


def power(x: Form, exponent: float) -> Form:
    """x².

    Raises:
        ValueError: For another exponent.
    """
    if exponent != 2:
        raise ValueError(f"has the exponent {exponent}, where only 2 is supported")
    return x.state("square")


def matmul(x: Any, y: Any) -> Form:
    """The matrix product of two tensors, or of one and a constant.

    Raises:
        ValueError: If one is a vector.
    """
    if min(len(x.shape), len(y.shape)) < 2:
        raise ValueError("multiplies with a vector, where only matrices are supported")
    if isinstance(x, Form) and isinstance(y, Tensor) and y.dim() == 2:
        return linear(x, y.T)
    # (..., i, j, 1) times (..., 1, j, k), summed over j
    left, right = (
        t.unsqueeze(axis) if isinstance(t, Tensor) else t.take(t.index.unsqueeze(axis))
        for t, axis in ((x, -1), (y, -3))
    )
    return total(multiply(left, right), -2)


def attention(x: Form, key: Form, value: Form, *, scale: float | None = None) -> Form:
    """softmax(scale x keyᵀ) value, as torch.nn.functional.scaled_dot_product_attention without a mask."""
    scores = matmul(x, key.take(key.index.mT))
    weights = softmax(scores.times(x.shape[-1] ** -0.5 if scale is None else scale), -1)
    return matmul(weights, value)


def hardswish(x: Form, inplace: bool = False) -> Form:
    """x hardsigmoid(x)."""
    return multiply(x, hardsigmoid(x))


def mish(x: Form, inplace: bool = False) -> Form:
    """x tanh(softplus(x))."""
    return multiply(x, x.state("softplus").state("tanh"))


def glu(x: Form, dim: int = -1) -> Form:
    """The first half along an axis times the sigmoid of the second."""
    first, second = (x.take(half) for half in x.index.chunk(2, dim))
    return multiply(first, second.state("sigmoid"))
