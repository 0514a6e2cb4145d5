"""The non-Euclidean monotone operator network of Jafarpour et al."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..backward import Backward, Implicit
from ..backward.transforms import plain
from ..solvers import Anderson, Fallback, ForwardBackward, Operator, Solver
from .monotone import UniqueEquilibrium
from .operators import NonEuclideanOperator
from .starts import Start

__all__ = ["NonEuclideanDEQ"]


class NonEuclideanDEQ(UniqueEquilibrium):
    """z = φ(Wz + Uu + b) with μ(W) ≤ mu < 1 in a weighted ‖·‖∞: NEMON (Jafarpour et al. 2021).

    With E = diag(exp d) and free T and d,

        W = mu · I + E⁻¹TE − diag(|T| 1),

    whose logarithmic norm maxᵢ (Wᵢᵢ + Σⱼ |Wᵢⱼ| ηⱼ/ηᵢ), j ≠ i, η = exp(−d), is at most mu. There is exactly one
    equilibrium for every value of the parameters and every u, and the average iteration
    z ← (1 − a) z + a φ(Wz + Uu + b) contracts by 1 − a (1 − max(mu, 0)) for a ≤ 1/(1 − min(Wᵢᵢ, 0)): that is
    ``Picard(damping=model.damping())``. The undamped iteration need not converge, since ‖W‖∞ < 1 need not hold.

    Examples:
        >>> model = NonEuclideanDEQ(inputs=64, states=32)
        >>> model(torch.randn(5, 64)).shape
        torch.Size([5, 32])
        >>> bool(model.logarithmic_norm() <= model.mu + 1e-5)
        True

    Attributes:
        T: Free, (states, states).
        d: Free, (states,).
        U: Input weights, (states, inputs).
        b: Bias, (states,), or None.

    Args:
        inputs: Entries of an input u.
        states: Entries of a state z.
        mu: The bound of the logarithmic norm, below 1.
        activation: φ: a name in ``PROXIMAL``.
        bias: Whether there is b.
        solver: How the equilibrium is found. The default takes ``ForwardBackward``, which contracts at least as the
            average iteration does (Davydov, Jafarpour, Proskurnikov and Bullo 2024), for what Anderson leaves.
        backward: How it is differentiated.
        start: Where the solver starts; None is zeros.

    Raises:
        ValueError: If a size is not positive, mu not below 1, or the activation unknown.
        TypeError: If solver, backward or start is not a value of its kind.
    """

    def __init__(
        self,
        inputs: int,
        states: int,
        *,
        mu: float = 0.0,
        activation: str = "relu",
        bias: bool = True,
        solver: Solver = Fallback(Anderson(), ForwardBackward(max_steps=500)),
        backward: Backward = Implicit(),
        start: Start | None = None,
    ) -> None:
        super().__init__(
            inputs, states, activation=activation, bias=bias, solver=solver, backward=backward, start=start
        )
        if not mu < 1:
            raise ValueError(f"NonEuclideanDEQ(mu={mu!r}): mu must be below 1, e.g. 0.0")
        self.mu = mu
        self.T = nn.Parameter(torch.empty(states, states).uniform_(-1, 1) / states)
        self.d = nn.Parameter(torch.zeros(states))

    @property
    def W(self) -> Tensor:  # noqa: D102
        scaled = self.d.neg().exp()[:, None] * self.T * self.d.exp()
        return scaled + torch.diag(self.mu - self.T.abs().sum(1))

    def _operator(self, W: Tensor) -> Operator:
        return NonEuclideanOperator(W)

    def logarithmic_norm(self) -> Tensor:
        """μ(W) in the norm maxᵢ |zᵢ| exp(dᵢ), a scalar."""
        W = self.W
        size = self.d.exp()[:, None] * W.abs() * self.d.neg().exp()
        return (size.sum(1) - W.diagonal().abs() + W.diagonal()).max()

    def damping(self) -> float:
        """The damping 1 − a of Picard's method for the fastest average iteration, a = 1/(1 − min(Wᵢᵢ, 0))."""
        return 1 - 1 / (1 - min(float(plain(self.W).diagonal().min()), 0.0))

    def lipschitz(self) -> Tensor:
        """A bound of ‖z(u) − z(v)‖∞ / ‖u − v‖∞, a scalar with a gradient, for use as a penalty.

        It is ‖(I − ⌈W⌉)⁻¹ |U|‖∞, where ⌈W⌉ is W with absolute values off the diagonal. For slopes sᵢ in [0, 1],
        |Δzᵢ| (1 − sᵢWᵢᵢ) ≤ sᵢ (Σⱼ |Wᵢⱼ| |Δzⱼ| + Σₖ |Uᵢₖ| |Δuₖ|), and sᵢ/(1 − sᵢWᵢᵢ) grows with sᵢ. In the norm where W
        has logarithmic norm μ it is at most the ‖U‖ / (1 − max(μ, 0)) of Jafarpour et al.
        """
        W = self.W
        off = W.abs() - torch.diag(W.diagonal().abs())
        bounds: Tensor = torch.linalg.solve(torch.diag(1 - W.diagonal()) - off, self.U.abs().sum(1))
        return bounds.max()

    def extra_repr(self) -> str:
        """Sizes, mu, activation and strategies."""
        return f"mu={self.mu}, {super().extra_repr()}"
