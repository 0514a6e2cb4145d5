"""The error of an adjoint solve, estimated or bounded, against the true one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import matrix, normal
from torch import Tensor

from implicitnets import Implicit, fixed_point
from implicitnets.backward.error import error_bound, estimate_error
from implicitnets.solvers import GMRES, Dense, Picard
from implicitnets.solvers.newton import solve_scaled

F64 = torch.float64


def case(n: int, norm: float, rtol: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """J, g, an approximate w, its relative residual, and its true relative error."""
    j, g = matrix(n, norm, F64, seed), normal(4, n, dtype=F64, seed=seed + 1)
    found = solve_scaled(GMRES(rtol=rtol, restart=60, max_steps=4), lambda v: v @ j, g)
    exact = torch.linalg.solve(torch.eye(n, dtype=F64) - j.T, g.T).T
    error = (found.value - exact).norm(dim=1) / exact.norm(dim=1)
    return j, g, found, error, exact


@given(n=st.integers(1, 40), norm=st.floats(0, 0.99), digits=st.integers(1, 8), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_bound_holds(n, norm, digits, seed):
    _, _, found, error, _ = case(n, norm, 10.0**-digits, seed)
    assert (error <= error_bound(found, norm + 1e-12) + 1e-14).all()


def test_the_bound_is_attained():
    """J = ± q: g = (1 − J) w*, and the residual that w = 0 leaves is g."""
    q = torch.tensor([0.9, 0.5], dtype=F64)
    j = torch.tensor([[0.9, 0], [0, -0.9]], dtype=F64)
    exact = torch.tensor([[1e-9, 1.0], [1e-9, 1.0]], dtype=F64)  # seen at 1 + q
    g = exact - exact @ j
    off = torch.tensor([[1e-3, 0.0], [1e-3, 0.0]], dtype=F64)  # seen at 1 − q
    residual = (off - off @ j).norm(dim=1) / g.norm(dim=1)
    found = solve_scaled(Dense(), lambda v: v @ j, g)
    found.residual.copy_(residual)
    assert torch.allclose(error_bound(found, 0.9), off.norm(dim=1) / exact.norm(dim=1), rtol=1e-6)
    assert error_bound(found, q).shape == (2,)
    assert error_bound(found, 1.0).tolist() == [torch.inf, torch.inf]
    with pytest.raises(ValueError, match="contraction must be at least 0"):
        error_bound(found, -0.1)


def ratios(n: int, norm: float, seeds: int = 20) -> Tensor:
    """Estimates in units of the true errors."""
    found = []
    for seed in range(seeds):
        for rtol in (1e-1, 1e-3):
            j, g, approximate, error, _ = case(n, norm, rtol, seed)
            estimate = estimate_error(lambda v, j=j: v @ j, approximate.value, g)
            found.append((estimate / error)[error > 1e-13])
    return torch.cat(found)


@pytest.mark.parametrize("norm", [0.5, 0.9, 1.5])
@pytest.mark.parametrize("n", [3, 20, 60])
def test_the_estimate_is_of_the_size_of_the_error(n, norm):
    """On random matrices whose spectral radius is below 1: within a factor of three, mostly within a half."""
    ratio = ratios(n, norm)
    assert float(ratio.min()) > 1 / 3
    assert float(ratio.max()) < 3
    assert ((ratio > 2 / 3) & (ratio < 1.5)).double().mean() > 0.9


def test_the_estimate_is_no_bound_but_knows_where_it_knows_nothing():
    """Random matrices of spectral radius 2, for which I − J can be nearly singular."""
    ratio = ratios(20, 4.0)
    assert 0.5 < float(ratio.median()) < 2
    assert float(ratio.min()) < 0.5
    assert ratios(60, 4.0, seeds=2).isinf().all()


def test_the_estimate_is_exact_with_an_exact_solver_and_zero_at_the_solution():
    j, g, found, error, exact = case(10, 2.0, 0.1, 5)
    assert torch.allclose(estimate_error(lambda v: v @ j, found.value, g, solver=Dense()), error, rtol=1e-5)
    assert (estimate_error(lambda v: v @ j, exact, g) < 1e-12).all()
    zero = torch.zeros_like(g)
    assert (estimate_error(lambda v: v @ j, zero, zero) == 0).all()


def test_the_estimate_is_exact_where_the_inverse_magnifies_all_alike():
    """J = 1/2: after k steps Picard has found 1 − 2⁻ᵏ of the error, and left 2⁻ᵏ of the residual."""
    exact = normal(3, 4, dtype=F64)
    for rtol, k in ((0.6, 1), (0.2, 2), (0.1, 3)):
        solver = Picard(rtol=rtol, atol=0)
        assert solve_scaled(solver, lambda v: v / 2, exact).steps.tolist() == [k] * 3
        estimate = estimate_error(lambda v: v / 2, exact * (1 - 1e-7), exact / 2, solver=solver)
        assert torch.allclose(estimate, torch.full((3,), 1e-7, dtype=F64), rtol=1e-5)


def test_the_estimate_is_infinite_where_nothing_was_found():
    """I − J = a cyclic shift: one product tells GMRES nothing."""
    shift = torch.roll(torch.eye(5, dtype=F64), 1, 0)
    g = torch.eye(5, dtype=F64)[:1]
    estimate = estimate_error(lambda v: v - v @ shift, torch.zeros_like(g), g, solver=GMRES(restart=1, max_steps=1))
    assert estimate.tolist() == [torch.inf]


@pytest.mark.parametrize("contraction", [0.9, "unknown"])
def test_the_record_of_a_gradient_tells_its_error(contraction):
    """The cotangent w has the stated error, so with ∂f/∂x = I the gradient of x has it too."""
    w, x = matrix(12, 0.9, F64), normal(5, 12, dtype=F64).requires_grad_()
    records = []

    def gradient(how: Implicit) -> Tensor:
        z = fixed_point(
            lambda z, x: z @ w + x, torch.zeros_like(x), x, solver=Dense(), backward=how, report=records.append
        ).value
        return torch.autograd.grad((z**2).sum(), x)[0]

    exact = gradient(Implicit(solver=Dense()))
    rough = gradient(Implicit(solver=GMRES(rtol=0.1), contraction=contraction))
    error = (rough - exact).norm(dim=1) / exact.norm(dim=1)
    assert records[0].error is None
    assert (error > 1e-3).any()
    assert (error <= records[1].error * (1 if contraction == 0.9 else 3)).all()
    assert (records[1].error < 100 * error.max()).all()
    with pytest.raises(ValueError, match="contraction must be"):
        Implicit(contraction=1.5)
