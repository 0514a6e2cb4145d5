"""Solvers by operator splitting: the iterations of the papers, forward and backward, on maps that tell their parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import monotone, normal
from torch import Tensor

import implicitnets as inn
from implicitnets import nonsmooth, solvers
from implicitnets.models import DEQ, PROXIMAL, MonotoneDEQ, SplitMap, dense
from implicitnets.solvers import Anderson, Dense, ForwardBackward, PeacemanRachford, loop

F64 = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-13, "max_steps": 20000}
M = 0.5
BOTH = pytest.mark.parametrize("kind", [ForwardBackward, PeacemanRachford])


def problem(activation: str = "relu", n: int = 8, scale: float = 1.5) -> tuple[SplitMap, Tensor, Tensor]:
    """A map, its W and c, of a batch of 5."""
    w, c = monotone(n, scale, F64, m=M), normal(5, n, dtype=F64)
    assert torch.linalg.matrix_norm(w, 2) > 1
    return SplitMap(dense(w, margin=M), activation), w, c


def naive_prox(activation: str, v: Tensor, a: float) -> Tensor:
    """prox_{ah}(v) for φ = prox_h: the u with u = φ(u + (v − u) / a), by bisection."""
    phi = PROXIMAL[activation]
    low, high = torch.full_like(v, -4000), torch.full_like(v, 4000)
    for _ in range(200):
        p = (low + high) / 2
        above = (1 - a) * phi(p) + a * p > v
        low, high = torch.where(above, low, p), torch.where(above, p, high)
    return phi((low + high) / 2)


# the iterations of Winston and Kolter, algorithms 1 and 2


@pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_relu"])
@pytest.mark.parametrize("a", [0.02, 0.05])
def test_forward_backward_is_algorithm_1(activation, a):
    f, w, c = problem(activation)
    z = torch.zeros_like(c)
    for steps in range(1, 5):
        z = naive_prox(activation, z - a * (z - z @ w.T - c), a)
        found = inn.fixed_point(f, torch.zeros_like(c), c, solver=quick(ForwardBackward, steps, a)).value
        torch.testing.assert_close(found, z)


@pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_relu"])
@pytest.mark.parametrize("a", [0.1, 0.2])
def test_peaceman_rachford_is_algorithm_2(activation, a):
    f, w, c = problem(activation)
    identity = torch.eye(len(w), dtype=F64)
    z = torch.zeros_like(c)
    u = z + a * (z @ w.T + c - z)
    for steps in range(1, 5):
        u_half = 2 * z - u
        z_half = torch.linalg.solve((1 + a) * identity - a * w, (u_half + a * c).T).T
        u = 2 * z_half - u_half
        z = naive_prox(activation, u, a)
        found = inn.fixed_point(f, torch.zeros_like(c), c, solver=quick(PeacemanRachford, steps, a)).value
        torch.testing.assert_close(found, z)


def quick(kind: Any, steps: int, a: float) -> Any:
    """So many steps, the last of which converges, so that its iterate is what is returned."""

    class Exactly(kind):
        @property
        def rounds(self) -> int:
            return steps

        def step(self, f, now, state):
            z = super().step(f, now, state)
            self.calls.append(1)
            if len(self.calls) == steps:
                object.__setattr__(self, "atol", 1e9)
            return z

    solver = Exactly(step_size=a, rtol=0.0, atol=1e-300)
    object.__setattr__(solver, "calls", [])
    return solver


@pytest.mark.parametrize("a", [0.01, 0.1, 1.0, 10.0])
def test_peaceman_rachford_converges_for_every_step_size(a):
    f, w, c = problem()
    z = inn.fixed_point(f, torch.zeros_like(c), c, solver=PeacemanRachford(step_size=a, **TIGHT)).value
    torch.testing.assert_close(z, torch.relu(z @ w.T + c))


def test_forward_backward_contracts_as_its_theorem_says():
    """With a = m/L², by √(1 − m²/L²) a step."""
    f, w, c = problem()
    solution = inn.fixed_point(f, torch.zeros_like(c), c, solver=PeacemanRachford(**TIGHT)).value
    size = float(torch.linalg.matrix_norm(torch.eye(len(w), dtype=F64) - w, 2))
    error = solution.norm(dim=1)
    for steps in range(1, 30):
        z = inn.fixed_point(f, torch.zeros_like(c), c, solver=quick(ForwardBackward, steps, M / size**2)).value
        before, error = error, (z - solution).norm(dim=1)
        assert (error <= (1 - M**2 / size**2) ** 0.5 * before + 1e-12).all()
    own = inn.fixed_point(f, torch.zeros_like(c), c, solver=replace(ForwardBackward(), max_steps=3000))
    given_step = ForwardBackward(max_steps=3000, step_size=M / size**2)
    assert own.evaluations == inn.fixed_point(f, torch.zeros_like(c), c, solver=given_step).evaluations


@BOTH
def test_a_solution_is_stationary(kind):
    f, _, c = problem("tanh")
    z = inn.fixed_point(f, torch.zeros_like(c), c, solver=PeacemanRachford(**TIGHT)).value
    after = inn.fixed_point(f, z, c, solver=quick(kind, 3, 0.3)).value
    torch.testing.assert_close(after, z, rtol=1e-9, atol=1e-11)


# proximal operators


@pytest.mark.parametrize("activation", PROXIMAL)
@given(a=st.floats(0.02, 50), center=st.floats(-40, 40))
@settings(max_examples=20, deadline=None)
def test_prox_satisfies_its_optimality_condition(activation, a, center):
    """u = prox_{ah}(v) if and only if (v − u) / a is in ∂h(u), that is u = φ(u + (v − u) / a)."""
    v = center + torch.linspace(-5, 5, 41, dtype=F64)
    phi = PROXIMAL[activation]
    u = phi.prox(v, a)
    torch.testing.assert_close(phi(u + (v - u) / a), u, rtol=1e-9, atol=1e-9 * max(1, 1 / a))
    torch.testing.assert_close(u, naive_prox(activation, v, a), rtol=1e-8, atol=1e-8 * max(1, 1 / a))


@pytest.mark.parametrize("activation", PROXIMAL)
def test_slopes_are_within_0_and_1_and_those_of_the_function(activation):
    p = torch.linspace(-6, 6, 1000, dtype=F64)
    phi = PROXIMAL[activation]
    slopes = phi.slopes(p)
    assert ((slopes >= 0) & (slopes <= 1)).all()
    torch.testing.assert_close(slopes, (phi(p + 1e-6) - phi(p - 1e-6)) / 2e-6, rtol=1e-4, atol=1e-4)
    if phi.slope is not None:
        torch.testing.assert_close(phi.slope(p), slopes)


# the record


class Counted(SplitMap):
    """Counts its calls, and the rows of each."""

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self.log: list[int] = []

    def __call__(self, z: Any, c: Any) -> Any:
        self.log.append(len(z))
        return super().__call__(z, c)


@BOTH
def test_the_record_is_true(kind):
    _, w, c = problem()
    f = Counted(dense(w, margin=M), "relu")
    found = inn.fixed_point(f, torch.zeros_like(c), c, solver=kind(rtol=1e-6, max_steps=3000))
    assert found.converged.all()
    assert found.evaluations == len(f.log)
    residual = (torch.relu(found.value @ w.T + c) - found.value).norm(dim=1)
    torch.testing.assert_close(found.residual, residual, rtol=1e-6, atol=1e-12)


@BOTH
def test_finished_samples_are_dropped_without_changing_the_others(kind, monkeypatch):
    monkeypatch.setattr(loop, "PRICE", 0)
    w, c = monotone(8, 1.5, F64, m=M), normal(40, 8, dtype=F64)
    c[:30] = -1  # solved by z = 0 at once
    f = Counted(dense(w, margin=M), "relu")
    solver = kind(rtol=1e-8, max_steps=3000)
    dropping = inn.fixed_point(f, torch.zeros_like(c), c, solver=solver)
    assert min(f.log) <= 10
    monkeypatch.setattr(loop, "DROP", 2.0)  # never
    keeping = inn.fixed_point(f, torch.zeros_like(c), c, solver=solver)
    assert f.log[-1] == 40
    assert torch.equal(dropping.steps, keeping.steps)
    torch.testing.assert_close(dropping.value, keeping.value)


def test_one_factorization_serves_both_directions(monkeypatch):
    counted, inv = [], torch.linalg.inv
    monkeypatch.setattr(torch.linalg, "inv", lambda a: counted.append(tuple(a.shape)) or inv(a))
    model = MonotoneDEQ(4, 6)
    model(torch.randn(7, 4)).sum().backward()
    assert counted == [(6, 6)]


# the adjoint equation


@BOTH
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_the_adjoint_equation_is_solved_by_splitting(kind, activation):
    f, w, c = problem(activation)
    c.requires_grad_()
    g = normal(5, 8, dtype=F64, seed=3)
    z = inn.fixed_point(
        f, torch.zeros_like(c), c, solver=PeacemanRachford(**TIGHT), backward=inn.Implicit(solver=kind(**TIGHT))
    ).value
    z.backward(g)
    slopes = PROXIMAL[activation].slopes(z.detach() @ w.T + c.detach())
    for i in range(5):  # dz/dc = (I − DW)⁻¹ D
        jacobian = torch.linalg.solve(torch.eye(8, dtype=F64) - slopes[i][:, None] * w, torch.diag(slopes[i]))
        torch.testing.assert_close(c.grad[i], jacobian.T @ g[i])


ROWS = [name for name, row in ARCHITECTURES.items() if any(isinstance(s, PeacemanRachford) for s in row.solvers)]


@BOTH
@pytest.mark.parametrize("name", ROWS)
def test_gradients_by_splitting_are_those_of_dense_solves(kind, name):
    row = ARCHITECTURES[name]

    def gradients(backward: inn.Backward) -> list[Tensor]:
        torch.manual_seed(0)
        model = row.make(solver=row.solvers[0], backward=backward).double()
        x = [t.clone().requires_grad_() for t in row.inputs()]
        out = model(*x)
        sum(t.square().sum() for t in (out if isinstance(out, tuple) else (out,))).backward()
        assert model.backward_solution.converged.all()
        return [t.grad for t in (*x, *model.parameters())]

    by_splitting = gradients(inn.Implicit(solver=kind(**TIGHT)))
    for a, b in zip(by_splitting, gradients(inn.Implicit(solver=Dense(**TIGHT))), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@BOTH
def test_derivatives_of_every_order_and_mode(kind):
    w, c = monotone(3, 0.6, F64, m=M), normal(2, 3, dtype=F64)

    def solve(backward: inn.Backward) -> Any:
        def value(w: Tensor, c: Tensor) -> Tensor:
            f = SplitMap(dense(w, margin=M), "tanh")
            solver = PeacemanRachford(step_size=1.0, **TIGHT)
            return inn.fixed_point(f, torch.zeros_like(c), c, solver=solver, backward=backward).value

        return value

    split, exact = (solve(inn.Implicit(solver=s)) for s in (kind(**TIGHT), Dense(**TIGHT)))
    inputs = (w.requires_grad_(), c.requires_grad_())
    assert torch.autograd.gradcheck(split, inputs)
    assert torch.autograd.gradgradcheck(split, inputs)
    tangents = (normal(3, 3, dtype=F64, seed=5), normal(2, 3, dtype=F64, seed=6))
    for a, b in zip(*(torch.func.jvp(f, inputs, tangents) for f in (split, exact)), strict=True):
        torch.testing.assert_close(a, b)
    direction = normal(2, 3, dtype=F64, seed=7)
    grads = [torch.func.grad(lambda w, c, f=f: (f(w, c) * direction).sum())(*inputs) for f in (split, exact)]
    torch.testing.assert_close(*grads)


def test_the_selection_at_a_kink_is_that_of_the_backward():
    """Every unit sits at its kink, where the slopes are 0 or 1/2 as was asked for."""
    w, c = monotone(4, 1.0, F64, m=M), torch.zeros(2, 4, dtype=F64, requires_grad=True)
    f = SplitMap(dense(w, margin=M), "relu")
    for selection, slope in ((nonsmooth.Autograd(), 0.0), (nonsmooth.Midpoint(), 0.5)):
        backward = inn.Implicit(solver=PeacemanRachford(**TIGHT), selection=selection)
        z = inn.fixed_point(f, torch.zeros_like(c), c, solver=PeacemanRachford(), backward=backward).value
        (grad,) = torch.autograd.grad(z.sum(), c)
        wanted = torch.linalg.solve((torch.eye(4, dtype=F64) - slope * w).T, torch.full((4,), 1.0, dtype=F64)) * slope
        torch.testing.assert_close(grad[0], wanted)


# misuse


@BOTH
def test_a_plain_map_is_refused_with_what_to_write_instead(kind):
    with pytest.raises(TypeError, match=rf"{kind.__name__}.*tells its parts.*MonotoneDEQ.*Anderson\(\)"):
        inn.fixed_point(torch.cos, torch.ones(2, 3), solver=kind())


class Cell(torch.nn.Module):
    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z / 2 + x)


def test_so_is_its_adjoint_equation():
    deq = DEQ(Cell(), backward=inn.Implicit(solver=PeacemanRachford()))
    with pytest.raises(TypeError, match="tells its parts"):
        deq(torch.randn(2, 3, requires_grad=True)).sum().backward()


def test_vmap_of_a_splitting_solver_is_refused_and_of_others_is_not():
    f, _, c = problem()

    def solve(c: Tensor, solver: solvers.Solver) -> Tensor:
        return inn.fixed_point(f, torch.zeros_like(c), c, solver=solver).value

    pair = torch.stack((c, 2 * c))
    with pytest.raises(TypeError, match=r"not inside torch.func.vmap"):
        torch.func.vmap(lambda c: solve(c, PeacemanRachford()))(pair)
    torch.testing.assert_close(
        torch.func.vmap(lambda c: solve(c, Anderson(**TIGHT)))(pair)[0], solve(c, Anderson(**TIGHT))
    )


@BOTH
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_step_sizes_are_positive(kind, bad):
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(step_size=.*must be positive, or None"):
        kind(step_size=bad)


@BOTH
def test_they_are_read_from_text(kind):
    solver = kind(step_size=0.25, rtol=1e-6)
    assert solvers.parse(repr(solver)) == solver
    assert solvers.by_name(kind.__name__.lower(), step_size=0.25, rtol=1e-6) == solver


@pytest.mark.parametrize(
    ("w", "margin", "text"), [(torch.zeros(2, 3), 1.0, "square"), (torch.zeros(2, 2), 0.0, "margin")]
)
def test_a_dense_part_is_checked(w, margin, text):
    with pytest.raises(ValueError, match=text):
        dense(w, margin=margin)


def test_an_activation_without_the_guarantee_is_refused():
    with pytest.raises(ValueError, match=r"activation='sin'.*relu"):
        SplitMap(dense(torch.zeros(2, 2), margin=1.0), "sin")
