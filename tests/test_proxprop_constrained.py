"""The proximal step under ‖W‖∞ ≤ κ: the nearest point in the metric, and a direction of descent."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize
from test_proxprop import Cell, data, double, grads, implicit, mlp  # noqa: F401
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from implicitnets import ConvergenceWarning
from implicitnets.constraints import InfNorm
from implicitnets.models import DEQ
from implicitnets.training import proxprop
from implicitnets.training.proximal.constrained import project
from implicitnets.training.proximal.metric import Metric

KAPPA = 0.6


def problem(seed: int, n: int = 7, free: int = 3, tau: float = 50.0) -> tuple[Tensor, Tensor, Metric]:
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(n, 4 + free, generator=generator) * torch.logspace(0, -1.5, 4 + free) + 0.5
    theta = torch.randn(5, 4 + free, generator=generator)
    return theta, torch.eye(4 + free) + tau * s.T @ s / n, Metric(tau, rows=s)


@pytest.mark.parametrize("n", [2, 7, 40])
@pytest.mark.parametrize("free", [0, 3])
@pytest.mark.parametrize("averaged", [False, True])
def test_it_is_the_nearest_point_in_the_metric(n, free, averaged):
    """Against a quadratic program in the positive and negative parts of a row, for each row."""
    theta, m, metric = problem(n, n=n, free=free)
    theta[1] *= 0.1  # within
    if averaged:
        metric = Metric(metric.tau, sigma=metric.sigma)
    columns = slice(0, 4) if n != 7 else slice(free, 4 + free)
    found = project(theta, metric, columns, KAPPA, rtol=1e-10, max_steps=20_000)
    assert found.converged.all()
    assert found.steps[1] == 0
    assert torch.equal(found.value[1], theta[1])
    split = torch.zeros(4 + free, 8 + free)
    inside = list(range(4 + free))[columns]
    outside = [i for i in range(4 + free) if i not in inside]
    for k, i in enumerate(inside):
        split[i, k], split[i, 4 + k] = 1, -1
    for k, i in enumerate(outside):
        split[i, 8 + k] = 1
    bounds = [(0, None)] * 8 + [(None, None)] * free
    for row, value in zip(theta, found.value, strict=True):

        def objective(p, row=row):
            d = split @ torch.tensor(p) - row
            return float(d @ m @ d / 2), (split.T @ (m @ d)).numpy()

        budget = {"type": "ineq", "fun": lambda p: KAPPA - p[:8].sum(), "jac": lambda p: [-1.0] * 8 + [0.0] * free}
        best = minimize(
            objective, torch.zeros(8 + free), jac=True, bounds=bounds, constraints=[budget], method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        ours = float((value - row) @ m @ (value - row) / 2)
        assert ours == pytest.approx(best.fun, rel=1e-6, abs=1e-9)
        torch.testing.assert_close(value, split @ torch.tensor(best.x), rtol=1e-3, atol=1e-4)


def test_what_is_feasible_stays_and_what_is_not_becomes_feasible():
    theta, _, metric = problem(0)
    for kappa in (0.05, 1.0, 100.0):
        found = project(theta, metric, slice(0, 4), kappa)
        assert found.value[:, :4].abs().sum(1).max() <= kappa * (1 + 1e-12)
    assert torch.equal(found.value, theta)


def test_without_a_metric_it_is_the_euclidean_projection():
    theta, _, _ = problem(0)
    expected = torch.cat([InfNorm(kappa=KAPPA)(theta[:, :4]), theta[:, 4:]], 1)
    assert torch.equal(project(theta, None, slice(0, 4), KAPPA).value, expected)
    near = project(theta, Metric(1e-13, rows=torch.randn(5, 7)), slice(0, 4), KAPPA, rtol=1e-10)
    torch.testing.assert_close(near.value, expected, rtol=1e-7, atol=1e-8)


def test_the_euclidean_projection_can_ascend_and_that_in_the_metric_does_not():
    """From a feasible point, a proximal step and back into the ball: ⟨G, d⟩ ≤ −‖d‖²_M / lr in the metric."""
    ascents, generator = 0, torch.Generator().manual_seed(1)
    for _ in range(60):
        s = torch.randn(6, 6, generator=generator) @ torch.diag(torch.logspace(0, -2, 6)) + 0.3
        theta = InfNorm(kappa=KAPPA)(torch.randn(1, 6, generator=generator))
        g, metric, lr = torch.randn(1, 6, generator=generator) @ s, Metric(1e3, rows=s), 1.0
        point = theta - lr * metric.solve(g)
        near = project(point, None, slice(0, 6), KAPPA).value - theta
        ours = project(point, metric, slice(0, 6), KAPPA, rtol=1e-9, max_steps=20_000).value - theta
        ascents += float((g * near).sum()) > 1e-6 * float(g.norm() * near.norm())
        assert float((g * ours).sum()) <= -float((metric.multiply(ours) * ours).sum()) / lr + 1e-7 * float(g.norm())
    assert ascents > 5


def test_in_a_model_the_loss_falls_and_the_model_stays_well_posed():
    model, (x, y) = implicit(), data(30)
    with torch.no_grad():
        model.A.copy_(InfNorm(kappa=KAPPA)(3 * torch.randn(6, 6)))
    handle = proxprop(model, tau=100.0)
    lr, losses, steps = 5.0, [], []
    optimizer = torch.optim.SGD([model.A, model.B, model.b], lr=lr)
    for _ in range(15):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        losses.append(loss.item())
        handle.remove()
        before = [p.detach().clone() for p in (model.A, model.B, model.b)]
        v = [p.grad.clone() for p in (model.A, model.B, model.b)]
        g = grads(model, x, y)
        handle.attach()
        for p, value in zip((model.A, model.B, model.b), v, strict=True):
            p.grad = value
        optimizer.step()
        record = handle.project("A", KAPPA, rtol=1e-8, max_steps=5000)
        steps.append(int(record.steps.max()))
        assert record.converged.all()
        assert model.A.abs().sum(1).max() <= KAPPA * (1 + 1e-9)
        moved = [(p.detach() - q) for p, q in zip((model.A, model.B, model.b), before, strict=True)]
        slope = sum(float((g[k] * d).sum()) for k, d in zip(("A", "B", "b"), moved, strict=True))
        assert slope < 0
    assert max(steps) > 0
    assert losses[-1] < losses[0]


def test_a_second_projection_starts_from_the_first():
    model, (x, y) = implicit(), data(30)
    handle = proxprop(model, tau=100.0)
    grads(model, x, y)
    target, records = torch.randn(6, 6), []
    for offset in (0.0, 0.0, 1e-3):
        with torch.no_grad():
            model.A.copy_(target + offset)
        records.append(handle.project("A", KAPPA, rtol=1e-8, max_steps=5000))
    first, again, near = (int(record.steps.sum()) for record in records)
    assert again <= 6 * 2
    assert near < first
    torch.testing.assert_close(records[1].value[:, :6], records[0].value[:, :6], rtol=1e-6, atol=1e-7)


def test_the_nearest_point_is_there_by_choice():
    model, (x, y) = implicit(), data()
    handle = proxprop(model)
    grads(model, x, y)
    with torch.no_grad():
        model.A.normal_()
    expected, b = InfNorm(kappa=KAPPA)(model.A.detach()), model.B.detach().clone()
    handle.project("A", KAPPA, metric="euclidean")
    assert torch.equal(model.A, expected)
    assert torch.equal(model.B, b)


def test_the_weight_of_a_cell_is_projected_by_its_name():
    model, (x, y) = nn.Sequential(DEQ(Cell(), state_shape=(6,)), nn.Linear(6, 3)), data()
    handle = proxprop(model)
    grads(model, x, y)
    with torch.no_grad():
        model[0].cell.recur.weight.normal_()
    handle.project("0.cell.recur.weight", KAPPA)
    assert model[0].cell.recur.weight.abs().sum(1).max() <= KAPPA * (1 + 1e-6)


def test_rows_that_do_not_converge_are_told_and_feasible():
    theta, _, metric = problem(0)
    with pytest.warns(ConvergenceWarning, match="rows did not converge in 1 steps"):
        found = project(theta, metric, slice(0, 4), KAPPA, rtol=1e-12, max_steps=1)
    assert not found.converged.all()
    assert found.value[:, :4].abs().sum(1).max() <= KAPPA * (1 + 1e-12)


def test_single_precision_stays_within():
    theta, _, metric = problem(0)
    found = project(theta.float(), Metric(metric.tau, rows=metric.rows.float()), slice(0, 4), KAPPA)
    assert found.value.dtype == torch.float32
    assert found.converged.all()
    assert found.value[:, :4].abs().sum(1).max() <= KAPPA * (1 + 1e-6)


def test_bad_input_is_named():
    model, (x, y) = implicit(), data()
    handle = proxprop(model)
    with pytest.raises(ValueError, match="backward"):
        handle.project("A")
    grads(model, x, y)
    with pytest.raises(ValueError, match="'Q'"):
        handle.project("Q")
    with pytest.raises(ValueError, match="metric='max'"):
        handle.project("A", metric="max")
    with pytest.raises(ValueError, match="kappa"):
        handle.project("A", kappa=0.0)
    with pytest.raises(ValueError, match="rtol"):
        handle.project("A", rtol=0.0)
    bounded = implicit(InfNorm())
    with proxprop(bounded) as other:
        grads(bounded, x, y)
        with pytest.raises(ValueError, match="There are: B"):
            other.project("A")
