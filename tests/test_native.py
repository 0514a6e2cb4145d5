"""The compiled loops compute what the tensor operations compute, and nobody needs them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from problems import DTYPES, PROBLEMS, matrix, monotone, normal

from implicitnets.solvers import Anderson, Iterate, Picard, native, newton

needs_compiler = pytest.mark.skipif(native.library() is None, reason="there is no C compiler")


def both(monkeypatch, solver, f, z0):
    fast = solver.run(f, z0)
    monkeypatch.setattr(native, "fits", lambda z: False)
    return fast, solver.run(f, z0)


@needs_compiler
@pytest.mark.parametrize("name", [name for name in PROBLEMS if name not in ("tree", "none")])
@pytest.mark.parametrize("solver", [Anderson(), Anderson(damping=0.3, memory=3), Picard()], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_solution_in_about_the_same_steps(monkeypatch, name, solver, dtype):
    problem = PROBLEMS[name](dtype)
    fast, plain = both(monkeypatch, solver, problem.f, problem.z0)
    assert torch.equal(fast.status, plain.status)
    if problem.solution is not None and fast.converged.all():  # else rounding decides where they wander
        assert (fast.steps - plain.steps).abs().max() <= 2
        assert torch.allclose(fast.value, plain.value, rtol=1e-2, atol=1e-3)


@needs_compiler
@pytest.mark.parametrize("memory", [1, 4, 32, 33])
def test_same_iterates_through_restarts(monkeypatch, memory):
    w, x = monotone(20, 2.0, torch.float64), normal(4, 20, dtype=torch.float64)
    solver = Anderson(memory=memory, rtol=1e-7, max_steps=200, record=True)
    fast, plain = both(monkeypatch, solver, lambda z: torch.relu(z @ w.T + x), torch.zeros_like(x))
    assert fast.converged.all()
    assert torch.allclose(fast.trace[:12], plain.trace[:12], rtol=1e-6)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_record_of_samples_that_end_at_different_steps(monkeypatch, dtype):
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    rate = torch.linspace(0.05, 0.9, 40, dtype=dtype)[order][:, None]
    x = normal(40, 6, dtype=dtype)
    fast, plain = both(monkeypatch, Picard(rtol=1e-3, max_steps=100), lambda z: rate * z + x, torch.zeros_like(x))
    assert fast.steps.unique().numel() > 10
    assert torch.equal(fast.steps, plain.steps)
    assert torch.equal(fast.value, plain.value)
    assert torch.allclose(fast.residual, plain.residual, rtol=1e-4)
    assert fast.all_converged


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 256), (4, 1000)])
def test_same_norms_and_who_meets_the_tolerance(dtype, shape):
    z, fz = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=2)
    expected = Iterate.at(z, fz).host_norms()
    residual, scale = expected
    lots, none, nobody = np.full(shape[0], np.inf), np.zeros(shape[0]), np.zeros(shape[0], dtype=bool)
    ratio = float((residual / scale).min())
    for limits, bounds, expected_met in (
        ((0.0, 0.9999 * ratio), (lots, lots), 0),
        ((0.0, 1.0001 * ratio), (lots, lots), 1),
        ((0.0, 0.0), (none, lots), -1),
        ((0.0, 0.0), (lots, none), -1),
        ((1.01 * float(residual.max()), 0.0), (none, lots), shape[0]),
        ((1.01 * float(residual.max()), 0.0), (lots, none), -1),
    ):
        norms, met = native.Measure(z, limits, bounds[1], bounds[0], nobody)(z, fz)
        assert norms == pytest.approx(expected, rel=1e-5)
        assert met == expected_met
    fz[0, 0] = torch.nan
    measure = native.Measure(z, (0.0, 0.0), lots, lots, nobody)
    assert measure(z, fz)[1] == -1
    nobody[0] = True
    norms, met = measure(z, fz)
    assert met == 0
    assert norms[:, 0].tolist() == [0, 0]
    assert norms[:, 1:] == pytest.approx(expected[:, 1:], rel=1e-5)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 1000)])
def test_same_rows_in_units_of_their_norms(dtype, shape):
    for factor in (1.0, torch.finfo(dtype).tiny, torch.finfo(dtype).max / 1e3):
        right = factor * normal(*shape, dtype=dtype)
        right[-1, 1:] = 0
        right[0] = torch.where(right[0] > 0, 0, right[0])
        for found, expected in zip(native.scaled(right), newton._scaled(right), strict=True):
            assert torch.allclose(found, expected, rtol=1e-5, atol=0)
    offset, unit = native.scaled(torch.zeros(2, 3, dtype=dtype))
    assert offset.tolist() == [[0, 0, 0]] * 2
    assert unit.tolist() == [[1], [1]]
    assert native.scaled(torch.full((1, 2), torch.nan, dtype=dtype))[0].isnan().all()


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_cosines_of_residuals(dtype):
    z, fz, other_z, other_fz = (normal(4, 300, dtype=dtype, seed=seed) for seed in range(4))
    other_fz[1], other_fz[2] = other_z[1] - 3 * (fz - z)[1], other_z[2]
    found = native.cosines((z, fz), (other_z, other_fz), 256)
    expected = torch.cosine_similarity((fz - z)[:, :256], (other_fz - other_z)[:, :256])
    assert found == pytest.approx(expected.numpy(), rel=1e-4)
    assert found[1:3] == pytest.approx([-1, 0])


@needs_compiler
@pytest.mark.parametrize("solver", [Anderson(lazy=0.0), Picard()], ids=str)
def test_threads_change_nothing(monkeypatch, solver):
    monkeypatch.setattr(native, "SHARE", 8)
    x = normal(37, 20, dtype=torch.float32)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(solver.run(lambda z: torch.cos(0.8 * z.roll(1, 1) + x), torch.zeros_like(x)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(other.value, found[0].value) for other in found)
    assert all(torch.equal(other.steps, found[0].steps) for other in found)


@needs_compiler
def test_values_that_are_not_contiguous_are_taken_as_they_are(monkeypatch):
    w, x = matrix(6, 0.8, torch.float64), normal(5, 6, dtype=torch.float64)
    z0 = torch.zeros(6, 5, dtype=torch.float64).T
    fast, plain = both(monkeypatch, Anderson(rtol=1e-8), lambda z: torch.tanh(w @ z.T + x.T).T, z0)
    assert torch.allclose(fast.value, plain.value)
    assert torch.equal(fast.steps, plain.steps)


@pytest.mark.parametrize(
    "how", [{"IMPLICITNETS_NATIVE": "0"}, {"PATH": "/nowhere", "CC": ""}, {"XDG_CACHE_HOME": "/dev/null"}]
)
def test_without_them_everything_works(how):
    script = """
import torch, implicitnets as inn
from implicitnets.solvers import native
assert native.library() is None
assert inn.fixed_point(torch.cos, torch.zeros(3, 2)).converged.all()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], env=how, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
