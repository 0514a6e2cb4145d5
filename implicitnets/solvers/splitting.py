"""Operator splitting: forward-backward and Peaceman-Rachford, for maps that tell their parts."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Iterative, require
from .loop import Iterate
from .packed import Affine, PackedMap
from .parts import Factored, Operator, Splittable, Splitting

__all__ = ["ForwardBackward", "PeacemanRachford"]


class _State:
    """What the steps remember: the parts of the map and the step, once they are known; u, and what u was made of."""

    def __init__(self) -> None:
        self.parts: Splitting | None = None
        self.step: float | None = None
        self.u: Tensor | None = None
        self.v: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class _SplittingSolver(Iterative[_State]):
    step_size: float | None = None

    remedies: ClassVar[str] = (
        "more steps (max_steps=), another step_size=, a looser tolerance (rtol=), or another solver"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None:
            require(self.step_size > 0, self, "step_size", self.step_size, "positive, or None for the map's own")

    def init(self, z: Tensor) -> _State:
        return _State()

    def step(self, f: PackedMap, now: Iterate, state: _State) -> Tensor:
        if state.parts is None:
            state.parts = self._take_apart(f)
        if state.step is None:
            state.step = self._own_step(state.parts.operator) if self.step_size is None else self.step_size
        if state.u is None:
            state.u = state.parts.enter(now.z)
        state.u = self._next(state.parts, state.u, state.step, state)
        return state.parts.leave(state.u)

    @abstractmethod
    def _own_step(self, operator: Operator) -> float:
        """The step size where none was given."""

    @abstractmethod
    def _next(self, parts: Splitting, u: Tensor, step: float, state: _State) -> Tensor:
        """The next u."""

    def select(self, state: _State, rows: Tensor) -> _State:
        part = _State()  # whose parts are those of the map that was cut
        part.step = state.step
        part.u, part.v = (None if t is None else t[rows] for t in (state.u, state.v))
        return part

    def _take_apart(self, f: PackedMap) -> Splitting:
        inner = f.f
        parts: Splitting | None = None
        if isinstance(inner, Affine):
            jacobian = inner.linear.factors() if isinstance(inner.linear, Factored) else None
            parts = None if jacobian is None else jacobian.splitting(inner.offset)
        elif isinstance(inner, Splittable):
            parts = inner.splitting()
        if parts is None:
            raise TypeError(
                f"{self!r} needs a map z = φ(Wz + c) that tells its parts, as those of MonotoneDEQ, LipschitzDEQ and "
                "NonEuclideanDEQ do, or models.SplitMap(...), and not inside torch.func.vmap: use Anderson() instead"
            )
        return parts


@dataclass(frozen=True, kw_only=True)
class ForwardBackward(_SplittingSolver):
    """Forward-backward splitting: z ← prox_{ah}(z − a((I − W)z − c)) for z = φ(Wz + c), φ = prox_h.

    Winston and Kolter 2020, algorithm 1. For I − W ≥ mI it converges for a < 2m/L², L = ‖I − W‖₂ (in a weighted norm
    where the map has one). On the adjoint equation w = WᵀDw + g it is the same iteration for u = Dw (their theorem 3).
    For a logarithmic norm μ(W) < 1 in ‖·‖∞ (``NonEuclideanDEQ``), it converges for a ≤ 1/(1 − min Wᵢᵢ) (Davydov,
    Jafarpour, Proskurnikov and Bullo 2024). A step takes one product with W beside the evaluation of the map.

    Attributes:
        step_size: a. None is the one for which the map guarantees the fastest convergence, m/L² where I − W ≥ mI.

    Raises:
        ValueError: If step_size is not positive.
        TypeError: When solving, if the map does not tell its parts.
    """

    def _own_step(self, operator: Operator) -> float:
        return operator.forward_step

    def _next(self, parts: Splitting, u: Tensor, step: float, state: _State) -> Tensor:
        return parts.activation.prox(u.lerp(parts.forward(u), step), step)


@dataclass(frozen=True, kw_only=True)
class PeacemanRachford(_SplittingSolver):
    """Peaceman-Rachford splitting: reflections through the resolvent of I − W and the proximal operator of φ, in turn.

    Winston and Kolter 2020, algorithm 2, for z = φ(Wz + c), φ = prox_h:

        v½ = 2z − v,  z½ = (I + a(I − W))⁻¹ (v½ + ac),  v ← 2z½ − v½,  z ← prox_{ah}(v).

    For I − W ≥ mI with m > 0 it converges for every a > 0. On the adjoint equation w = WᵀDw + g it is the iteration of
    their theorem 3, for u = Dw. It starts from v = z + a(Wz + c − z), which stays where it is at a solution. The
    resolvent is factorized once a solve; a step then takes one product with it beside the evaluation of the map.

    Attributes:
        step_size: a. None is the one that the map thinks best.

    Raises:
        ValueError: If step_size is not positive.
        TypeError: When solving, if the map does not tell its parts.
    """

    def _own_step(self, operator: Operator) -> float:
        return operator.reflected_step

    def _next(self, parts: Splitting, u: Tensor, step: float, state: _State) -> Tensor:
        v = u.lerp(parts.forward(u), step) if state.v is None else state.v
        reflected = 2 * u - v
        half = parts.operator.resolvent(reflected + step * parts.injection, step)
        state.v = 2 * half - reflected
        return parts.activation.prox(state.v, step)
