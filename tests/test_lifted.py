"""Lifted training: its energy, each block against a minimizer of its own, and what the whole guarantees."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import normal
from scipy.optimize import minimize
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils.parametrizations import weight_norm

import implicitnets as inn
from implicitnets.activations import Softmax
from implicitnets.constraints import InfNorm, Monotone, inf_norm
from implicitnets.models import DEQ, ImplicitModel
from implicitnets.models.structures import LowRank
from implicitnets.solvers import Anderson, Dense
from implicitnets.training import Backprop, Lifted, LiftedEnergy, Unsupported
from implicitnets.training.lifted.energy import accelerate, curvature
from implicitnets.training.lifted.trainer import fit_cell, fit_head

F64 = torch.float64
TIGHT = {"rtol": 1e-13, "atol": 1e-15, "max_steps": 500}
ACTIVATIONS = ["relu", "leaky_relu", "tanh", "sigmoid", "elu", "hardtanh", "identity", Softmax(size=3)]


def implicit(activation="tanh", **options) -> ImplicitModel:
    torch.manual_seed(0)
    exact = inn.Implicit(solver=Dense(**TIGHT))
    model = ImplicitModel(4, 6, 3, activation=activation, solver=Anderson(**TIGHT), backward=exact, **options).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))  # within the constraint
    return model


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5), nn.Sigmoid(), nn.Linear(5, 3)).double()


def mixed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), implicit(), nn.Linear(3, 3).double()).double()


MODELS = pytest.mark.parametrize("make", [implicit, network, mixed])


def data(samples=8):
    return normal(samples, 4, dtype=F64), torch.arange(samples) % 3


def lifted(model, multiplier=1.0, loss=cross_entropy):
    """The energy, and λ that differ from unit to unit."""
    energy = LiftedEnergy(model, loss)
    counts = [len(cell.parameters[0]) // cell.penalty.size for cell in energy.cells]
    return energy, [multiplier * torch.linspace(0.5, 1.5, count, dtype=F64) for count in counts]


def with_gradients(model, inputs, labels):
    model.zero_grad()
    cross_entropy(model(inputs), labels).backward()


@MODELS
def test_at_the_equilibrium_the_energy_is_the_loss(make):
    model, (inputs, labels) = make(), data()
    energy, multipliers = lifted(model)
    pre, outputs = energy.start(inputs)
    torch.testing.assert_close(outputs, model(inputs).detach())
    states = energy.states(pre, inputs)
    assert max(F.max() for F in energy.divergences(states)) < 1e-14
    torch.testing.assert_close(energy.value(states, labels, multipliers), cross_entropy(outputs, labels))


@MODELS
def test_the_gradient_at_the_best_states_is_the_implicit_gradient_but_for_one_over_lambda(make):
    model, (inputs, labels) = make(), data()
    with_gradients(model, inputs, labels)
    errors = []
    for size in (10.0, 100.0, 1000.0):
        energy, multipliers = lifted(model, size)
        pre = energy.descend(energy.start(inputs)[0], inputs, labels, multipliers, 800)
        states = energy.states(pre, inputs)
        found, exact = [], []
        for cell, x, m in zip(energy.cells, states[1:], multipliers, strict=True):
            found.append(cell.gradient(cell.theta(), x, cell.columns(states), m).flatten())
            exact.append(torch.cat([p.grad.reshape(len(p), -1) for p in cell.parameters], 1).flatten())
        found, exact = torch.cat(found), torch.cat(exact)
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[2] < 2e-3
    assert 7 < errors[0] / errors[1] < 13
    assert 9 < errors[1] / errors[2] < 11


@pytest.mark.parametrize("activation", ["relu", "tanh", Softmax(size=3)], ids=str)
def test_without_a_loss_the_equilibrium_is_stationary(activation):
    model, (inputs, labels) = implicit(activation), data()
    energy, multipliers = lifted(model, loss=lambda outputs, labels: 0 * outputs.sum())
    pre, _ = energy.start(inputs)
    torch.testing.assert_close(energy.descend(pre, inputs, labels, multipliers, 20), pre, rtol=0, atol=1e-11)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_the_states_are_those_of_an_independent_minimizer(activation):
    model, (inputs, labels) = implicit(activation), data(4)
    energy, multipliers = lifted(model, 0.3)
    pre = energy.descend(energy.start(inputs)[0], inputs, labels, multipliers, 2000)
    domain = {"relu": (0, None), "tanh": (-1, 1), "sigmoid": (0, 1)}[activation]

    def value(x):
        return float(energy.value([inputs, torch.tensor(x).reshape(4, 6)], labels, multipliers))

    start = energy.states(energy.start(inputs)[0], inputs)[1].numpy().ravel()
    best = minimize(value, start, method="L-BFGS-B", bounds=[domain] * 24, options={"ftol": 1e-15, "gtol": 1e-8})
    found = energy.states(pre, inputs)[1].numpy().ravel()
    assert value(found) <= best.fun + 1e-9
    assert np.abs(found - best.x).max() < 1e-3
    assert np.abs(found - start).max() > 1e-2


@MODELS
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_no_step_in_the_states_raises_the_energy(make, steps):
    model, (inputs, labels) = make(), data()
    energy, multipliers = lifted(model, 0.02)
    pre, _ = energy.start(inputs)
    values = []
    for _ in range(6):
        values.append(float(energy.value(energy.states(pre, inputs), labels, multipliers)))
        pre = energy.descend(pre, inputs, labels, multipliers, steps)
    assert all(after <= before + 1e-13 for before, after in pairwise(values))
    assert values[-1] < values[0] - 1e-3


def bent(outputs, targets):
    """A loss that is less curved where the outputs are than where they go."""
    return (1 + (20 * (outputs - targets)).square()).sqrt().mean()


def test_no_step_raises_the_energy_where_the_curvature_of_the_loss_grows():
    model, (inputs, _) = implicit(), data()
    energy, multipliers = lifted(model, 0.05, bent)
    pre, outputs = energy.start(inputs)
    targets, values = outputs + 0.3, []
    for _ in range(60):
        values.append(float(energy.value(energy.states(pre, inputs), targets, multipliers)))
        pre = energy.descend(pre, inputs, targets, multipliers, 1)
    assert all(after <= before + 1e-13 for before, after in pairwise(values))
    assert values[-1] < values[0] / 3
    columns, theta, targets = normal(9, 5, dtype=F64), torch.zeros(3, 5, dtype=F64), torch.full((9, 3), 2.0, dtype=F64)
    values = []
    for steps in range(6):
        head = fit_head(bent, columns, targets, theta, 10.0, steps)
        values.append(float(bent(columns @ head.T, targets) + head.square().sum() / 20))
    assert all(after <= before + 1e-13 for before, after in pairwise(values))
    assert values[-1] < values[0] - 0.1


def test_the_step_size_in_the_states_is_that_of_the_largest_eigenvalue():
    model, (inputs, _) = implicit(), data()
    energy, (multipliers,) = lifted(model, 0.3)
    thetas = [cell.theta() for cell in (*energy.cells, energy.head)]
    weight, bend = torch.diag(multipliers), 0.7
    A, C = model.A.detach(), model.C.detach()
    gap = torch.eye(6, dtype=F64) - A
    dense = torch.linalg.inv(weight) @ (gap.T @ weight @ gap + bend * C.T @ C)
    largest = torch.linalg.eigvals(dense).real.max().item()
    assert largest <= energy._smoothness(thetas, multipliers, inputs[:1], bend) <= 1.3 * largest


def test_momentum_starts_anew_row_by_row():
    values = torch.logspace(-4, 0, 30, dtype=F64)

    def move(x):
        return x - values * x

    start = torch.ones(2, 30, dtype=F64) * torch.tensor([[1.0], [1e3]], dtype=F64)
    both = accelerate(move, start, 3000)
    torch.testing.assert_close(both[:1], accelerate(move, start[:1], 3000), rtol=1e-12, atol=0)
    assert both[0].norm() < 1e-6  # without restarts it is 7e-3, without momentum 1.3


def test_the_states_of_a_sample_do_not_depend_on_its_batch():
    model, (inputs, labels) = implicit(), data()
    energy, multipliers = lifted(model, loss=lambda outputs, labels: (outputs - 1).square().sum(1).mean())
    whole = energy.descend(energy.start(inputs)[0], inputs, labels, multipliers, 7)
    alone = energy.descend(energy.start(inputs[2:3])[0], inputs[2:3], labels[2:3], multipliers, 7)
    torch.testing.assert_close(whole[2:3], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["mse", "cross entropy"])
def test_the_curvature_of_a_loss_is_its_largest_eigenvalue(kind):
    outputs, targets = normal(5, 3, dtype=F64), normal(5, 3, dtype=F64).softmax(1)
    loss = mse_loss if kind == "mse" else cross_entropy
    hessian = torch.autograd.functional.hessian(lambda o: loss(o, targets), outputs).reshape(15, 15)
    largest = 5 * torch.linalg.eigvalsh(hessian)[-1].item()
    assert curvature(loss, outputs, targets) == pytest.approx(largest, rel=0.05)
    assert kind != "mse" or largest == pytest.approx(2 / 3)


def test_the_head_is_a_ridge_regression_in_one_step_where_the_loss_is_quadratic():
    for n in (5, 30):
        S, Y, before, lr = normal(n, 9, dtype=F64), normal(n, 3, dtype=F64), normal(3, 9, dtype=F64), 0.7
        rows = torch.cat((S * (2 / (3 * n)) ** 0.5, torch.eye(9, dtype=F64) / lr**0.5))
        right = torch.cat((Y * (2 / (3 * n)) ** 0.5, before.T / lr**0.5))
        stacked = torch.linalg.lstsq(rows, right).solution.T
        torch.testing.assert_close(fit_head(mse_loss, S, Y, before, lr, 1), stacked)


def test_the_head_is_the_minimum_for_cross_entropy():
    S, labels, before, lr = 3 * normal(20, 5, dtype=F64), torch.arange(20) % 3, normal(3, 5, dtype=F64), 2.0
    theta = fit_head(cross_entropy, S, labels, before, lr, 300).requires_grad_()
    value = cross_entropy(S @ theta.T, labels) + (theta - before).square().sum() / (2 * lr)
    assert torch.autograd.grad(value, theta)[0].abs().max() < 1e-8
    one = fit_head(cross_entropy, S, labels, before, lr, 1)
    lower = cross_entropy(S @ one.T, labels) + (one - before).square().sum() / (2 * lr)
    assert value <= lower < cross_entropy(S @ before.T, labels)


@pytest.mark.parametrize("kappa", [None, 0.95, 0.3])
@pytest.mark.parametrize("activation", ["relu", "tanh", Softmax(size=3)], ids=str)
def test_the_hidden_weights_are_those_of_an_independent_minimizer(activation, kappa):
    model = implicit(activation, constraint=None if kappa is None else InfNorm(kappa=kappa))
    energy, (multipliers,) = lifted(model, 2.0)
    cell, lr = energy.cells[0], 1.5
    inputs, x = normal(9, 4, dtype=F64), cell.penalty.apply(2 * normal(9, 6, dtype=F64))
    S = cell.columns([inputs, x])
    before, weight = cell.project(cell.theta()), multipliers
    theta = fit_cell(cell, x, S, multipliers, lr, 600)

    def value(t):
        return (cell.penalty(x, S @ t.T) @ weight).mean() + (t - before).square().sum() / (2 * lr)

    # the same with A = P − N, P, N ≥ 0, whose rows sum to at most kappa, from zero
    def split(v):
        P, N, rest = (torch.tensor(part) for part in np.split(v, [36, 72]))
        return torch.cat(((P - N).reshape(6, 6), rest.reshape(6, 5)), 1)

    def function(v):
        leaf = split(v).requires_grad_()
        energy = value(leaf)
        (g,) = torch.autograd.grad(energy, leaf)
        own, rest = g[:, :6].reshape(-1), g[:, 6:].reshape(-1)
        return energy.item(), torch.cat((own, -own, rest)).numpy()

    sums = np.hstack([np.kron(np.eye(6), np.ones(6))] * 2 + [np.zeros((6, 30))])
    bound = np.inf if kappa is None else kappa
    inside = {"type": "ineq", "fun": lambda v: np.minimum(bound, 1e3) - sums @ v, "jac": lambda v: -sums}
    best = minimize(
        function,
        np.zeros(102),
        jac=True,
        method="SLSQP",
        bounds=[(0, None)] * 72 + [(None, None)] * 30,
        constraints=[inside],
        options={"maxiter": 500, "ftol": 1e-13},
    )
    assert value(theta).item() == pytest.approx(best.fun, abs=1e-7)
    torch.testing.assert_close(theta, split(best.x), rtol=0, atol=2e-3)
    assert kappa is None or theta[:, :6].abs().sum(1).max() <= kappa + 1e-12
    assert kappa != 0.3 or theta[:, :6].abs().sum(1).max() > 0.3 - 1e-9


@MODELS
@pytest.mark.parametrize("keep", [False, True])
def test_every_model_learns(make, keep):
    model, (inputs, labels) = make(), data(12)
    trainer = Lifted(keep_states=keep).trainer(model, cross_entropy, lr=1.0)
    losses = [trainer.step(inputs, labels)[0].item() for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_every_activation_learns(activation):
    model, (inputs, labels) = implicit(activation, bias=activation != "relu"), data(12)
    trainer = Lifted().trainer(model, cross_entropy, lr=1.0)
    losses = [trainer.step(inputs, labels)[0].item() for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]


@MODELS
def test_on_the_whole_batch_no_step_raises_the_energy(make):
    model, (inputs, labels) = make(), data(12)
    rule = Lifted(growth=0, keep_states=True)
    trainer, (energy, _) = rule.trainer(model, cross_entropy, lr=2.0), lifted(model)
    multipliers = [trainer.state_dict()[f"multipliers.{i}"] for i in range(len(energy.cells))]
    values = []
    for _ in range(40):
        trainer.step(inputs, labels)
        states = energy.states(trainer.state_dict()["states"], inputs)
        values.append(energy.value(states, labels, multipliers).item())
    assert all(after <= before + 1e-12 for before, after in pairwise(values))
    assert values[-1] < 0.5 * values[0]


def gap(growth):
    """How far the states are from those of the layers, at worst, after training on one batch."""
    model, (inputs, labels) = implicit("relu"), data(12)
    trainer = Lifted(penalty=0.003, growth=growth, keep_states=True).trainer(model, cross_entropy, lr=1.0)
    for _ in range(40):
        trainer.step(inputs, labels)
    energy, _ = lifted(model)
    states = energy.states(trainer.state_dict()["states"], inputs)
    (F,) = energy.divergences(states)
    return (F.mean(0).max() / (states[1].square() / 2).mean()).item(), trainer.state_dict()["multipliers.0"]


def test_the_multipliers_drive_the_states_to_feasibility():
    without, _ = gap(0)
    reached, multipliers = gap(1.0)
    assert without > 0.1
    assert reached < 0.011  # rtol is 0.01
    assert (multipliers >= 0.003).all()
    assert multipliers.max() > 0.01


def test_a_unit_that_is_feasible_keeps_its_multiplier():
    model, (inputs, labels) = implicit("relu"), data()
    with torch.no_grad():
        model.b[1] = -100.0  # a dead unit
    trainer = Lifted(penalty=0.1, growth=2.0, rtol=1e-4).trainer(model, cross_entropy, lr=1e-3)
    trainer.step(inputs, labels)
    multipliers = trainer.state_dict()["multipliers.0"]
    assert multipliers[1] == 0.1
    assert multipliers.max() == pytest.approx(0.3)


@pytest.mark.parametrize("method", ["project", "rescale"])
def test_the_model_is_well_posed_after_every_step(method):
    model, (inputs, labels) = implicit(constraint=InfNorm(kappa=0.7, method=method)), data()
    with torch.no_grad():
        model.parametrizations.A.original.mul_(50)
    trainer = Lifted().trainer(model, cross_entropy, lr=100.0, weight_decay=1e-6)
    for _ in range(5):
        trainer.step(inputs, labels)
        free = model.parametrizations.A.original
        assert free.abs().sum(1).max() <= 0.7 * (1 + 1e-12)
        torch.testing.assert_close(model.A, free)
    assert free.abs().sum(1).max() > 0.69


def test_weight_decay_keeps_the_model_well_posed_where_the_weights_turn_round():
    model, (inputs, labels) = implicit(constraint=InfNorm(kappa=0.7)), data()
    with torch.no_grad():
        model.parametrizations.A.original.mul_(-50)
    Lifted(penalty=0.1, weight_steps=50).trainer(model, cross_entropy, lr=100.0, weight_decay=0.005).step(
        inputs, labels
    )
    sums = model.parametrizations.A.original.abs().sum(1)
    assert sums.max().item() == pytest.approx(0.7, rel=1e-12)


def test_the_units_of_the_loss_do_not_matter():
    trained = []
    for unit in (1.0, 1e-6, 1e4):
        model, (inputs, labels) = implicit(), data()

        def loss(outputs, labels, unit=unit):
            return unit * cross_entropy(outputs, labels)

        trainer = Lifted(penalty=unit).trainer(model, loss, lr=1 / unit)
        for _ in range(3):
            trainer.step(inputs, labels)
        trained.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    for other in trained[1:]:
        torch.testing.assert_close(trained[0], other, rtol=0, atol=1e-8)


class Cell(nn.Module):
    def forward(self, z, x):
        return (0.1 * z + x).tanh()


REFUSED = {
    "deq": nn.Sequential(DEQ(Cell()), nn.Linear(4, 3)),
    "low rank": ImplicitModel(4, 6, 3, structure=LowRank(rank=2)),
    "sparse": ImplicitModel(4, 6, 3, nonzeros={"B": 4}),
    "monotone": ImplicitModel(4, 6, 3, constraint=Monotone()),
    "softplus": ImplicitModel(4, 6, 3, activation="softplus"),
    "ends in relu": nn.Sequential(nn.Linear(4, 3), nn.ReLU()),
    "slope": nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(0.2), nn.Linear(3, 3)),
    "gelu": nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 3)),
    "constrained layer": nn.Sequential(inf_norm(nn.Linear(4, 3), "weight", 0.5)),
    "weight norm": weight_norm(ImplicitModel(4, 6, 3), "B"),
    "empty": nn.Sequential(),
}


@pytest.mark.parametrize("model", REFUSED.values(), ids=REFUSED)
def test_what_it_cannot_train_is_refused_with_what_it_can(model):
    with pytest.raises(Unsupported, match=r"it trains ImplicitModel|There are: relu"):
        Lifted().trainer(model, cross_entropy, lr=1.0)


def test_frozen_weights_are_refused():
    model = implicit()
    model.C.requires_grad_(False)
    with pytest.raises(Unsupported, match="requires_grad=False"):
        Lifted().trainer(model, cross_entropy, lr=1.0)


def test_a_linear_model_is_one_ridge_regression_a_step():
    torch.manual_seed(0)
    model, inputs, targets = nn.Linear(4, 3).double(), normal(9, 4, dtype=F64), normal(9, 3, dtype=F64)
    trainer = Lifted().trainer(model, mse_loss, lr=1e9)
    trainer.step(inputs, targets)
    S = torch.cat((inputs, torch.ones(9, 1, dtype=F64)), 1)
    solution = torch.linalg.lstsq(S, targets).solution
    torch.testing.assert_close(model.weight.detach(), solution[:4].T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.bias.detach(), solution[4], rtol=1e-5, atol=1e-6)


BAD = [
    {"penalty": 0},
    {"penalty": -1.0},
    {"growth": -1},
    {"rtol": float("nan")},
    {"state_steps": 0},
    {"weight_steps": 0},
]


@pytest.mark.parametrize("options", BAD, ids=str)
def test_bad_options_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"Lifted\({name}=.*{name} must be"):
        Lifted(**options)


def test_kept_states_are_of_one_batch():
    model, (inputs, labels) = implicit(), data()
    trainer = Lifted(keep_states=True).trainer(model, cross_entropy, lr=1.0)
    trainer.step(inputs, labels)
    with pytest.raises(ValueError, match="after 8 samples came 5"):
        trainer.step(inputs[:5], labels[:5])


def test_kept_states_are_resumed_exactly():
    first, second, (inputs, labels) = implicit(), implicit(), data()
    rule = Lifted(keep_states=True)
    trainer, other = (rule.trainer(m, cross_entropy, lr=1.0) for m in (first, second))
    for _ in range(3):
        trainer.step(inputs, labels)
    second.load_state_dict(first.state_dict())
    other.load_state_dict({name: t.clone() for name, t in trainer.state_dict().items()})
    for each in (trainer, other):
        each.step(inputs, labels)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_the_state_of_another_trainer_is_refused():
    trainer = Lifted().trainer(implicit(), cross_entropy, lr=1.0)
    with pytest.raises(ValueError, match=r"has multipliers.0, not 0.exp_avg"):
        trainer.load_state_dict({"0.exp_avg": torch.zeros(2)})
    assert Backprop().trainer(implicit(), cross_entropy, lr=1.0).state_dict() == {}
