"""Batched dense solves."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from implicitnets.linalg import inverse_or_any, invert_definite, solve_dense


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 5, 64, 65, 150])
def test_equals_numpy(n, dtype):
    generator = torch.Generator().manual_seed(n)
    matrix = torch.randn(3, n, n, generator=generator, dtype=torch.float64) + n**0.5 * 3 * torch.eye(n)
    right = torch.randn(3, n, generator=generator, dtype=torch.float64)
    expected = np.linalg.solve(matrix.numpy(), right.numpy()[:, :, None])[:, :, 0]
    found = solve_dense(matrix.to(dtype), right.to(dtype))
    assert found.dtype == dtype
    assert np.allclose(found.double().numpy(), expected, rtol=0, atol=1e4 * torch.finfo(dtype).eps)


def test_is_right_after_the_number_of_threads_was_set():
    """There, batched LU of the CPU build of torch 2.13 is wrong, hangs or raises."""
    script = """
import torch
torch.set_num_threads(2)
from implicitnets.linalg import inverse_or_any, invert_definite, solve_dense
matrix = torch.randn(4, 200, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
x = torch.randn(4, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
found = solve_dense(matrix, torch.linalg.vecdot(matrix, x[:, None]))
assert (found - x).abs().max() < 1e-8, (found - x).abs().max()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_a_singular_matrix_gets_its_least_squares_solution_and_harms_no_other(seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64) + 4 * torch.eye(4)
    right = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    matrix[1] = 0
    matrix[1, 0, 0] = 2
    found = solve_dense(matrix, right)
    assert torch.allclose(found[1], torch.stack([right[1, 0] / 2, *torch.zeros(3).double()]))
    assert torch.allclose((matrix[[0, 2]] @ found[[0, 2], :, None])[:, :, 0], right[[0, 2]])


def test_what_is_not_finite_stays_so_and_nothing_is_solved_for_no_one():
    matrix = torch.eye(2).repeat(2, 1, 1)
    right = torch.tensor([[1.0, 2.0], [torch.nan, 0.0]])
    found = solve_dense(matrix, right)
    assert found[0].tolist() == [1, 2]
    assert found[1].isnan().any()
    assert solve_dense(torch.zeros(0, 3, 3), torch.zeros(0, 3)).shape == (0, 3)
    assert solve_dense(torch.zeros(2, 0, 0), torch.zeros(2, 0)).shape == (2, 0)


def test_definite_matrices_are_inverted_and_told_from_others():
    root = torch.randn(5, 200, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = root @ root.mT + torch.eye(200)
    matrix[1] = -matrix[1]
    matrix[2] = root[2, :, :50] @ root[2, :, :50].T  # singular
    inverse, definite = invert_definite(matrix)
    assert definite.tolist() == [True, False, False, True, True]
    assert np.allclose(inverse[definite].numpy(), np.linalg.inv(matrix[definite].numpy()), rtol=1e-6, atol=1e-8)
    assert bool(invert_definite(torch.zeros(0, 0))[1])


@pytest.mark.parametrize("size", [3, 100])
def test_the_inverse_of_a_singular_matrix_is_something_finite(size):
    matrix = torch.eye(size, dtype=torch.float64) + 0.5 / size
    matrix = matrix.repeat(3, 1, 1)
    matrix[1] = 0
    found = inverse_or_any(matrix)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[[0, 2]] @ matrix[[0, 2]], torch.eye(size, dtype=torch.float64).expand(2, -1, -1))
