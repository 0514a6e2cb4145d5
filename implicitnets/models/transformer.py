"""The deep equilibrium Transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..backward import Backward, Implicit
from ..solvers import Solver
from .cells import SOLVER, TransformerCell
from .deq import Equilibrium
from .starts import Start

__all__ = ["DEQTransformer", "sinusoids"]


def sinusoids(length: int, width: int, *, like: Tensor) -> Tensor:
    """The position encodings of Vaswani et al. (2017), section 3.5, of shape (length, width).

    Entry (t, 2i) is sin(t / 10000^(2i / width)), and entry (t, 2i + 1) the cosine.
    """
    position = torch.arange(length, device=like.device, dtype=like.dtype)[:, None]
    even = torch.arange(0, width, 2, device=like.device, dtype=like.dtype)
    angle = position * 10000.0 ** (-even / width)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :width]


class DEQTransformer(Equilibrium):
    """z = LN(h + F(h)), h = LN(v + A(v)), v = z + u: one block of a Transformer, as often as it takes.

    The deep equilibrium model of sequences (Bai, Kolter and Koltun 2019, section 3.2): the state of all positions is
    one equilibrium, A is self-attention of several heads, F a network of one hidden layer. The input, with sinusoidal
    position encodings p, is injected as u = LN(U(x + p) + b), computed once; ``TransformerCell`` says where. Guarantee:
    if causal, the states up to a position do not depend on inputs after it, nor do their gradients reach there. For
    existence and uniqueness there is none; it starts as a contraction, and can be kept near one by a penalty on
    ``analysis.jacobian_frobenius(model.cell, z, model.injection(x))``.

    Examples:
        >>> model = nn.Sequential(nn.Embedding(50, 32), DEQTransformer(32, 4), nn.Linear(32, 50))
        >>> model(torch.randint(50, (8, 20))).shape
        torch.Size([8, 20, 50])

    Attributes:
        cell: The map z, u ↦ z.
        inject: The map x + p ↦ u.

    Args:
        width: Entries of an input, and of the state, at one position.
        heads: Heads of the attention, a divisor of width.
        hidden: Hidden units of F; None for 4 · width.
        causal: Whether a position sees only those before it, and itself.
        positions: Whether position encodings are added to the input. Without, and if not causal, the model is
            equivariant: permuted inputs have permuted states.
        fused: Whether fused kernels of attention are used in gradients too, see ``TransformerCell``.
        solver: How the equilibrium is found.
        backward: How it is differentiated.
        start: Where the solver starts; None is zeros.

    Raises:
        ValueError: If a size is not positive, or heads does not divide width.
        TypeError: If solver, backward or start is not a value of its kind.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        hidden: int | None = None,
        causal: bool = True,
        positions: bool = True,
        fused: bool = False,
        solver: Solver = SOLVER,
        backward: Backward = Implicit(),
        start: Start | None = None,
    ) -> None:
        super().__init__(solver, backward, start=start)
        self.width, self.heads, self.hidden = width, heads, hidden
        self.causal, self.positions, self.fused = causal, positions, fused
        self.cell = TransformerCell(width, heads, hidden=hidden, causal=causal, fused=fused)
        self.inject = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))

    def forward(self, x: Tensor, mask: Tensor | None = None, z0: Tensor | None = None) -> Tensor:
        """The states, (batch, length, width), for x of that shape.

        Args:
            x: Vectors such as embeddings of tokens, (batch, length, width).
            mask: Which positions are data (True) and which padding, bool of shape (batch, length). A padded position
                has state 0, and no other state depends on it.
            z0: Where to start; else at zeros.

        Raises:
            ValueError: If x or mask has another shape, or mask another dtype.

        Warns:
            ConvergenceWarning: If a sample did not converge.
        """
        u = self.injection(x)
        given = () if mask is None else (self._checked(mask, x),)
        states: Tensor = self.equilibrium(self.cell, z0, u, *given)
        return states

    def injection(self, x: Tensor) -> Tensor:
        """U of shape (batch, length, width), which the cell gets beside the state.

        Raises:
            ValueError: If x is not of that shape.
        """
        if x.dim() != 3 or x.shape[2] != self.width:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, not (batch, length, {self.width}): for tokens put "
                f"nn.Embedding(tokens, {self.width}) in front"
            )
        u: Tensor = self.inject(x + sinusoids(x.shape[1], self.width, like=x) if self.positions else x)
        return u

    def _checked(self, mask: Tensor, x: Tensor) -> Tensor:
        if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}, not bool of shape {tuple(x.shape[:2])}, True at "
                "data: write for instance mask=tokens != padding"
            )
        return mask

    def _start(self, inputs: tuple[Any, ...]) -> Tensor:
        return torch.zeros_like(inputs[0])

    def extra_repr(self) -> str:
        """Sizes, switches and strategies."""
        sizes = f"width={self.width}, heads={self.heads}, hidden={self.hidden}"
        switches = f"causal={self.causal}, positions={self.positions}, fused={self.fused}"
        return f"{sizes}, {switches}, {super().extra_repr()}"
