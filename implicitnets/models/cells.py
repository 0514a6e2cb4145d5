"""Cells for ``DEQ``: maps of a state z and an injected input u of the same shape.

What depends on the input alone, such as Ux + b, belongs in front of the equilibrium, where it is computed once:
``nn.Sequential(nn.Linear(inputs, states), DEQ(DenseCell(states)), nn.Linear(states, outputs))``.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..activations import Activation, as_activation, plain
from ..backward.transforms import is_traced
from ..constraints import Constraint, InfNorm
from ..solvers import Anderson, Fallback, Picard, Solver
from .config import Configurable
from .normalized import check_sizes, convolution, group_norm

__all__ = ["SOLVER", "ConvCell", "DenseCell", "TransformerCell"]

SOLVER: Solver = Fallback(Anderson(rtol=1e-3, max_steps=30), Picard(rtol=1e-3, max_steps=100))
"""The default of models that start as contractions, and promise nothing later.

On a trained cell, Anderson's method can stall where the residual has a local minimum that is not zero; the plain
iteration leaves such a place, slowly.
"""


def hidden_weight(
    module: nn.Module, name: str, states: int, activation: str | Activation, constraint: Constraint | None
) -> Activation:
    """Give ``module`` the weight W of z ↦ φ(Wz + u), with rows of absolute sum 1/2 at first; returns φ.

    Raises:
        ValueError: If the activation is unknown, changes the number of entries, or the constraint is not for it.
        TypeError: If constraint is not a Constraint.
    """
    phi = as_activation(activation)
    if phi.rows(states) != states:
        raise ValueError(f"activation={activation!r} does not keep the number of entries: use one that does, or 'relu'")
    if constraint is not None and not isinstance(constraint, Constraint):
        raise TypeError(f"constraint={constraint!r} is not a Constraint: write constraint=InfNorm() or None")
    weight = torch.empty(states, states).uniform_(-1, 1)
    setattr(module, name, nn.Parameter(weight / (2 * weight.abs().sum(1, keepdim=True))))
    if constraint is not None:
        constraint.for_activation(phi).apply(module, name)
    return phi


class DenseCell(Configurable):
    """z ↦ φ(Wz + u), with z and u of shape (batch, states).

    With the default constraint, ‖W‖∞ < 1, there is one equilibrium for every u, and Picard's iteration converges to it
    (El Ghaoui, Gu, Travacca, Askari and Tsai 2021, section 2). Without one nothing is guaranteed after training.

    Examples:
        >>> from implicitnets import DEQ
        >>> model = nn.Sequential(nn.Linear(64, 32), DEQ(DenseCell(32)), nn.Linear(32, 10))
        >>> model(torch.randn(5, 64)).shape
        torch.Size([5, 10])

    Attributes:
        weight: W, (states, states), constrained.

    Args:
        states: Entries of the state.
        activation: φ: a name in ``ACTIVATIONS``, or a value such as ``Softmax(size=4)`` with as many states as rows.
        constraint: What keeps the cell well-posed, or None.

    Raises:
        ValueError: If states is not positive, the activation unknown, or the constraint not for it.
        TypeError: If constraint is not a Constraint.
    """

    weight: Tensor

    def __init__(
        self, states: int, *, activation: str | Activation = "tanh", constraint: Constraint | None = InfNorm()
    ) -> None:
        super().__init__()
        check_sizes(self, 1, states=states)
        self.states, self.activation, self.constraint = states, plain(activation), constraint
        self.phi = hidden_weight(self, "weight", states, activation, constraint)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """The next state."""
        return self.phi(functional.linear(z, self.weight) + u)

    def extra_repr(self) -> str:
        """Size and activation."""
        return f"states={self.states}, activation={self.activation!r}"


class ConvCell(Configurable):
    """z ↦ N₃(relu(z + N₂(u + K₂ relu(N₁(K₁z))))), with z and u of shape (batch, channels, height, width).

    The residual block of the deep equilibrium models of images (Bai, Koltun and Kolter 2020, section 3.1): K₁ and K₂
    are 3×3 convolutions with weight norm, N₁, N₂ and N₃ group norms. Guarantee: none; it starts as a contraction where
    u is about as large as a normalized state, and what training makes of it is kept in check by a penalty, the mean of
    ``analysis.jacobian_frobenius(cell, z, u)``, or by weight decay.

    Args:
        channels: Channels of the state.
        hidden: Channels between the convolutions; None for as many.
        groups: Groups of channels that are normalized together.

    Raises:
        ValueError: If a size is not positive, or groups does not divide the channels.
    """

    def __init__(self, channels: int, *, hidden: int | None = None, groups: int = 4) -> None:
        super().__init__()
        inner = channels if hidden is None else hidden
        check_sizes(self, groups, channels=channels, hidden=inner)
        self.channels, self.hidden, self.groups = channels, hidden, groups
        self.conv1, self.norm1 = convolution(channels, inner), group_norm(groups, inner)
        self.conv2, self.norm2 = convolution(inner, channels, gain=0.1), group_norm(groups, channels)
        self.norm3 = group_norm(groups, channels, gain=0.5)

    def forward(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """The next state; without an input, u is zero."""
        branch = self.conv2(torch.relu(self.norm1(self.conv1(z))))
        next_state: Tensor = self.norm3(torch.relu(z + self.norm2(branch if u is None else u + branch)))
        return next_state

    def extra_repr(self) -> str:
        """Sizes."""
        return f"channels={self.channels}, hidden={self.hidden}, groups={self.groups}"


class TransformerCell(Configurable):
    """z ↦ LN(h + F(h)), h = LN(v + A(v)), v = z + u, with z and u of shape (batch, length, width).

    A block of the Transformer (Vaswani et al. 2017) after its input is added: A is self-attention of several heads, F
    a network of one hidden layer. The deep equilibrium Transformer (Bai, Kolter and Koltun 2019) adds the input to
    queries, keys and values; on the residual path, as in looped Transformers (Yang, Lee, Nowak and Papailiopoulos
    2024), it makes the block a contraction at first, however long the sequence. Guarantee: causality, if causal; for
    existence and uniqueness none, see ``ConvCell``.

    Derivatives of every order and mode are right, since a graph is only recorded of attention written out. Where none
    is recorded, as in a solve, PyTorch may take its fused kernels.

    Args:
        width: Entries of the state at one position.
        heads: Heads of the attention, a divisor of width.
        hidden: Hidden units of F; None for 4 · width.
        causal: Whether a position sees only those before it, and itself.
        fused: Whether fused kernels are used in gradients too. They need less memory for long sequences, and have no
            second derivative: a Jacobian penalty, or ``Newton``, then ends in PyTorch's error.

    Raises:
        ValueError: If a size is not positive, or heads does not divide width.
    """

    def __init__(
        self, width: int, heads: int, *, hidden: int | None = None, causal: bool = True, fused: bool = False
    ) -> None:
        super().__init__()
        inner = 4 * width if hidden is None else hidden
        check_sizes(self, 1, width=width, heads=heads, hidden=inner)
        if width % heads:
            raise ValueError(f"{type(self).__name__}(width={width}, heads={heads}): width must be a multiple of heads")
        self.width, self.heads, self.hidden, self.causal, self.fused = width, heads, hidden, causal, fused
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        nn.init.constant_(self.norm2.weight, 0.5)
        for layer in (self.merge, self.contract):  # small branches, so that z + u rules at first
            nn.init.normal_(layer.weight, std=0.1 * layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """The next state; 0 at the positions that mask, bool of shape (batch, length), says are padding (False)."""
        v = z + u
        h = self.norm1(v + self._attention(v, mask))
        next_state: Tensor = self.norm2(h + self.contract(functional.gelu(self.expand(h))))
        return next_state if mask is None else torch.where(mask[..., None], next_state, 0.0)

    def _attention(self, v: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, _ = v.shape
        q, k, value = self.project(v).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        allowed = None if mask is None else self._allowed(mask)
        recorded = torch.is_grad_enabled() or any(map(is_traced, (q, k, value)))
        with sdpa_kernel(SDPBackend.MATH) if recorded and not self.fused else nullcontext():
            seen = functional.scaled_dot_product_attention(
                q, k, value, attn_mask=allowed, is_causal=self.causal and allowed is None
            )
        merged: Tensor = self.merge(seen.transpose(1, 2).reshape(batch, length, -1))
        return merged

    def _allowed(self, mask: Tensor) -> Tensor:
        """Who sees whom, (batch, 1, length, length): no padding, but everyone themselves, so that no row is empty."""
        length = mask.shape[1]
        own = torch.eye(length, dtype=torch.bool, device=mask.device)
        allowed = mask[:, None, None, :] | own
        return allowed & torch.ones_like(own).tril() if self.causal else allowed

    def extra_repr(self) -> str:
        """Sizes and switches."""
        sizes = f"width={self.width}, heads={self.heads}, hidden={self.hidden}"
        return f"{sizes}, causal={self.causal}, fused={self.fused}"
