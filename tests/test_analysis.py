"""Norms and eigenvalues of Jacobians, against dense linear algebra."""

import math

import pytest
import torch
from torch import nn

import implicitnets as inn
from implicitnets.analysis import dominant_eigenvalue, jacobian_frobenius, spectral_norm, spectral_radius
from implicitnets.solvers import Anderson, Dense

torch_double = torch.float64


def linear(w):
    """The map z -> W z of each sample's own W, and a state."""
    w = torch.as_tensor(w, dtype=torch_double)
    return (lambda z: torch.einsum("bij,bj->bi", w, z)), torch.randn(w.shape[:2], dtype=torch_double)


def rotation(angle, radius=1.0):
    c, s = radius * math.cos(angle), radius * math.sin(angle)
    return [[c, -s], [s, c]]


def similar(block, n=40, seed=0, smaller=0.5):
    """A non-normal matrix with the eigenvalues of ``block`` and others of modulus below ``smaller``."""
    generator = torch.Generator().manual_seed(seed)
    block = torch.as_tensor(block, dtype=torch_double)
    rest = torch.diag(smaller * (2 * torch.rand(n - len(block), generator=generator, dtype=torch_double) - 1))
    basis = torch.randn(n, n, generator=generator, dtype=torch_double) + 2 * torch.eye(n, dtype=torch_double)
    return basis @ torch.block_diag(block, rest) @ torch.linalg.inv(basis)


class Cell(nn.Module):
    def __init__(self, n=5):
        super().__init__()
        self.recur, self.inject = nn.Linear(n, n), nn.Linear(3, n)

    def forward(self, z, x):
        return torch.tanh(self.recur(z) + self.inject(x))


def dense(f, z, *inputs):
    """The Jacobian of each sample."""
    return torch.stack(
        [torch.func.jacrev(lambda s, i=i: f(s[None], *(x[i, None] for x in inputs))[0])(z[i]) for i in range(len(z))]
    )


# ------------------------------------------------------------------------------------------- Frobenius norm


def test_hutchinson_is_unbiased_and_per_sample():
    w = torch.randn(3, 6, 6, dtype=torch_double) * torch.tensor([1.0, 3.0, 0.1])[:, None, None]
    f, z = linear(w)
    exact = w.square().sum((1, 2)) / 6
    draws = 1500
    estimate = jacobian_frobenius(f, z, probes=draws)
    # The variance of vᵀAv is 2‖A‖²_F for normal v and A = JJᵀ.
    deviation = (2 * (w @ w.mT).square().sum((1, 2)) / draws).sqrt() / 6
    assert ((estimate - exact).abs() < 4 * deviation).all()
    assert not torch.equal(jacobian_frobenius(f, z), jacobian_frobenius(f, z))


def test_a_generator_makes_it_repeatable():
    f, z = linear(torch.randn(2, 4, 4))
    for norm in (jacobian_frobenius, spectral_norm, spectral_radius):
        first, second = (norm(f, z, generator=torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(first, second)


@pytest.mark.parametrize("norm", [jacobian_frobenius, spectral_norm])
def test_gradients_reach_weights_inputs_and_state(norm):
    cell = Cell().double()
    z, x = torch.randn(2, 5, dtype=torch_double), torch.randn(2, 3, dtype=torch_double)

    def loss(z, x, *parameters):
        names = [name for name, _ in cell.named_parameters()]
        f = lambda z, x: torch.func.functional_call(cell, dict(zip(names, parameters, strict=True)), (z, x))  # noqa: E731
        options = {"iterations": 300} if norm is spectral_norm else {}
        return norm(f, z, x, generator=torch.Generator().manual_seed(0), **options)

    arguments = [t.detach().clone().requires_grad_() for t in (z, x, *cell.parameters())]
    assert torch.autograd.gradcheck(loss, arguments, atol=1e-5, fast_mode=True)
    gradients = torch.autograd.grad(loss(*arguments).sum(), arguments)
    assert all(g.abs().max() > 0 for g in gradients)


def test_gradient_of_the_spectral_norm_is_that_of_the_largest_singular_value():
    w = torch.randn(1, 6, 6, dtype=torch_double, requires_grad=True)
    norm = spectral_norm(
        lambda z: torch.einsum("bij,bj->bi", w, z), torch.zeros(1, 6, dtype=torch_double), iterations=500
    )
    (found,) = torch.autograd.grad(norm.sum(), w)
    (expected,) = torch.autograd.grad(torch.linalg.svdvals(w)[:, 0].sum(), w)
    assert torch.allclose(norm, torch.linalg.svdvals(w)[:, 0])
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("norm", [jacobian_frobenius, spectral_norm])
def test_training_with_it_lowers_it_through_the_equilibrium(norm):
    deq = inn.DEQ(Cell().double(), state_shape=(5,), solver=Anderson(rtol=1e-8), backward=inn.Implicit(solver=Dense()))
    x = torch.randn(16, 3, dtype=torch_double)
    optimizer = torch.optim.Adam(deq.parameters(), lr=0.03)
    history = []
    for _ in range(10):
        loss = norm(deq.cell, deq(x), x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.7 * history[0]


def test_inputs_made_from_the_state_do_not_count():
    z = torch.randn(2, 3, dtype=torch_double, requires_grad=True) * 1
    x = 5 * z
    assert torch.allclose(spectral_norm(lambda z, x: 2 * z + x, z, x), torch.full((2,), 2.0, dtype=torch_double))


def test_no_graph_without_gradients():
    cell, z, x = Cell(), torch.randn(2, 5), torch.randn(2, 3)
    for norm in (jacobian_frobenius, spectral_norm):
        assert norm(cell, z, x).requires_grad
        with torch.no_grad():
            assert not norm(cell, z, x).requires_grad
    assert not spectral_radius(cell, z, x).requires_grad


# -------------------------------------------------------------------------------------------- spectral norm


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_spectral_norm_is_the_largest_singular_value(n):
    w = torch.randn(5, n, n, dtype=torch_double)
    f, z = linear(w)
    exact = torch.linalg.svdvals(w)[:, 0]
    assert torch.allclose(spectral_norm(f, z, iterations=300), exact, rtol=1e-3)
    for iterations in (1, 2, 5, 20):
        assert (spectral_norm(f, z, iterations=iterations) <= exact * (1 + 1e-12)).all()


@pytest.mark.parametrize("norm", [spectral_norm, spectral_radius])
def test_of_a_nonlinear_cell(norm):
    cell, z, x = Cell().double(), torch.randn(4, 5, dtype=torch_double), torch.randn(4, 3, dtype=torch_double)
    j = dense(cell, z, x)
    expected = torch.linalg.svdvals(j)[:, 0] if norm is spectral_norm else torch.linalg.eigvals(j).abs().amax(1)
    options = {"iterations": 500} if norm is spectral_norm else {}
    assert torch.allclose(norm(cell, z, x, **options), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("norm", "expected"), [(jacobian_frobenius, 2.5), (spectral_norm, 3.0), (spectral_radius, 6**0.5)]
)
def test_of_a_state_of_several_tensors(norm, expected):
    """(a, b) -> (2b, 3a), whose Jacobian has the singular values 2 and 3 and the eigenvalues ±√6."""
    z = {"a": torch.zeros(2, 2, 3, dtype=torch_double), "b": torch.zeros(2, 6, dtype=torch_double)}

    def f(z):
        return {"a": 2 * z["b"].reshape(-1, 2, 3), "b": 3 * z["a"].flatten(1)}

    options = {"probes": 2000} if norm is jacobian_frobenius else {"iterations": 50} if norm is spectral_norm else {}
    value = norm(f, z, **options)
    expected = (4 + 9) / 2 if norm is jacobian_frobenius else expected
    assert torch.allclose(value, torch.full((2,), expected, dtype=torch_double), rtol=0.05)


@pytest.mark.parametrize("norm", [jacobian_frobenius, spectral_norm, spectral_radius])
def test_of_a_constant_and_of_a_zero_map(norm):
    z = torch.randn(2, 3)
    for f in (lambda z: torch.ones(2, 3), lambda z: 0 * z, torch.zeros_like):
        assert norm(f, z).tolist() == [0, 0]


# ------------------------------------------------------------------------------------------ spectral radius


BLOCKS = {
    "real": [[0.9]],
    "negative": [[-0.9]],
    "conjugate pair": rotation(1.0, 0.9),
    "imaginary pair": rotation(math.pi / 2, 0.9),
    "opposite": [[0.9, 0.0], [0.0, -0.9]],
    "two pairs": torch.block_diag(torch.tensor(rotation(0.7, 0.9)), torch.tensor(rotation(2.0, 0.85))).tolist(),
    "Jordan": [[0.9, 1.0], [0.0, 0.9]],
}


@pytest.mark.parametrize("dimension", [12, 40])
@pytest.mark.parametrize("name", BLOCKS)
def test_spectral_radius_of_a_hidden_block(name, dimension):
    w = torch.stack([similar(BLOCKS[name], seed=seed) for seed in (1, 2)])
    f, z = linear(w)
    found = dominant_eigenvalue(f, z, dimension=dimension, rtol=1e-6, restarts=60)
    tolerance = 5e-3 if name == "Jordan" else 1e-5  # a Jordan block of 2 moves by the root of a perturbation
    assert found.converged.all()
    assert torch.allclose(found.value.abs(), torch.full((2,), 0.9, dtype=torch_double), rtol=0, atol=tolerance)
    if "pair" in name:
        assert (found.value.imag.abs() > 0.1).all()


@pytest.mark.parametrize("n", [1, 2, 3, 10, 32])
def test_exact_where_the_krylov_space_is_everything(n):
    w = torch.randn(4, n, n, dtype=torch_double)
    f, z = linear(w)
    expected = torch.linalg.eigvals(w).abs().amax(1)
    assert torch.allclose(spectral_radius(f, z, dimension=max(4, n), restarts=0), expected, rtol=1e-10)


@pytest.mark.parametrize("block", [rotation(0.3), [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 0.0]]])
def test_invariant_subspaces_end_the_iteration_early(block):
    w = torch.block_diag(*[torch.tensor(block, dtype=torch_double)] * 30)[None]
    f, z = linear(w)
    expected = torch.linalg.eigvals(torch.tensor(block)).abs().max().double()
    assert torch.allclose(spectral_radius(f, z, dimension=8, restarts=0), expected, atol=1e-6)


def test_the_error_is_estimated():
    w = torch.randn(6, 80, 80, dtype=torch_double) / 80**0.5
    f, z = linear(w)
    found = dominant_eigenvalue(f, z, rtol=1e-2)
    nearest = (torch.linalg.eigvals(w) - found.value[:, None]).abs().amin(1)
    assert (found.residual <= 1e-2 * found.value.abs()).all()
    assert (nearest <= 3 * found.error).all()
    assert (nearest > 0).all()


def test_power_iteration_would_not_do():
    """A right angle in a skewed basis: the growth of Jᵏv falls and rises for ever, and ρ = 0.5 all the same."""
    w = torch.tensor([[[0.0, 5.0], [-0.05, 0.0]]], dtype=torch_double)
    f, z = linear(w)
    assert torch.allclose(spectral_radius(f, z), torch.tensor([0.5], dtype=torch_double))
    assert spectral_norm(f, z) > 4.9


def test_a_sample_does_not_depend_on_the_others():
    easy, hard = similar([[0.9]], smaller=0.1), similar([[-1.0]], smaller=0.9, seed=5)
    f, z = linear(torch.stack([easy, hard]))
    alone, z_alone = linear(easy[None])
    options = {"dimension": 8, "rtol": 1e-3, "restarts": 100}
    both = dominant_eigenvalue(f, z, generator=torch.Generator().manual_seed(0), **options)
    one = dominant_eigenvalue(alone, z_alone, generator=torch.Generator().manual_seed(0), **options)
    assert torch.allclose(both.value[:1], one.value)
    assert torch.allclose(both.value.real, torch.tensor([0.9, -1.0], dtype=torch_double), rtol=2e-2)


def test_what_does_not_converge_is_told():
    f, z = linear(torch.linalg.qr(torch.randn(1, 200, 200, dtype=torch_double))[0])
    with pytest.warns(inn.ConvergenceWarning, match="1 of 1 samples"):
        spectral_radius(f, z, dimension=4, restarts=0)
    with pytest.warns(inn.ConvergenceWarning):
        value = spectral_radius(lambda z: z * torch.tensor([[1.0], [torch.nan]]), torch.ones(2, 3))
    assert torch.allclose(value[0], torch.ones((), dtype=torch_double))
    assert value[1].isnan()


def test_float32_and_no_grad():
    w = torch.randn(2, 20, 20)
    with torch.no_grad():
        found = spectral_radius(lambda z: torch.einsum("bij,bj->bi", w, z), torch.zeros(2, 20))
    assert torch.allclose(found, torch.linalg.eigvals(w.double()).abs().amax(1), rtol=1e-4)


def test_no_samples():
    f, z = linear(torch.randn(0, 3, 3))
    for norm in (jacobian_frobenius, spectral_norm, spectral_radius):
        assert norm(f, z).shape == (0,)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda f, z: jacobian_frobenius(f, z, probes=0), "probes=0"),
        (lambda f, z: spectral_norm(f, z, iterations=0), "iterations=0"),
        (lambda f, z: spectral_radius(f, z, dimension=3), "dimension=3"),
        (lambda f, z: spectral_radius(f, z, rtol=0.0), "rtol=0"),
        (lambda f, z: spectral_norm(f, z[0]), "no batch axis"),
    ],
)
def test_misuse_is_told(call, says):
    with pytest.raises(ValueError, match=says):
        call(lambda z: z, torch.ones(2, 3))
