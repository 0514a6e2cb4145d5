"""The models with one equilibrium by monotonicity or contraction: their papers' guarantees, at whatever weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import normal
from torch import Tensor

import implicitnets as inn
from implicitnets import ConvergenceWarning
from implicitnets.models import (
    IntervalMonotoneDEQ,
    LipschitzDEQ,
    MonotoneConvDEQ,
    MonotoneDEQ,
    MonotoneMultiTierDEQ,
    NonEuclideanDEQ,
)
from implicitnets.models.periodic import PeriodicLinear, convolve, transpose
from implicitnets.solvers import Dense, Newton, PeacemanRachford, Picard

F64 = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14, "max_steps": 20000}
HOW: dict[str, Any] = {
    "solver": PeacemanRachford(**TIGHT),
    "backward": inn.Implicit(solver=PeacemanRachford(**TIGHT)),
}
SCALES = pytest.mark.parametrize("scale", [1, 30])


def randomized(model: Any, scale: float = 1.0, seed: int = 0) -> Any:
    """All parameters far from where they start."""
    torch.manual_seed(seed)
    for p in model.double().parameters():
        p.data.copy_(torch.randn_like(p) * scale)
    return model


def smallest(matrix: Tensor) -> float:
    """The least eigenvalue of the symmetric part."""
    return float(torch.linalg.eigvalsh((matrix + matrix.mT) / 2).min())


def steepest(model: Any, inputs: int, *, train: bool = False, steps: int = 150) -> Tensor:
    """The ratios ‖y(u) − y(v)‖₂ / ‖u − v‖₂ on the way of an ascent over pairs (u, v), and over the weights too."""
    u = normal(10, inputs, dtype=F64).requires_grad_()
    v = (u.detach() + 0.1 * normal(10, inputs, dtype=F64, seed=2)).requires_grad_()
    optimizer = torch.optim.Adam([u, v, *(model.parameters() if train else ())], lr=0.05, maximize=True)
    seen = []
    for _ in range(steps):
        y, w = model(torch.cat((u, v))).chunk(2)
        ratio = (y - w).norm(dim=1) / (u - v).norm(dim=1)
        seen.append(ratio.detach())
        optimizer.zero_grad()
        ratio.sum().backward()
        optimizer.step()
    return torch.stack(seen)


# MonotoneDEQ


@SCALES
@pytest.mark.parametrize("m", [0.01, 1.0, 5.0])
def test_its_weights_are_monotone_whatever_the_parameters(m, scale):
    w = randomized(MonotoneDEQ(3, 9, m=m), scale).W.detach()
    identity = torch.eye(9, dtype=F64)
    size = float(torch.linalg.matrix_norm(w, 2))
    assert smallest(identity - w) >= m - 1e-12 * size
    assert scale == 1 or size > 100


def test_every_monotone_w_is_reached():
    """Proposition 1: A from a Cholesky factor of sym(I − W) − mI, B from the skew part."""
    m, root, skew = 0.3, normal(5, 5, dtype=F64), normal(5, 5, dtype=F64, seed=2)
    w = (1 - m) * torch.eye(5, dtype=F64) - root @ root.T + skew - skew.T
    model = MonotoneDEQ(2, 5, m=m).double()
    free = (1 - m) * torch.eye(5, dtype=F64) - (w + w.T) / 2
    model.A.data = torch.linalg.cholesky(free).T
    model.B.data = (w - w.T) / 4
    torch.testing.assert_close(model.W, w)


def test_its_lipschitz_constant_is_at_most_that_of_u_over_m():
    model = randomized(MonotoneDEQ(3, 6, m=0.7, **HOW), 0.3)
    bound = torch.linalg.matrix_norm(model.U.detach(), 2) / 0.7
    found = steepest(model, 3).max()
    assert 0.5 * bound < found <= bound


def test_a_linear_case_is_solved_in_closed_form():
    """Where no unit is cut off, relu is the identity: z = (I − W)⁻¹ (Uu + b)."""
    model = randomized(MonotoneDEQ(3, 5, **HOW), 0.3)
    u = normal(4, 3, dtype=F64)
    model.U.data.mul_(0.01)
    model.b.data = (torch.eye(5, dtype=F64) - model.W.detach()) @ torch.full((5,), 3.0, dtype=F64)
    wanted = torch.linalg.solve(torch.eye(5, dtype=F64) - model.W, (u @ model.U.T + model.b).T).T
    assert (wanted > 0).all()
    torch.testing.assert_close(model(u), wanted)


def test_semismooth_newton_agrees_at_weights_far_from_a_contraction():
    model, u = randomized(MonotoneDEQ(4, 20, **HOW), 1.0), normal(6, 4, dtype=F64)
    assert torch.linalg.matrix_norm(model.W, 2) > 20
    wanted = model(u)
    model.solver = Newton(linear=Dense(), rtol=1e-11, max_steps=100)
    torch.testing.assert_close(model(u), wanted)


# IntervalMonotoneDEQ


@SCALES
def test_absolute_values_of_interval_weights_are_monotone_too(scale):
    w = randomized(IntervalMonotoneDEQ(3, 8, m=0.2), scale).W.detach()
    assert smallest(0.8 * torch.eye(8, dtype=F64) - w.abs()) >= -1e-12
    assert float(torch.linalg.eigvalsh((w.abs() + w.abs().T) / 2).max()) > 0.3  # and not because they are tiny


def test_a_unit_without_weights_does_no_harm():
    model = randomized(IntervalMonotoneDEQ(3, 4, **HOW))
    model.M.data[1], model.M.data[:, 1] = 0, 0
    model(normal(2, 3, dtype=F64)).sum().backward()
    assert model.M.grad.isfinite().all()


def test_interval_bounds_have_one_equilibrium_and_hold():
    model, u, radius = randomized(IntervalMonotoneDEQ(3, 6, m=0.3, **HOW)), normal(1, 3, dtype=F64), 0.2
    w, b = model.W.detach(), (u @ model.U.T + model.b).detach()
    spread = radius * model.U.detach().abs().sum(1)

    def bounds(z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        middle, half = (z[0] + z[1]) / 2 @ w.T + b, (z[1] - z[0]) / 2 @ w.abs().T + spread
        return torch.relu(middle - half), torch.relu(middle + half)

    ends = []
    for seed in range(20):
        z0 = tuple(3 * normal(1, 6, dtype=F64, seed=10 * seed + i) for i in (1, 2))
        found = Picard(damping=0.8, **TIGHT).run(bounds, z0)
        assert found.converged
        ends.append(torch.cat(found.value))
        torch.testing.assert_close(ends[-1], ends[0])
    box = u + radius * (2 * torch.rand(200, 3, dtype=F64) - 1)
    z = model(box).detach()
    assert (z >= ends[0][0] - 1e-10).all()
    assert (z <= ends[0][1] + 1e-10).all()


# LipschitzDEQ


@SCALES
@pytest.mark.parametrize("gamma", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("outputs", [None, 2])
def test_the_lmi_of_the_lipschitz_bound_holds_whatever_the_parameters(outputs, gamma, scale):
    """[[2Λ − ΛW − WᵀΛ − CᵀC/γ, −ΛU], [−UᵀΛ, γI]] ≥ 0."""
    model = randomized(LipschitzDEQ(3, 7, outputs, lipschitz=gamma), scale)
    model.d.data /= scale  # exp(30) is no weight
    weights, w, u = torch.diag(model.d.detach().exp()), model.W.detach(), model.U.detach()
    c = torch.eye(7, dtype=F64) if outputs is None else model.C.detach()
    corner = 2 * weights - weights @ w - w.T @ weights - c.T @ c / gamma
    lmi = torch.cat(
        (
            torch.cat((corner, -weights @ u), 1),
            torch.cat((-u.T @ weights, gamma * torch.eye(3, dtype=F64)), 1),
        )
    )
    assert smallest(lmi) >= -1e-12 * float(torch.linalg.matrix_norm(lmi, 2))


@pytest.mark.parametrize("outputs", [None, 2])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_no_attack_exceeds_the_lipschitz_bound(activation, outputs):
    """Trained for steepness, the network comes close to its bound, and never past it."""
    gamma = 2.0
    torch.manual_seed(0)
    model = LipschitzDEQ(3, 6, outputs, lipschitz=gamma, m=0.01, activation=activation, **HOW).double()
    ratios = steepest(model, 3, train=True)
    assert ratios.max() <= gamma * (1 + 1e-9)
    assert ratios[-1].max() > 0.95 * gamma
    assert steepest(model, 3, steps=50).max() <= gamma * (1 + 1e-9)


def test_without_the_bound_more_weights_than_the_monotone_ones_are_well_posed():
    model = randomized(LipschitzDEQ(3, 6, lipschitz=None, **HOW))
    assert smallest(torch.eye(6, dtype=F64) - model.W.detach()) < 0
    u = normal(2, 3, dtype=F64)
    wanted = model(u)
    for seed in range(5):
        torch.testing.assert_close(model(u, z0=5 * normal(2, 6, dtype=F64, seed=seed)), wanted)


# NonEuclideanDEQ


@SCALES
@pytest.mark.parametrize("mu", [-2.0, 0.0, 0.9])
def test_its_logarithmic_norm_is_bounded_whatever_the_parameters(mu, scale):
    model = randomized(NonEuclideanDEQ(3, 8, mu=mu), scale)
    model.d.data /= scale
    w, eta = model.W.detach(), model.d.detach().neg().exp()
    rows = [w[i, i] + sum(abs(w[i, j]) * eta[j] / eta[i] for j in range(8) if j != i) for i in range(8)]
    norm = float(max(rows))
    assert norm <= mu + 1e-10 * float(w.abs().max())
    assert math.isclose(norm, model.logarithmic_norm().item(), rel_tol=1e-9, abs_tol=1e-10)


@pytest.mark.parametrize("mu", [-2.0, 0.0, 0.9])
def test_the_average_iteration_contracts_as_its_theorem_says(mu):
    """By 1 − a (1 − max(mu, 0)) in the weighted norm, a = 1 / (1 − min(Wᵢᵢ, 0))."""
    model = randomized(NonEuclideanDEQ(3, 8, mu=mu, activation="tanh"))
    w, weight = model.W.detach(), model.d.detach().exp()
    a = 1 - model.damping()
    assert math.isclose(a, 1 / (1 - min(float(w.diagonal().min()), 0)))
    x, y = normal(2, 500, 8, dtype=F64)
    after = (1 - a) * (x - y) + a * (torch.tanh(x @ w.T) - torch.tanh(y @ w.T))
    factor = 1 - a * (1 - max(mu, 0))
    assert ((after * weight).abs().amax(1) <= factor * ((x - y) * weight).abs().amax(1) * (1 + 1e-12)).all()


def test_the_average_iteration_finds_what_the_default_solver_finds():
    model, u = randomized(NonEuclideanDEQ(3, 8, mu=0.5)), normal(5, 3, dtype=F64)
    model.solver = Picard(damping=model.damping(), **TIGHT)
    wanted = model(u)
    model.solver = replace(NonEuclideanDEQ(1, 1).solver, rtol=1e-12, atol=1e-14, max_steps=2000)
    torch.testing.assert_close(model(u), wanted)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_its_lipschitz_bound_holds_and_is_at_most_that_of_the_paper(activation):
    model = randomized(NonEuclideanDEQ(3, 6, mu=0.2, activation=activation, **HOW), 0.5)
    bound = model.lipschitz()
    u, v = 0.3 * normal(2, 1000, 3, dtype=F64)
    ratio = ((model(u) - model(v)).abs().amax(1) / (u - v).abs().amax(1)).max()
    assert 0.1 * bound < ratio <= bound
    weight = model.d.exp()
    paper = (weight * model.U.abs().sum(1)).max() / (1 - 0.2) / weight.min()
    assert bound <= paper
    (grad,) = torch.autograd.grad(bound, model.T)
    assert grad.abs().sum() > 0


def test_its_lipschitz_bound_is_attained():
    """Where no unit is cut off and all weights between units are positive, by u and u + 1."""
    model = randomized(NonEuclideanDEQ(3, 6, mu=0.2, **HOW), 0.5)
    model.T.data.abs_()
    model.U.data.abs_()
    model.b.data.fill_(10)
    u = normal(1, 3, dtype=F64)
    torch.testing.assert_close((model(u + 1) - model(u)).max(), model.lipschitz())


# convolutions


def dense_matrix(linear: PeriodicLinear, like: tuple[Tensor, ...]) -> Tensor:
    """W column by column."""
    operator = linear.operator(like)
    return operator(torch.eye(sum(t[0].numel() for t in like), dtype=F64)).T.contiguous()


def periodic(tiers: int, scale: float = 1.0) -> tuple[PeriodicLinear, tuple[Tensor, ...]]:
    channels = (2, 3, 1)[:tiers]
    model = randomized(MonotoneMultiTierDEQ(1, channels, m=0.4), scale)
    linear = PeriodicLinear(A=tuple(model.A), down=tuple(model.down), B=tuple(model.B), m=0.4)
    return linear, tuple(torch.zeros(1, c, 8 // 2**i, 4 // 2**i, dtype=F64) for i, c in enumerate(channels))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_transpose(stride):
    z, kernel = normal(2, 3, 6, 4, dtype=F64), normal(5, 3, 3, 3, dtype=F64, seed=2)
    y = normal(2, 5, 6 // stride, 4 // stride, dtype=F64, seed=3)
    torch.testing.assert_close((convolve(z, kernel, stride) * y).sum(), (z * transpose(y, kernel, stride)).sum())


@pytest.mark.parametrize("tiers", [1, 2, 3])
def test_periodic_weights_are_monotone_and_tridiagonal_over_tiers(tiers):
    linear, like = periodic(tiers)
    w = dense_matrix(linear, like)
    assert smallest(torch.eye(len(w), dtype=F64) - w) >= 0.4 - 1e-10
    assert float(torch.linalg.matrix_norm(w, 2)) > 2
    torch.testing.assert_close(dense_matrix(linear.T, like), w.T)
    if tiers == 3:
        first, last = like[0].numel(), like[2].numel()
        assert w[:first, -last:].abs().max() == 0
        assert w[:first, first:-last].abs().max() > 0.1


@pytest.mark.parametrize("tiers", [1, 2, 3])
@pytest.mark.parametrize("step", [0.1, 2.0])
def test_their_resolvent_is_exact(tiers, step):
    linear, like = periodic(tiers)
    w, operator = dense_matrix(linear, like), linear.operator(like)
    v = normal(3, len(w), dtype=F64)
    for matrix, op in ((w, operator), (w.T, operator.T)):
        wanted = torch.linalg.solve((1 + step) * torch.eye(len(w), dtype=F64) - step * matrix, v.T).T
        torch.testing.assert_close(op.resolvent(v, step), wanted)
        torch.testing.assert_close(op(v), v @ matrix.T)


@pytest.mark.parametrize("tiers", [1, 3])
def test_their_steps_are_what_they_say(tiers):
    linear, like = periodic(tiers)
    w, operator = dense_matrix(linear, like), linear.operator(like)
    f = torch.eye(len(w), dtype=F64) - w
    assert math.isclose(operator.reflected_step, 1.2 * len(f) ** 0.5 / float(f.norm()), rel_tol=1e-9)
    size = (0.4 / operator.forward_step) ** 0.5
    assert float(torch.linalg.matrix_norm(f, 2)) <= size <= 4 * float(torch.linalg.matrix_norm(f, 2))
    assert operator.T.forward_step == operator.forward_step


def test_a_convolution_on_one_place_is_the_dense_model():
    """Kernels of size 1 on images of one pixel."""
    torch.manual_seed(0)
    conv = MonotoneConvDEQ(3, 5, kernel_size=1, **HOW).double()
    model = MonotoneDEQ(3, 5, **HOW).double()
    for name in ("A", "B"):
        getattr(model, name).data = getattr(conv, name)[0].data[:, :, 0, 0]
    model.U.data = conv.U.data[:, :, 0, 0]
    u = normal(4, 3, dtype=F64)
    torch.testing.assert_close(conv(u[:, :, None, None])[:, :, 0, 0], model(u))


def test_images_move_and_the_equilibrium_moves_along():
    model, x = randomized(MonotoneMultiTierDEQ(1, (2, 3), **HOW), 0.5), normal(2, 1, 4, 6, dtype=F64)
    here, there = model(x), model(x.roll((2, 4), (2, 3)))
    for i, (a, b) in enumerate(zip(here, there, strict=True)):
        torch.testing.assert_close(a.roll((2 // 2**i, 4 // 2**i), (2, 3)), b)


# misuse


@pytest.mark.parametrize(
    ("text", "make"),
    [
        (r"MonotoneDEQ\(states=0\): states must be at least 1", lambda: MonotoneDEQ(3, 0)),
        (r"MonotoneDEQ\(m=0\): m must be positive", lambda: MonotoneDEQ(3, 4, m=0)),
        (r"activation='gelu'.*slopes in \[0, 1\]", lambda: MonotoneDEQ(3, 4, activation="gelu")),
        (r"IntervalMonotoneDEQ\(m=1.0\): m must be between 0 and 1", lambda: IntervalMonotoneDEQ(3, 4, m=1.0)),
        (r"LipschitzDEQ\(lipschitz=0\): lipschitz must be positive", lambda: LipschitzDEQ(3, 4, lipschitz=0)),
        (r"LipschitzDEQ\(outputs=0\).*or None", lambda: LipschitzDEQ(3, 4, 0)),
        (r"LipschitzDEQ\(m=-1\)", lambda: LipschitzDEQ(3, 4, m=-1)),
        (r"NonEuclideanDEQ\(mu=1.0\): mu must be below 1", lambda: NonEuclideanDEQ(3, 4, mu=1.0)),
        (r"MonotoneConvDEQ\(kernel_size=2\).*odd", lambda: MonotoneConvDEQ(1, 2, kernel_size=2)),
        (r"MonotoneConvDEQ\(in_channels=0", lambda: MonotoneConvDEQ(0, 2)),
        (r"MonotoneMultiTierDEQ\(.*channels=\[\]\)", lambda: MonotoneMultiTierDEQ(1, ())),
        (r"MonotoneMultiTierDEQ\(m=0\)", lambda: MonotoneMultiTierDEQ(1, (2, 2), m=0)),
        (r"u has shape \(5, 2, 2\).*flatten", lambda: MonotoneDEQ(4, 2)(torch.zeros(5, 2, 2))),
        (r"x has shape \(5, 2, 4, 4\), not \(batch, 1", lambda: MonotoneConvDEQ(1, 2)(torch.zeros(5, 2, 4, 4))),
        (r"\(6, 4\).*multiples of 4", lambda: MonotoneMultiTierDEQ(1, (1, 1, 1))(torch.zeros(5, 1, 6, 4))),
    ],
)
def test_bad_input_is_named_with_what_to_write_instead(text, make):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("cls", [MonotoneDEQ, LipschitzDEQ, NonEuclideanDEQ, MonotoneConvDEQ])
def test_strategies_are_checked(cls):
    with pytest.raises(TypeError, match="solver='anderson' is not a Solver"):
        cls(3, 4, solver="anderson")


def test_too_few_steps_are_not_silent():
    model = randomized(MonotoneDEQ(3, 20, solver=PeacemanRachford(max_steps=2)))
    with pytest.warns(ConvergenceWarning, match=r"PeacemanRachford.*another step_size="):
        model(normal(4, 3, dtype=F64))
