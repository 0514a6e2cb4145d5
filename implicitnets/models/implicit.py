"""The implicit model of El Ghaoui et al."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..activations import ACTIVATIONS, Activation, as_activation, plain
from ..backward import Backward, Implicit
from ..backward.transforms import plain as plain_tensor
from ..constraints import Constraint, InfNorm
from ..solution import warn_unconverged
from ..solvers import Anderson, Solver
from .affine import AffineForm
from .given import check_matrices, fill
from .starts import Start
from .structures import Full, Sparse, Structure, Triangular
from .weights import Weights, solved

__all__ = ["ACTIVATIONS", "ImplicitModel"]


class ImplicitModel(Weights):
    """x = φ(Ax + Bu + b), y = Cx + Du + c (El Ghaoui, Gu, Travacca, Askari and Tsai 2021).

    Well-posed for every input if its constraint keeps ‖A‖∞ < 1, or if A is strictly upper block-triangular. φ may map
    several rows of Ax + Bu + b to one state, as max-pooling does: then A and B have more rows than there are states.

    Examples:
        >>> model = ImplicitModel(inputs=64, states=32, outputs=10)
        >>> model(torch.randn(5, 64)).shape
        torch.Size([5, 10])
        >>> bool(model.A.abs().sum(1).max() <= 0.95 + 1e-6)
        True

    Attributes:
        A: Hidden weights, (rows, states), constrained; a COO tensor where they are sparse.
        B: Input weights, (rows, inputs).
        C: Output weights, (outputs, states).
        D: Weights from input to output, (outputs, inputs).
        b: State bias, (rows,), or None.
        c: Output bias, (outputs,), or None.
        rows: Entries of Ax + Bu + b: as many as states, unless the activation says otherwise.

    Args:
        inputs: Entries of an input u.
        states: Entries of the hidden state x.
        outputs: Entries of an output y.
        activation: φ: a name in ``ACTIVATIONS``, a value such as ``Blocks(("relu", 8), (Softmax(size=4), 4))``, or a
            function of one tensor that is component-wise (which can't be saved).
        structure: Which entries of A are free: ``structures.Full()``, ``LowRank(rank=...)``, ``BlockDiagonal``,
            ``Sparse`` or ``Triangular``.
        constraint: What keeps the model well-posed, or None. ``Triangular`` needs none, but can have its ‖A‖∞ bounded.
        bias: Whether there are b and c.
        nonzeros: Which of "B", "C" and "D" are sparse, with a fixed pattern of so many nonzeros.
        solver: How the equilibrium is found. None is ``Anderson()``, or one pass of back-substitution where the
            structure is ``Triangular``, with the derivatives of plain autograd.
        backward: How it is differentiated. None is ``Implicit()``; back-substitution takes nothing else.
        start: Where the solver starts; None is zeros.

    Raises:
        ValueError: If a size is not positive, the activation unknown, or arguments do not fit each other.
        TypeError: If an argument is not a value of its kind.
    """

    def __init__(  # noqa: PLR0913  (sizes, and strategies)
        self,
        inputs: int,
        states: int,
        outputs: int,
        *,
        activation: str | Activation | Callable[[Tensor], Tensor] = "relu",
        structure: Structure = Full(),
        constraint: Constraint | None = InfNorm(),
        bias: bool = True,
        nonzeros: Mapping[str, int] | None = None,
        solver: Solver | None = None,
        backward: Backward | None = None,
        start: Start | None = None,
    ) -> None:
        for name, size in (("inputs", inputs), ("states", states), ("outputs", outputs)):
            if size < 1:
                raise ValueError(f"ImplicitModel({name}={size}): {name} must be at least 1")
        _check_values(structure, constraint, nonzeros)
        direct = structure.direct and solver is None
        if direct and (backward is not None or start is not None):
            raise ValueError(
                f"backward={backward!r}, start={start!r}: {type(structure).__name__} is solved in one pass, which "
                "has no use for them: leave them out, or give a solver= to iterate with"
            )
        super().__init__(solver or Anderson(), backward or Implicit(), start=start)
        if direct:
            self.solver = self.backward = None  # type: ignore[assignment]
        phi = as_activation(activation)
        self.inputs, self.states, self.outputs, self.rows = inputs, states, outputs, phi.rows(states)
        self.activation, self.structure, self.constraint, self.bias = plain(activation), structure, constraint, bias
        self.nonzeros = dict(nonzeros or {})
        self._build(phi)

    @classmethod
    def from_matrices(  # noqa: PLR0913  (the matrices of the paper, and strategies)
        cls,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        b: Tensor | None = None,
        c: Tensor | None = None,
        *,
        activation: str | Activation | Callable[[Tensor], Tensor] = "relu",
        sizes: Sequence[int] | None = None,
        constraint: Constraint | None = None,
        solver: Solver | None = None,
        backward: Backward | None = None,
        start: Start | None = None,
    ) -> ImplicitModel:
        """The model with these weights, copied, as trainable parameters of their dtype, on their device.

        Examples:
            >>> A = torch.tensor([[0.0, 2.0], [0.0, 0.0]])  # x₂ = relu(u), x₁ = relu(2x₂)
            >>> model = ImplicitModel.from_matrices(
            ...     A, torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0, 0.0]]), torch.zeros(1, 1), sizes=(1, 1)
            ... )
            >>> model(torch.tensor([[3.0]])).item()
            6.0

        Args:
            A: Hidden weights, (rows, states), dense or sparse (COO or CSR). Sparse ones stay so.
            B: Input weights, (rows, inputs), dense or sparse, as are the others.
            C: Output weights, (outputs, states).
            D: Weights from input to output, (outputs, inputs).
            b: State bias, (rows,). If only one of b and c is given, the other is zero.
            c: Output bias, (outputs,).
            activation: φ, which maps so many rows to so many states.
            sizes: States in each block, where A is strictly upper block-triangular, the last layer first: then the
                equilibrium is found by back-substitution if no solver is given. The rows of a block are those that
                the activation maps to its states.
            constraint: What keeps A well-posed from now on; A has to satisfy it.
            solver: As for the class, and so are the others.
            backward: How the equilibrium is differentiated.
            start: Where the solver starts.

        Raises:
            ValueError: If the shapes, dtypes or devices do not fit each other, A has nonzeros outside the blocks above
                the diagonal, or does not satisfy the constraint.
            TypeError: If a matrix is not a tensor of floating point.
        """
        given = check_matrices({"A": A, "B": B, "C": C, "D": D, "b": b, "c": c}, as_activation(activation), sizes)
        A = given["A"]
        count = A._nnz() if A.is_sparse else None
        structure: Structure = Full() if count is None else Sparse(nonzeros=count)
        if sizes is not None:
            structure = Triangular(sizes=tuple(sizes), nonzeros=count)
        with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
            model = cls(
                given["B"].shape[1],
                A.shape[1],
                given["C"].shape[0],
                activation=activation,
                structure=structure,
                constraint=constraint,
                bias="b" in given,
                nonzeros={name: given[name]._nnz() for name in "BCD" if given[name].is_sparse},
                solver=solver,
                backward=backward,
                start=start,
            )
        model.to(dtype=A.dtype, device=A.device)
        fill(model, given)
        return model

    def forward(self, u: Tensor, z0: Tensor | None = None) -> Tensor:
        """Y of shape (batch, outputs) for u of shape (batch, inputs), starting from the state z0 or from zeros.

        Raises:
            ValueError: If u has another shape, or z0 is given where nothing is iterated.

        Warns:
            ConvergenceWarning: If a sample did not converge.
        """
        return self.readout(self.state(u, z0), u)

    def affine(self, input_shape: tuple[int, ...] | None = None) -> AffineForm:  # noqa: D102
        A, B, C, D = (getattr(self, name).to_dense() for name in "ABCD")
        b, c = (A.new_zeros(size) if bias is None else bias for bias, size in ((self.b, self.rows), (self.c, len(C))))
        return AffineForm(A=A, B=B, C=C, D=D, b=b, c=c, activation=as_activation(self.activation))

    def state(self, u: Tensor, z0: Tensor | None = None) -> Tensor:
        """The hidden state x = φ(Ax + Bu + b), of shape (batch, states).

        Raises:
            ValueError: If u has another shape than (batch, inputs), or z0 is given where nothing is iterated.
        """
        if u.dim() != 2 or u.shape[1] != self.inputs:
            raise ValueError(f"u has shape {tuple(u.shape)}, not (batch, {self.inputs}): flatten it with u.flatten(1)")
        injection, phi = self._linear("B", u, self.b), as_activation(self.activation)
        if self.solver is None:
            return self._substitute(injection, phi, z0)
        # constrained once, not at every evaluation
        if "A_parts" in self._modules:
            affine = self._parts("A").affine()
        else:
            matrix = self.A.T

            def affine(x: Tensor, v: Tensor) -> Tensor:
                return torch.addmm(v, x, matrix)

        state: Tensor = self.equilibrium(lambda x, bu: phi(affine(x, bu)), z0, injection)
        return state

    def readout(self, x: Tensor, u: Tensor) -> Tensor:
        """The output y = Cx + Du + c of given states, (batch, outputs)."""
        return self._linear("C", x, self.c) + self._linear("D", u)

    def _substitute(self, v: Tensor, phi: Activation, z0: Tensor | None) -> Tensor:
        """The direct solution, and its record.

        Raises:
            ValueError: If there is a z0.
        """
        if z0 is not None:
            raise ValueError("z0 has no use where A is triangular: leave it out, or give the model a solver to iterate")
        parts = phi.split(self.structure.sizes)  # type: ignore[attr-defined]
        x = self._parts("A").solve(v, parts)
        if not torch.compiler.is_compiling():
            self.forward_solution = solved(plain_tensor(x).detach())
            warn_unconverged(self.forward_solution, self.structure, what="equilibrium", remedies="finite weights")
        return x

    def _start(self, inputs: tuple[Any, ...]) -> Tensor:
        injection: Tensor = inputs[0]
        if self.rows == self.states:
            return torch.zeros_like(injection)
        return injection.new_zeros(injection.shape[0], self.states)

    def extra_repr(self) -> str:
        """Sizes, activation, structure and strategies."""
        sizes = f"inputs={self.inputs}, states={self.states}, outputs={self.outputs}"
        structure = "" if self.structure == Full() else f"structure={self.structure!r}, "
        return f"{sizes}, activation={self.activation!r}, {structure}{super().extra_repr()}"


def _check_values(structure: Any, constraint: Any, nonzeros: Any) -> None:
    if not isinstance(structure, Structure):
        raise TypeError(f"structure={structure!r} is not a Structure: write for instance LowRank(rank=5)")
    if constraint is not None and not isinstance(constraint, Constraint):
        raise TypeError(f"constraint={constraint!r} is not a Constraint: write constraint=InfNorm(kappa=0.95) or None")
    if constraint is not None and constraint.scope not in structure.scopes:
        raise ValueError(f"{constraint!r} can't be kept by A of {structure!r}: use InfNorm() or constraint=None")
    if nonzeros and not set(nonzeros) <= {"B", "C", "D"}:
        raise ValueError(f'nonzeros={nonzeros!r}: the keys are "B", "C" and "D"; A has its structure')
