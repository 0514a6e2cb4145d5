"""Quadratic programs: optimality, derivatives against those of the optimality conditions, and what has no solution."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from problems import normal
from torch import Tensor

import implicitnets as inn
from implicitnets.models import QPLayer, QPSolution
from implicitnets.nonsmooth import Left, Right
from implicitnets.solvers import Anderson, Dense, Newton, Picard, loop

F64 = torch.float64
NAMES = ("Q", "q", "G", "h", "A", "b")
EXACT = QPLayer(
    rho=3.0,
    solver=Picard(rtol=1e-12, atol=1e-12, max_steps=50_000),
    backward=inn.Implicit(solver=Dense(rtol=1e-8, atol=1e-8)),
)


def program(batch: int, n: int, m: int, k: int, *, own: bool = False, dtype: torch.dtype = F64) -> list[Tensor]:
    """Feasible programs some of whose inequalities are active; the matrices for all, or one a sample."""
    lead = (batch,) if own else ()
    root, g, a = (normal(*lead, rows, n, dtype=dtype, seed=seed) for seed, rows in enumerate((n, m, k)))
    inside = normal(batch, n, dtype=dtype, seed=5)
    h = times(inside, g) + 0.3 * normal(batch, m, dtype=dtype, seed=6).abs()
    q = 3 * normal(batch, n, dtype=dtype, seed=7)
    return [root @ root.mT / n + 0.1 * torch.eye(n, dtype=dtype), q, g, h, a, times(inside, a)]


def times(x: Tensor, matrix: Tensor) -> Tensor:
    return (matrix @ x[..., None])[..., 0]


def violation(data: list[Tensor], found: QPSolution) -> float:
    """How far the optimality conditions are from being satisfied."""
    Q, q, G, h, A, b = data
    slack = h - times(found.z, G)
    gradient = times(found.z, Q) + q + times(found.inequality, G.mT) + times(found.equality, A.mT)
    parts = (
        gradient,
        slack.clamp_max(0),
        found.inequality.clamp_max(0),
        found.inequality * slack,
        times(found.z, A) - b,
    )
    return max(float(part.detach().abs().max()) for part in parts if part.numel())


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("n", "m", "k"), [(5, 4, 1), (8, 12, 2), (20, 10, 5)])
def test_the_optimality_conditions_hold(n, m, k, own):
    data = program(6, n, m, k, own=own)
    found = EXACT.solve(*data)
    assert violation(data, found) < 1e-9
    assert (found.inequality > 1e-6).any()
    torch.testing.assert_close(QPLayer()(*data), found.z, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_defaults_do_for_programs_with_many_constraints(dtype):
    data = program(10, 20, 30, 5, dtype=dtype)
    layer = QPLayer()
    found = layer.solve(*data)
    assert layer.forward_solution.converged.all()
    assert violation(data, found) < 3e-3


def test_it_finds_what_scipy_finds():
    Q, q, G, h, A, b = (t.numpy() for t in program(3, 5, 6, 1))
    z = EXACT(*map(torch.from_numpy, (Q, q, G, h, A, b)))
    for i in range(3):
        found = scipy.optimize.minimize(
            lambda z, i=i: z @ Q @ z / 2 + q[i] @ z,
            np.zeros(5),
            jac=lambda z, i=i: Q @ z + q[i],
            method="SLSQP",
            constraints=[
                {"type": "ineq", "fun": lambda z, i=i: h[i] - G @ z, "jac": lambda z: -G},
                {"type": "eq", "fun": lambda z, i=i: A @ z - b[i], "jac": lambda z: A},
            ],
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(z[i], found.x, atol=1e-6)


def test_linear_programs_are_quadratic_programs():
    cost, cap = normal(3, 4, dtype=F64), torch.tensor([[1.0, 2, 3, 1], [1, 0, 1, 2]], dtype=F64)
    G, h = torch.cat([cap, -torch.eye(4, dtype=F64)]), torch.tensor([4.0, 3, 0, 0, 0, 0], dtype=F64)
    z = EXACT(torch.zeros(4, 4, dtype=F64), cost, G, h)
    for i in range(3):
        np.testing.assert_allclose(
            z[i], scipy.optimize.linprog(cost[i].numpy(), cap.numpy(), h[:2].numpy()).x, atol=1e-8
        )


def test_without_inequalities_it_is_a_linear_system():
    Q, q, G, _, A, b = program(3, 5, 4, 2)
    matrix = torch.cat([torch.cat([Q, A.T], 1), torch.cat([A, torch.zeros(2, 2)], 1)])
    wanted = torch.linalg.solve(matrix, torch.cat([-q, b], 1).T).T
    found = QPLayer().solve(Q, q, A=A, b=b)
    torch.testing.assert_close(found.z, wanted[:, :5])
    torch.testing.assert_close(found.equality, wanted[:, 5:])
    torch.testing.assert_close(QPLayer()(Q, q), torch.linalg.solve(Q, -q.T).T)
    idle = torch.cat([G, torch.zeros(1, 5)])  # a row 0 z ≤ 1
    h = torch.full((5,), 1e3, dtype=F64)
    torch.testing.assert_close(EXACT(Q, q, idle, h), torch.linalg.solve(Q, -q.T).T)


# derivatives


def by_conditions(data: list[Tensor], found: QPSolution, g: Tensor) -> list[Tensor]:
    """The gradient of gᵀz in all data of one program by the linearized optimality conditions (OptNet, equation 8)."""
    Q, _, G, h, A, _ = data
    z, lam, nu = found.z.detach(), found.inequality.detach(), found.equality.detach()
    n, m, k = len(z), len(lam), len(nu)
    matrix = torch.zeros(n + m + k, n + m + k, dtype=F64)
    matrix[:n, :n], matrix[:n, n : n + m], matrix[:n, n + m :] = Q, G.T * lam, A.T
    matrix[n : n + m, :n], matrix[n + m :, :n] = G, A
    matrix[n : n + m, n : n + m] = (G @ z - h).diag()
    d = -torch.linalg.solve(matrix, torch.cat([g, torch.zeros(m + k, dtype=F64)]))
    dz, dlam, dnu = d[:n], d[n : n + m], d[n + m :]
    return [
        (torch.outer(dz, z) + torch.outer(z, dz)) / 2,
        dz,
        torch.outer(lam * dlam, z) + torch.outer(lam, dz),
        -lam * dlam,
        torch.outer(dnu, z) + torch.outer(nu, dz),
        -dnu,
    ]


@pytest.mark.parametrize("own", [False, True])
def test_the_gradients_are_those_of_the_optimality_conditions(own):
    data = [t.requires_grad_() for t in program(4, 5, 6, 1, own=own)]
    found, g = EXACT.solve(*data), normal(4, 5, dtype=F64, seed=9)
    grads = torch.autograd.grad((g * found.z).sum(), data)
    each = []
    for i in range(4):
        here = [t[i] if own or name in "qhb" else t for t, name in zip(data, NAMES, strict=True)]
        one = QPSolution(found.z[i], found.inequality[i], found.equality[i])
        each.append(by_conditions([t.detach() for t in here], one, g[i]))
    for name, got, parts in zip(NAMES, grads, zip(*each, strict=True), strict=True):
        wanted = torch.stack(parts) if own or name in "qhb" else sum(parts)
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("own", [False, True])
def test_minimizers_and_multipliers_have_the_derivatives_of_finite_differences(own):
    data = [t.requires_grad_() for t in program(2, 4, 3, 1, own=own)]
    assert torch.autograd.gradcheck(lambda *d: tuple(vars(EXACT.solve(*d)).values()), data)


def test_vectors_are_shared_too():
    Q, q, G, h, A, b = program(3, 4, 3, 1)
    shared = (h[0].clone().requires_grad_(), b[0].clone().requires_grad_())
    z = EXACT(Q, q, G, shared[0], A, shared[1])
    torch.testing.assert_close(z, EXACT(Q, q, G, h[:1].expand(3, -1), A, b[:1].expand(3, -1)))
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(z.sum(), shared))


@pytest.mark.parametrize(("selection", "slope"), [(Left(), 0.0), (Right(), 1.0)])
def test_at_a_weakly_active_constraint_the_derivative_is_the_chosen_one(selection, slope):
    """Min ½z² − xz subject to z ≤ 0, at x = 0: z = min(x, 0), of slope 0 where the constraint counts as active."""
    layer = QPLayer(solver=Picard(), backward=inn.Implicit(solver=Dense(), selection=selection))
    x, one = torch.zeros(1, 1, dtype=F64, requires_grad=True), torch.ones(1, 1, dtype=F64)
    z = layer(one, -x, one, torch.zeros(1, dtype=F64))
    torch.testing.assert_close(torch.autograd.grad(z.sum(), x)[0], torch.full_like(x, slope))


# each sample on its own


def test_a_program_is_solved_as_if_alone_and_cut_when_it_is(monkeypatch):
    monkeypatch.setattr(loop, "PRICE", 0)
    data = program(8, 6, 8, 1, own=True)
    data[1][:4] *= 0.01
    together = EXACT(*data)
    for i in range(8):
        torch.testing.assert_close(EXACT(*(t[i : i + 1] for t in data)), together[i : i + 1])


def test_from_20_starts_the_same_minimizer():
    Q, q, G, h, A, b = program(3, 6, 8, 1)
    wanted = EXACT(Q, q, G, h, A, b)
    for seed in range(20):
        z = EXACT(Q, q, G, h, A, b, z0=100 * normal(3, 8, dtype=F64, seed=seed))
        torch.testing.assert_close(z, wanted, rtol=1e-7, atol=1e-7)


def test_a_solver_that_runs_away_is_not_believed():
    """From a far start, Anderson's method meets a tolerance that is relative to the state by a state without bounds."""
    layer, data = (
        QPLayer(rho=3.0, solver=Anderson(memory=10, rtol=1e-12, atol=1e-12, max_steps=200)),
        program(3, 6, 8, 1),
    )
    for seed in range(100):  # rounding decides from which starts it does: from about one in ten
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", inn.ConvergenceWarning)
            layer(*data, z0=100 * normal(3, 8, dtype=F64, seed=seed))
        record = layer.forward_solution
        away = (record.residual <= 1e-12 * torch.linalg.vector_norm(record.value, dim=1)) & (record.residual > 0.1)
        if away.any():
            break
    assert away.any()
    assert not record.converged[away].any()
    assert any("grow without bounds" in str(w.message) for w in caught)
    assert not any("infeasible:" in str(w.message) for w in caught)


# no solution


@pytest.mark.parametrize("solver", [QPLayer().solver, Anderson(max_steps=300), Anderson(rtol=1e-3), Newton(), Picard()])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_an_infeasible_program_is_named_and_its_mates_are_solved(dtype, solver):
    """1 ≤ z₀ and z₀ ≤ h: with h = 0 there is no such z."""
    layer = QPLayer(solver=solver)
    G = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], dtype=dtype)
    h = torch.tensor([[2.0, -1.0], [0.0, -1.0], [3.0, -1.0]], dtype=dtype)
    q = torch.tensor([[0.0, 1.0, 0.0], [5.0, 1.0, -1.0], [-4.0, 1.0, 2.0]], dtype=dtype)
    with pytest.warns(inn.ConvergenceWarning) as caught:
        z = layer(torch.eye(3, dtype=dtype), q, G, h)
    assert layer.forward_solution.converged.tolist() == [True, False, True]
    assert any("samples [1] are infeasible" in str(w.message) for w in caught)
    torch.testing.assert_close(z[[0, 2], 0], torch.tensor([1.0, 3.0], dtype=dtype), rtol=5e-3, atol=5e-3)


def test_contradicting_equalities_and_inequalities_are_infeasible():
    eye = torch.eye(2, dtype=F64)
    with pytest.warns(inn.ConvergenceWarning) as caught:  # z ≥ 0 and z₀ + z₁ = −1
        QPLayer()(eye, eye[:1], -eye, torch.zeros(2).double(), torch.ones(1, 2).double(), -torch.ones(1).double())
    assert any("samples [0] are infeasible" in str(w.message) for w in caught)


@pytest.mark.parametrize("solver", [QPLayer().solver, Anderson(), Newton()])
def test_an_unbounded_program_does_not_pass(solver):
    layer, one = QPLayer(solver=solver), torch.ones(1, 1, dtype=F64)
    with pytest.warns(inn.ConvergenceWarning) as caught:
        layer(0 * one, -one, -one, torch.zeros(1).double())  # max z subject to z ≥ 0
    assert not layer.forward_solution.converged.any()
    assert not any("infeasible:" in str(w.message) for w in caught)


def test_a_program_with_a_solution_is_never_called_infeasible():
    data = program(10, 8, 16, 1)
    layer = QPLayer(solver=Picard(max_steps=3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer(*data)
    assert len(caught) == 1
    assert "infeasible" not in str(caught[0].message)


EYE, TWO, G2 = torch.eye(2), torch.zeros(3, 2), torch.ones(1, 2)


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("G goes with h", lambda f: f(EYE, TWO, G2)),
        ("A with b", lambda f: f(EYE, TWO, None, None, None, torch.ones(1))),
        (r"Q has shape \(3, 3\).*be \(batch, 2, 2\), or \(2, 2\)", lambda f: f(torch.eye(3), TWO)),
        (r"h has shape \(3, 2\)", lambda f: f(EYE, TWO, G2, torch.ones(3, 2))),
        ("G has shape .* and dtype torch.float64", lambda f: f(EYE, TWO, G2.double(), torch.ones(1))),
        ("no batch axis.*q\\[None\\]", lambda f: f(EYE, TWO[0])),
        (r"batch sizes \[3, 4\]", lambda f: f(EYE, TWO, G2, torch.ones(4, 1))),
        ("not positive semidefinite", lambda f: f(torch.diag(torch.tensor([1.0, -1.0])), TWO)),
        ("add a little to Q", lambda f: f(torch.diag(torch.tensor([1.0, 0.0])), TWO)),
        ("rows of A are linearly dependent", lambda f: f(EYE, TWO, A=torch.ones(2, 2), b=torch.ones(2))),
        ("rho must be positive", lambda f: QPLayer(rho=0.0)),
    ],
)
def test_it_says_what_is_wrong(text, call: Any):
    with pytest.raises(ValueError, match=text):
        call(QPLayer())
