"""Constraints hold for every free matrix, are differentiable where they bind, and refuse what they can't promise."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import normal
from torch import Tensor, nn

from implicitnets import constraints
from implicitnets.activations import Blocks, GroupSort, LayerNorm, MaxPool, Scaled, Softmax
from implicitnets.constraints import BlockNorm, InfNorm, Monotone, PerronFrobenius, SpectralNorm
from implicitnets.constraints.blocks import block_matrix
from implicitnets.models import ImplicitModel

F64 = torch.float64
MIXED = Blocks((LayerNorm(size=4, eps=0.25), 4), ("relu", 2), (MaxPool(size=2), 4))
VALUES = [
    InfNorm(kappa=0.9, method="rescale"),
    PerronFrobenius(kappa=0.9),
    SpectralNorm(kappa=0.9),
    Monotone(m=0.3),
    BlockNorm(kappa=0.9, activation=MIXED),
]

free = st.builds(
    lambda seed, scale, rows: normal(10, 8, dtype=F64, seed=seed)[:rows] * scale,
    seed=st.integers(0, 10**6),
    scale=st.floats(1e-3, 1e3),
    rows=st.just(10),
)
square = free.map(lambda w: w[:8])


def radius(a: Tensor) -> float:
    return float(torch.linalg.eigvals(a.detach().abs()).abs().max())


@given(square, st.floats(0.05, 0.99), st.sampled_from(["project", "rescale"]))
def test_the_infinity_norm_is_bounded(weight, kappa, method):
    for dtype in (torch.float32, F64):
        bounded = InfNorm(kappa=kappa, method=method)(weight.to(dtype))
        assert (bounded.abs().sum(1) <= kappa * (1 + 2 * torch.finfo(dtype).eps ** 0.5)).all()


@given(free, st.floats(0.05, 0.99))
def test_the_spectral_norm_is_bounded_and_smaller_matrices_stay(weight, kappa):
    bounded = SpectralNorm(kappa=kappa)(weight)
    norm = torch.linalg.matrix_norm(weight, 2)
    assert torch.linalg.matrix_norm(bounded, 2) <= kappa * (1 + 1e-12)
    assert torch.allclose(bounded, weight * (kappa / norm).clamp_max(1), rtol=1e-12)


@given(square, square, st.floats(0.05, 0.99))
def test_the_perron_frobenius_eigenvalue_is_bounded_in_any_units(weight, units, kappa):
    layer = nn.Linear(8, 8).double()
    layer.weight.data = weight
    constraints.perron_frobenius(layer, "weight", kappa)
    layer.parametrizations.weight[0].log_scale.data = units[0].clamp(-3, 3)
    assert radius(layer.weight) <= kappa * (1 + 1e-7)


@given(square, st.floats(0.05, 2))
def test_the_symmetric_part_is_bounded(weight, m):
    a = Monotone(m=m)(weight)
    size = 1 + torch.linalg.matrix_norm(a, 2)
    assert torch.linalg.eigvalsh((a + a.T) / 2).max() <= 1 - m + 1e-12 * size


@given(free, st.floats(0.05, 0.99))
def test_the_block_norms_are_bounded(weight, kappa):
    bounded = BlockNorm(kappa=kappa, activation=MIXED)(weight)
    norms = block_matrix(bounded, MIXED)
    assert norms.shape == (3, 3)
    assert (norms.sum(1) <= kappa * (1 + 1e-12)).all()
    assert radius(norms) <= kappa * (1 + 1e-9)


@given(free, st.integers(0, 10**6))
def test_the_block_norms_are_lipschitz_constants(weight, seed):
    """‖φᵢ(Ax)ᵢ − φᵢ(Ax′)ᵢ‖ ≤ Σⱼ N(A)ᵢⱼ ‖xⱼ − x′ⱼ‖, in the 2-norm for layer normalization, else the infinity norm."""
    x, y = normal(2, 20, 8, dtype=F64, seed=seed)

    def sizes(t):
        norms = [(0, 4, 2), (4, 6, math.inf), (6, 8, math.inf)]
        return torch.stack([torch.linalg.vector_norm(t[:, a:b], p, 1) for a, b, p in norms], 1)

    moved = sizes(MIXED(x @ weight.T) - MIXED(y @ weight.T))
    assert (moved <= sizes(x - y) @ block_matrix(weight, MIXED).T * (1 + 1e-9) + 1e-12).all()


def test_every_matrix_within_a_bound_can_be_reached():
    a = normal(6, 6, dtype=F64)
    a *= 0.8 / radius(a)
    assert a.abs().sum(1).max() > 1  # no InfNorm allows it
    scale = torch.linalg.solve(torch.eye(6, dtype=F64) - a.abs() / 0.9, torch.ones(6, dtype=F64))
    layer = nn.Linear(6, 6).double()
    layer.weight.data = a * scale / scale[:, None]
    PerronFrobenius(kappa=0.9).apply(layer, "weight")
    layer.parametrizations.weight[0].log_scale.data = -scale.log()
    assert torch.allclose(layer.weight, a)
    skew = normal(6, 6, dtype=F64)
    wanted = 0.7 * torch.eye(6, dtype=F64) - skew.T @ skew + skew - skew.T
    lower = torch.linalg.cholesky((skew.T @ skew).flip(0, 1)).flip(0, 1).T  # PᵀP = LᵀL with L lower triangular
    assert torch.allclose(Monotone(m=0.3)(lower + (skew - skew.T).triu(1)), wanted)


@pytest.mark.parametrize("constraint", VALUES, ids=repr)
def test_a_constraint_that_binds_is_differentiable(constraint):
    layer = nn.Linear(8, 10 if isinstance(constraint, BlockNorm) else 8).double()
    layer.weight.data = 3 * normal(*layer.weight.shape, dtype=F64)
    constraint.apply(layer, "weight")
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def weight(*values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (torch.eye(8, dtype=F64),))

    values = [p.detach().clone().requires_grad_() for p in parameters]
    assert torch.autograd.gradcheck(weight, values)


@pytest.mark.parametrize("method", ["project", "rescale"])
def test_ties_and_zero_rows_have_a_gradient(method):
    weight = torch.tensor([[2.0, -2.0, 2.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]], dtype=F64, requires_grad=True)
    bounded = InfNorm(kappa=1.0, method=method)(weight)
    wanted = torch.tensor([[1 / 3, -1 / 3, 1 / 3], [0, 0, 0], [0.5, 0.5, 0]], dtype=F64)
    assert torch.allclose(bounded, wanted)
    (g,) = torch.autograd.grad(bounded.sum(), weight)
    assert torch.isfinite(g).all()
    along = torch.tensor([[1.0, -1.0, 1.0]], dtype=F64)  # outwards, the tied row does not move
    assert (g[0] * along).sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "constraint", [SpectralNorm(), BlockNorm(activation=MIXED), Monotone(), PerronFrobenius()], ids=repr
)
def test_the_zero_matrix_can_be_trained(constraint):
    layer = nn.Linear(8, 10 if isinstance(constraint, BlockNorm) else 8)
    layer.weight.data.zero_()
    constraint.apply(layer, "weight")
    layer.weight.sum().backward()
    assert all(torch.isfinite(p.grad).all() for name, p in layer.named_parameters() if name != "bias")


@pytest.mark.parametrize("constraint", VALUES, ids=repr)
def test_a_constraint_is_read_from_what_it_prints_and_its_module_pickled(constraint):
    assert constraints.parse(repr(constraint)) == constraint
    layer = nn.Linear(8, 10 if isinstance(constraint, BlockNorm) else 8)
    constraint.apply(layer, "weight")
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(1)
    assert torch.equal(pickle.loads(pickle.dumps(layer)).weight, layer.weight)


def test_the_functions_are_the_values():
    phi = Blocks((LayerNorm(size=2, eps=1.0), 2), ("tanh", 2))
    for function, value in (
        (constraints.inf_norm, InfNorm(kappa=0.5)),
        (constraints.perron_frobenius, PerronFrobenius(kappa=0.5)),
        (constraints.spectral_norm, SpectralNorm(kappa=0.5)),
        (constraints.monotone, Monotone(m=0.5)),
        (
            lambda module, name, kappa: constraints.block_norm(module, name, phi, kappa),
            BlockNorm(kappa=0.5, activation=phi),
        ),
    ):
        layer = nn.Linear(4, 4).double()
        weight = layer.weight.detach().clone() * 4
        layer.weight.data = weight.clone()
        assert function(layer, "weight", 0.5) is layer
        assert torch.allclose(layer.weight, value(weight), rtol=1e-14)
        assert not torch.allclose(layer.weight, weight)


@pytest.mark.parametrize(
    ("text", "constraint", "activation"),
    [
        ("infinity norm is below 1, and that of 'gelu'|infinity norm .* is 1.129: use BlockNorm", InfNorm(), "gelu"),
        ("use BlockNorm", InfNorm(), LayerNorm(size=3)),
        ("a smaller kappa", InfNorm(kappa=1.0), "relu"),
        ("use BlockNorm", InfNorm(), "square"),
        ("2- norm", SpectralNorm(kappa=1.5), "relu"),
        (r"InfNorm\(\) or BlockNorm", PerronFrobenius(), Softmax(size=3)),
        ("infinity norm", PerronFrobenius(), "gelu"),
        (r"slopes in \[0, 1\]", Monotone(), "abs"),
        (r"slopes in \[0, 1\]", Monotone(), MaxPool(size=1)),
        (r"slopes in \[0, 1\]", Monotone(), torch.tanh),
        ("kappa < 1", BlockNorm(kappa=1.0), "relu"),
        ("kappa < 1", BlockNorm(), Blocks(("square", 3), ("relu", 3))),
    ],
)
def test_a_guarantee_that_does_not_hold_is_refused(text, constraint, activation):
    with pytest.raises(ValueError, match=text):
        ImplicitModel(3, 6, 2, activation=activation, constraint=constraint)


@pytest.mark.parametrize(
    ("constraint", "activation"),
    [
        (InfNorm(), Blocks((Softmax(size=3), 3), (GroupSort(size=3), 3))),
        (InfNorm(kappa=3.0), "sigmoid"),
        (InfNorm(kappa=1.9), Softmax(size=2)),
        (InfNorm(kappa=0.8), "gelu"),
        (SpectralNorm(), MaxPool(size=3)),
        (SpectralNorm(kappa=0.9), LayerNorm(size=3, eps=1.0)),
        (PerronFrobenius(), Blocks(("abs", 2), ("tanh", 4))),
        (PerronFrobenius(), torch.sin),
        (Monotone(), Scaled("tanh", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0))),
        (BlockNorm(), LayerNorm(size=3)),
        (BlockNorm(), "gelu"),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_a_guarantee_that_holds_is_kept(constraint, activation):
    """The iterations from far starts come together, however large the free weights are."""
    model = ImplicitModel(3, 6, 2, activation=activation, constraint=constraint).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(30 if not isinstance(constraint, Monotone) else 3)
    model.solver = type(model.solver)(rtol=1e-10, atol=1e-12, max_steps=2000)
    u = normal(20, 3, dtype=F64) * 3
    with torch.no_grad():
        first, second = (model.state(u, s * normal(20, 6, dtype=F64, seed=s)) for s in (1, 2))
    assert model.forward_solution.converged.all()
    assert torch.allclose(first, second, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("kappa must be positive", lambda: SpectralNorm(kappa=0)),
        ("kappa must be positive", lambda: PerronFrobenius(kappa=-1)),
        ("method must be", lambda: PerronFrobenius(method="clip")),
        ("kappa must be positive", lambda: BlockNorm(kappa=math.nan)),
        ("margin m must be positive", lambda: Monotone(m=0)),
        ("square matrices", lambda: constraints.monotone(nn.Linear(3, 4), "weight")),
        ("square matrices", lambda: constraints.perron_frobenius(nn.Linear(3, 4), "weight")),
        ("does not fit", lambda: constraints.block_norm(nn.Linear(3, 4), "weight", MaxPool(size=2))),
        (r"BlockNorm\(activation=", lambda: BlockNorm().apply(nn.Linear(3, 3), "weight")),
        ("no activation is called", lambda: BlockNorm(activation="rely")),
        ("no constraint is called 'InfNrom'; did you mean 'infnorm'", lambda: constraints.parse("InfNrom()")),
        ("is an activation", lambda: constraints.parse("MaxPool(size=2)")),
    ],
)
def test_misuse_is_named(text, call):
    with pytest.raises((ValueError, TypeError), match=text):
        call()
