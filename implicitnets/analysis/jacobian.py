"""Norms of the Jacobian of a map at a state, to be read or to be trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..pytree import Layout, leaves
from ..solvers import PackedMap

__all__ = ["Linearization", "jacobian_frobenius", "spectral_norm"]


class Linearization:
    """f at z: its value as a matrix ``(batch, size)``, and products with the Jacobian J of each sample.

    f is called once. At a kink J is the element of the Clarke Jacobian that autograd uses.
    """

    def __init__(self, f: Callable[..., Any], z: Any, inputs: tuple[Any, ...]) -> None:
        layout = Layout.of(z, name="z")
        with torch.enable_grad():
            packed = layout.pack(leaves(z))
            # An alias, so that inputs made from this very z do not count as part of df/dz.
            self.point = packed.view_as(packed) if packed.requires_grad else packed.detach().requires_grad_()
            self.value = PackedMap(lambda state: f(state, *inputs), layout).evaluate(self.point)
        self._transposed: tuple[Tensor, Tensor] | None = None

    def left(self, u: Tensor, *, create_graph: bool = False) -> Tensor:
        """Jᵀu for each sample, differentiable if ``create_graph``."""
        if not self.value.requires_grad:
            return torch.zeros_like(u)
        (product,) = torch.autograd.grad(
            self.value, self.point, u, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )
        return product

    def right(self, v: Tensor) -> Tensor:
        """Jv for each sample: the derivative of u ↦ Jᵀu, which is linear, in the direction v."""
        if self._transposed is None:
            with torch.enable_grad():
                u = torch.zeros_like(self.value, requires_grad=True)
                self._transposed = u, self.left(u, create_graph=True)
        u, product = self._transposed
        if not product.requires_grad:
            return torch.zeros_like(v)
        return torch.autograd.grad(product, u, v, retain_graph=True, materialize_grads=True)[0]

    def random(self, generator: torch.Generator | None) -> Tensor:
        """A standard normal vector for each sample."""
        shape, dtype, device = self.value.shape, self.value.dtype, self.value.device
        return torch.randn(shape, generator=generator, dtype=dtype, device=device)


def unit(v: Tensor) -> Tensor:
    """Each row by its Euclidean norm; zeros stay zeros."""
    norm = torch.linalg.vector_norm(v, dim=1, keepdim=True)
    return torch.where(norm > 0, v / norm, torch.zeros_like(v))


def jacobian_frobenius(
    f: Callable[..., Any], z: Any, *inputs: Any, probes: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """An unbiased estimate of ‖J‖²_F / n for each sample, with J = ∂f/∂z and n the size of its state.

    That is the mean of the squared singular values. Hutchinson's estimator: ‖vᵀJ‖²/n, averaged over ``probes``
    vectors v ~ N(0, I), each at the price of one backward pass. Its mean over the batch is the loss of Bai, Koltun
    and Kolter (2021, "Stabilizing equilibrium models by Jacobian regularization"); its gradient reaches what f
    depends on and, through z, what z depends on.

    Examples:
        >>> cell = torch.nn.Linear(4, 4).double()
        >>> z = torch.zeros(2, 4, dtype=torch.float64)
        >>> estimate = jacobian_frobenius(cell, z, probes=10_000).mean()
        >>> bool((estimate - cell.weight.square().sum() / 4).abs() < 0.05)
        True

    Args:
        f: The map ``f(z, *inputs) -> z``, which treats its samples apart.
        z: The state to differentiate at; a tensor or a pytree of tensors, batch first.
        inputs: What else f takes.
        probes: How many random vectors for each sample.
        generator: Where these come from; torch's default generator if None.

    Returns:
        The estimates, shape ``(batch,)``, differentiable where gradients are enabled.

    Raises:
        ValueError: If probes is not positive.
    """
    if probes < 1:
        raise ValueError(f"probes={probes}: at least one random vector is needed")
    jacobian = Linearization(f, z, inputs)
    graph = torch.is_grad_enabled()
    squares = [jacobian.left(jacobian.random(generator), create_graph=graph).square().sum(1) for _ in range(probes)]
    return torch.stack(squares).mean(0) / max(1, jacobian.value.shape[1])


def spectral_norm(
    f: Callable[..., Any], z: Any, *inputs: Any, iterations: int = 20, generator: torch.Generator | None = None
) -> Tensor:
    """‖J‖₂ for each sample, with J = ∂f/∂z, from below: the largest singular value by power iteration on JᵀJ.

    The result is uᵀJv with unit vectors u and v that the iteration found, so it never exceeds ‖J‖₂. Its error falls
    by (σ₂/σ₁)² a step; where σ₁ and σ₂ almost agree it is small all the same. The gradient is uᵀ(dJ)v, that of
    ‖J‖₂ where u and v have converged. Only this last product is recorded: memory does not grow with ``iterations``.

    Examples:
        >>> w = torch.diag(torch.tensor([3.0, 1.0]))
        >>> spectral_norm(lambda z: z @ w, torch.ones(1, 2))
        tensor([3.])

    Args:
        f: The map ``f(z, *inputs) -> z``, which treats its samples apart; autograd must know its second derivative.
        z: The state to differentiate at; a tensor or a pytree of tensors, batch first.
        inputs: What else f takes.
        iterations: Steps of the power iteration, two products with J each.
        generator: Where the starting vector comes from; torch's default generator if None.

    Returns:
        The norms, shape ``(batch,)``, differentiable where gradients are enabled.

    Raises:
        ValueError: If iterations is not positive.
    """
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: at least one is needed")
    jacobian = Linearization(f, z, inputs)
    v = unit(jacobian.random(generator))
    for _ in range(iterations):
        v = unit(jacobian.left(unit(jacobian.right(v))))
    u = unit(jacobian.right(v))
    norm: Tensor = torch.linalg.vecdot(jacobian.left(u, create_graph=torch.is_grad_enabled()), v)
    return norm
