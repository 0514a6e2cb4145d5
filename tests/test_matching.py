"""State matching: rows against linear programs, closed forms and KKT conditions; models against their teachers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import normal
from scipy.optimize import linprog
from torch import nn
from torch.nn.functional import cross_entropy

from implicitnets import data
from implicitnets.activations import MaxPool
from implicitnets.models import ImplicitModel, from_sequential, rescale
from implicitnets.prox import L1, L2, L12, LInf, ReverseHuber
from implicitnets.solution import ConvergenceWarning, Status
from implicitnets.solvers import Anderson
from implicitnets.training import Backprop, match_rows, match_states

F64 = torch.float64
BOUNDED, KAPPA = 4, 0.6


def rows(n, size=9, count=5):
    """Columns, and targets that weights with bounded first entries reach."""
    weights = normal(count, size, dtype=F64)
    weights[:, :BOUNDED] *= 0.95 * KAPPA / weights[:, :BOUNDED].abs().sum(1, keepdim=True)
    columns = normal(n, size, dtype=F64) * torch.linspace(0.3, 2, size, dtype=F64)
    return columns, columns @ weights.T


def value(penalty, w):
    return penalty.penalty(w).item()


def program(columns, z, kind, bounded):
    """The least R(w) with Φw = z and Σ|a| ≤ κ, as a linear program in w = p − q, and t for the largest entry."""
    n, size = columns.shape
    phi = columns.numpy()
    ball = np.array([float(i < bounded) for i in range(size)])
    cost = np.r_[np.ones(2 * size), 0.0] if kind is L1 else np.r_[np.zeros(2 * size), 1.0]
    above = [np.r_[ball, ball, 0.0]]
    if kind is LInf:
        above += [np.r_[np.eye(size)[i], np.eye(size)[i], -1.0] for i in range(size)]
    bounds = [KAPPA if bounded else 1e9] + [0.0] * (len(above) - 1)
    found = linprog(cost, np.array(above), bounds, np.c_[phi, -phi, np.zeros(n)], z.numpy(), (0, None))
    assert found.success
    return found.fun


@pytest.mark.parametrize("kind", [L1, LInf])
@pytest.mark.parametrize("bounded", [0, BOUNDED])
def test_exact_rows_are_linear_programs(kind, bounded):
    columns, targets = rows(5)
    penalty = kind(2.0)
    fit = match_rows(columns, targets, penalty=penalty, ball=(bounded, KAPPA), exact=True, rtol=1e-9)
    assert fit.converged.all()
    assert fit.misfit.max() < 1e-7
    best = [program(columns, z, kind, bounded) for z in targets.T]
    torch.testing.assert_close(
        penalty.weight * torch.tensor(best, dtype=F64), torch.stack([penalty.penalty(w) for w in fit.weights])
    )
    if bounded:  # and the bound is felt
        assert max(best) > max(program(columns, z, kind, 0) for z in targets.T) + 1e-3
        assert fit.weights[:, :BOUNDED].abs().sum(1).max() <= KAPPA * (1 + 1e-12)


@pytest.mark.parametrize("n", [5, 40])
def test_rows_of_squared_weights_are_ridge_regressions(n):
    columns, targets = rows(n)
    targets = targets + normal(n, 5, dtype=F64)
    fit = match_rows(columns, targets, penalty=L2(0.03), rtol=1e-11)
    ridge = torch.linalg.solve(columns.T @ columns / n + 0.03 * torch.eye(9, dtype=F64), columns.T @ targets / n).T
    torch.testing.assert_close(fit.weights, ridge, rtol=0, atol=1e-8)
    torch.testing.assert_close(fit.misfit, (columns @ ridge.T - targets).square().mean(0).sqrt())


@pytest.mark.parametrize("n", [5, 40])
def test_exact_rows_of_squared_weights_are_the_shortest_least_squares_solutions(n):
    columns, targets = rows(n)
    targets = targets + (normal(n, 5, dtype=F64) if n > 9 else 0)
    fit = match_rows(columns, targets, penalty=L2(), exact=True, rtol=1e-11)
    torch.testing.assert_close(fit.weights, (torch.linalg.pinv(columns) @ targets).T, rtol=0, atol=1e-8)


@pytest.mark.parametrize("n", [6, 40])
def test_sparse_rows_satisfy_the_conditions_of_karush_kuhn_and_tucker(n):
    columns, targets = rows(n)
    columns, weight = torch.cat((columns, torch.ones(n, 1, dtype=F64)), 1), 0.05
    targets = 2 * targets + 0.5 * normal(n, 5, dtype=F64) + 3
    fit = match_rows(
        columns, targets, penalty=L1(weight), ball=(BOUNDED, KAPPA), unpenalized=1, rtol=1e-11, max_steps=20_000
    )
    w = fit.weights
    slope = (w @ columns.T - targets.T) @ columns / n
    a, b = slope[:, :BOUNDED], slope[:, BOUNDED:-1]
    assert slope[:, -1].abs().max() < 1e-8  # the bias is free
    assert (w[:, :-1] == 0).any()
    torch.testing.assert_close(b[w[:, BOUNDED:-1] != 0].abs(), torch.full_like(b[w[:, BOUNDED:-1] != 0], weight))
    assert (b.abs() <= weight + 1e-8).all()
    assert (b * w[:, BOUNDED:-1] <= 0).all()
    price = (a.abs().amax(1) - weight).clamp_min(0)  # of the bound
    full = w[:, :BOUNDED].abs().sum(1)
    assert (price * (KAPPA - full) < 1e-8).all()
    assert (full <= KAPPA * (1 + 1e-12)).all()
    assert (price > 0.01).any()
    expected = (weight + price)[:, None].expand_as(a)
    nonzero = w[:, :BOUNDED].abs() > 1e-9
    torch.testing.assert_close(a.abs()[nonzero], expected[nonzero], rtol=0, atol=1e-7)
    assert (a.abs() <= expected + 1e-8).all()


@pytest.mark.parametrize("penalty", [L1(0.1), L2(0.1), LInf(0.1), ReverseHuber(0.1, 0.3)], ids=repr)
def test_no_feasible_point_nearby_is_better(penalty):
    columns, targets = rows(20)
    targets = targets + normal(20, 5, dtype=F64)
    fit = match_rows(columns, targets, penalty=penalty, ball=(BOUNDED, KAPPA), rtol=1e-10, max_steps=20_000)
    for w, z in zip(fit.weights, targets.T, strict=True):

        def energy(w, z=z):
            return value(penalty, w) + (columns @ w - z).square().mean().item() / 2

        for size in (1e-3, 1e-2, 0.1):
            for other in w + size * normal(60, 9, dtype=F64):
                a = other[:BOUNDED]
                other[:BOUNDED] = a * min(1.0, KAPPA / a.abs().sum().item())
                assert energy(other) >= energy(w) - 1e-9


def test_rows_are_problems_of_their_own():
    columns, targets = rows(20)
    targets = targets * torch.tensor([1e-3, 1.0, 30.0, 0.0, 1.0], dtype=F64)
    options = {"penalty": L1(1e-2), "ball": (BOUNDED, KAPPA)}
    together = match_rows(columns, targets, **options)
    for i in range(5):
        alone = match_rows(columns, targets[:, i : i + 1], **options)
        torch.testing.assert_close(together.weights[i : i + 1], alone.weights, rtol=0, atol=1e-12)
        assert together.steps[i] == alone.steps[0]
    assert (together.weights[3] == 0).all()
    assert together.converged.all()


@pytest.mark.parametrize("unit", [1e-6, 1e5])
def test_units_do_not_matter(unit):
    columns, targets = rows(20)
    here = match_rows(columns, targets, penalty=L1(0.1))
    there = match_rows(columns, unit * targets, penalty=L1(0.1 * unit))
    torch.testing.assert_close(unit * here.weights, there.weights, rtol=1e-6, atol=1e-9 * unit)
    other = match_rows(unit * columns, targets, penalty=L1(0.1 * unit))
    torch.testing.assert_close(here.weights, unit * other.weights, rtol=1e-6, atol=1e-9)


def test_rows_that_do_not_converge_are_told_and_keep_the_bound():
    columns, targets = rows(5)
    targets[:, 2] *= 100  # out of reach for the bound
    columns[:, BOUNDED:] *= 1e-3
    columns[:, BOUNDED + 2 :] = 0
    with pytest.warns(ConvergenceWarning, match=r"of 5 rows of the weights did not converge in 300 steps") as told:
        fit = match_rows(columns, targets, ball=(BOUNDED, KAPPA), exact=True, max_steps=300)
    assert told[0].filename == __file__
    assert not fit.converged[2]
    assert fit.status[2] == Status.MAX_STEPS
    assert fit.steps[2] == 300
    assert fit.residual[2] > 1e-6
    assert fit.weights[:, :BOUNDED].abs().sum(1).max() <= KAPPA * (1 + 1e-12)


def test_bad_arguments_of_rows_are_named():
    columns, targets = rows(5)
    with pytest.raises(TypeError, match=r"penalty=L12.*L1\(weight\), L2\(weight\) or LInf\(weight\)"):
        match_rows(columns, targets, penalty=L12(0.1))
    with pytest.raises(ValueError, match=r"columns \(5, 9\) and targets \(4, 5\)"):
        match_rows(columns, targets[:4])
    with pytest.raises(ValueError, match=r"ball=\(3, 0\): the second number"):
        match_rows(columns, targets, ball=(3, 0))


def implicit(**options) -> ImplicitModel:
    torch.manual_seed(0)
    return ImplicitModel(4, 6, 3, solver=Anderson(rtol=1e-13, atol=1e-15, max_steps=200), **options).double()


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"activation": "tanh"}, {"activation": MaxPool(size=2)}], ids=str
)
def test_with_exact_equations_the_model_is_its_teacher(options):
    teacher, inputs = implicit(**options), normal(40, 4, dtype=F64)
    model, record = match_states(teacher, inputs, penalty=L2(), exact=True, rtol=1e-10, solver=teacher.solver)
    torch.testing.assert_close(model(inputs), teacher(inputs), rtol=0, atol=1e-7)
    fresh = normal(7, 4, dtype=F64)
    torch.testing.assert_close(model(fresh), teacher(fresh), rtol=0, atol=1e-7)
    assert record.hidden.converged.all()
    assert record.outputs.converged.all()
    assert model.bias == teacher.bias
    assert model.A.dtype == F64


@pytest.mark.parametrize("penalty", [L1(1e-2), L2(1e-2), LInf(1e-2)], ids=repr)
def test_the_states_are_as_near_as_the_misfit_says(penalty):
    teacher, inputs, kappa = implicit(activation="tanh"), normal(40, 4, dtype=F64), 0.3
    model, record = match_states(teacher, inputs, kappa=kappa, penalty=penalty, solver=teacher.solver)
    x, near = teacher.state(inputs), model.state(inputs)
    z = x @ teacher.A.T + inputs @ teacher.B.T + teacher.b
    gap = (x @ model.A.T + inputs @ model.B.T + model.b - z).abs()
    assert ((x - near).abs().amax(1) <= gap.amax(1) / (1 - kappa) + 1e-9).all()
    torch.testing.assert_close(record.hidden.misfit, gap.square().mean(0).sqrt().detach())
    assert model.A.abs().sum(1).max() <= kappa * (1 + 1e-9)
    assert gap.max() > 1e-3


def test_a_bound_that_is_too_small_for_exact_equations_is_told():
    with pytest.warns(ConvergenceWarning, match=r"of 6 rows of \[A B b\] did not converge") as told:
        _, record = match_states(implicit(), normal(40, 4, dtype=F64), kappa=0.2, exact=True, max_steps=200)
    assert told[0].filename == __file__
    assert record.outputs.converged.all()


def accuracy(model):
    test = data.digits().test
    with torch.no_grad():
        return (model(test.inputs).argmax(1) == test.labels).double().mean().item()


@pytest.fixture(scope="module")
def digits():
    """A trained network, as an implicit model."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))
    trainer, shuffle = Backprop().trainer(network, cross_entropy, lr=1e-2), torch.Generator().manual_seed(0)
    for _ in range(15):
        for batch in data.digits().train.batches(100, generator=shuffle):
            trainer.step(*batch)
    return from_sequential(network, 64)


def test_a_network_on_digits_becomes_a_well_posed_model_of_its_accuracy(digits):
    assert digits.A.to_dense().abs().sum(1).max() > 5
    model, record = match_states(digits, data.digits().train.inputs, kappa=0.95, penalty=L1(1e-4))
    assert record.hidden.converged.all()
    assert model.A.abs().sum(1).max() <= 0.95 + 1e-6
    assert accuracy(digits) > 0.94
    assert accuracy(model) > accuracy(digits) - 0.02


def test_more_weight_makes_it_sparser(digits):
    units = rescale(digits, 0.9)
    shares = []
    for weight in (1e-4, 1e-3):
        model, _ = match_states(units, data.digits().train.inputs, penalty=L1(weight))
        weights = torch.cat([w.flatten() for w in (model.A, model.B, model.C, model.D)])
        shares.append((weights != 0).double().mean().item())
        assert accuracy(model) > accuracy(digits) - 0.05
    assert shares[1] < shares[0] < 0.6


def test_bad_arguments_are_named():
    inputs = normal(5, 4, dtype=F64)
    with pytest.raises(TypeError, match=r"teacher must be an ImplicitModel, not Linear: use models.from_sequential"):
        match_states(nn.Linear(4, 3), inputs)
    with pytest.raises(ValueError, match="kappa must be positive"):
        match_states(implicit(), inputs, kappa=0.0)
    with pytest.raises(ValueError, match="smaller kappa"):
        match_states(implicit(), inputs, kappa=1.0)
    with pytest.raises(ValueError, match="u has shape"):
        match_states(implicit(), inputs[:, :3])
