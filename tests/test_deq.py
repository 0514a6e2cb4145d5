"""fixed_point, DEQ and ImplicitModel as a user meets them."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from problems import matrix, normal
from torch import Tensor, nn
from torch.nn.utils import parametrize

import implicitnets as inn
from implicitnets.constraints import InfNorm, inf_norm
from implicitnets.models import ACTIVATIONS, ImplicitModel, from_config
from implicitnets.solvers import GMRES, Anderson, Broyden, Dense, Newton, Picard, loop

F64 = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14, "max_steps": 300}


class Cell(nn.Module):
    """A constrained cell of a vector state."""

    def __init__(self, inputs: int = 4, states: int = 6) -> None:
        super().__init__()
        self.recur, self.inject = nn.Linear(states, states), nn.Linear(inputs, states)
        inf_norm(self.recur, "weight", 0.8)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.relu(self.recur(z) + self.inject(x))


class Same(nn.Module):
    """State like the input; contracts."""

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.5 * torch.cos(z) + x


# bad input


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (ValueError, r"z0 of shape \(\) has no batch axis.*z0\[None\]", lambda: (torch.cos, torch.tensor(1.0))),
        (ValueError, r"z0 of shape \(4,\) has no batch axis.*z0\[:, None\]", lambda: (torch.cos, torch.zeros(4))),
        (TypeError, r"z0 has dtype torch.int64.*z0.float\(\)", lambda: (torch.cos, torch.zeros(4, 1).long())),
        (TypeError, r"complex.*view_as_real", lambda: (torch.cos, torch.zeros(4, 1, dtype=torch.cfloat))),
        (TypeError, r"z0 must consist of tensors, not float", lambda: (torch.cos, [1.0])),
        (ValueError, r"z0 has no tensor", lambda: (torch.cos, ())),
        (ValueError, r"different batch sizes", lambda: (lambda z: z, (torch.zeros(2, 1), torch.zeros(3, 1)))),
        (
            ValueError,
            r"f\(z\) has shape \(4, 1\) where z has \(4, 2\)",
            lambda: (lambda z: z[:, :1], torch.zeros(4, 2)),
        ),
        (TypeError, r"f\(z\) has dtype torch.float64.*z0.to", lambda: (lambda z: z.double(), torch.zeros(4, 2))),
        (TypeError, r"a tuple of 2, f\(z\) is a tuple of 1", lambda: (lambda z: z[:1], (torch.zeros(4, 2),) * 2)),
        (TypeError, r"z is one tensor, f\(z\) is a tuple of 2", lambda: (lambda z: (z, z), torch.zeros(4, 2))),
        (ValueError, r"z0 has NaN", lambda: (torch.cos, torch.full((4, 2), torch.nan))),
        (
            ValueError,
            r"input 2 has NaN",
            lambda: (lambda z, a, x: z / 2 + x, torch.zeros(2, 2), 1, torch.full((2, 2), torch.nan)),
        ),
        (RuntimeError, r"f changed its argument z in place", lambda: (lambda z: z.mul_(0.5), torch.ones(4, 2))),
        (TypeError, r"f must be callable", lambda: (3, torch.zeros(4, 2))),
    ],
)
@pytest.mark.parametrize("grad", [False, True])
def test_bad_input_is_named_with_what_to_write_instead(error, text, call, grad):
    with torch.set_grad_enabled(grad), pytest.raises(error, match=text):
        inn.fixed_point(*call())


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (r"solver=Anderson is a class: write solver=Anderson\(\)", {"solver": Anderson}),
        (r"solver='anderson' is not a Solver.*solvers.by_name", {"solver": "anderson"}),
        (r"solver=Implicit\(.*is not a Solver", {"solver": inn.Implicit()}),
        (r"backward=Implicit is a class: write backward=Implicit\(\)", {"backward": inn.Implicit}),
        (r"backward=GMRES\(.*is not a Backward", {"backward": GMRES()}),
    ],
)
def test_strategies_are_checked_by_name(text, options):
    for use in (lambda: inn.fixed_point(torch.cos, torch.zeros(2, 1), **options), lambda: inn.DEQ(Same(), **options)):
        with pytest.raises(TypeError, match=text):
            use()


def test_a_bad_sample_among_good_ones_is_a_status_not_an_error():
    x = normal(4, 3, dtype=F64)
    x[2] = torch.nan
    with pytest.warns(inn.ConvergenceWarning, match="1 of 4 samples.*1 met non-finite"):
        found = inn.fixed_point(lambda z, x: 0.5 * torch.cos(z) + x, torch.zeros_like(x), x)
    assert found.status.tolist() == [0, 0, 3, 0]


def test_strictness_is_pythons_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error", inn.ConvergenceWarning)
        with pytest.raises(inn.ConvergenceWarning):
            inn.fixed_point(lambda z: z + 1, torch.zeros(2, 1))


# DEQ


def test_a_deq_returns_a_tensor_and_sits_in_sequential():
    model = nn.Sequential(inn.DEQ(Cell(), state_shape=(6,)), nn.Linear(6, 3))
    x = torch.randn(5, 4)
    y = model(x)
    assert y.shape == (5, 3)
    deq = model[0]
    assert deq.forward_solution.converged.all()
    assert not deq.forward_solution.value.requires_grad
    assert deq.backward_solution is None
    y.sum().backward()
    assert deq.backward_solution.converged.all()
    assert not deq.backward_solution.value.requires_grad
    assert all(p.grad is not None for p in model.parameters())
    assert {name.split(".")[0] for name, _ in deq.named_parameters()} == {"cell"}


def test_where_a_deq_starts():
    x = torch.randn(3, 4)
    assert inn.DEQ(Same())(x).shape == (3, 4)  # zeros like the first input
    assert inn.DEQ(Cell(), state_shape=(6,))(x).shape == (3, 6)

    class Starting(Cell):
        def initial_state(self, x: Tensor) -> Tensor:
            return torch.full((x.shape[0], 6), 2.0)

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            self.seen = z if not hasattr(self, "seen") else self.seen
            return super().forward(z, x)

    cell = Starting()
    inn.DEQ(cell, state_shape=(5,))(x)
    assert (cell.seen == 2).all()
    with pytest.raises(ValueError, match="state_shape"):
        inn.DEQ(Same())(torch.zeros(3, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="z0="):
        inn.DEQ(Same())()
    with pytest.raises(TypeError, match="for a function use fixed_point"):
        inn.DEQ(torch.cos)


def test_a_warm_start_saves_steps_and_changes_nothing_else():
    deq, x = inn.DEQ(Cell(), state_shape=(6,)).double(), normal(3, 4, dtype=F64)
    cold = deq(x)
    steps = deq.forward_solution.steps
    warm = deq(x, z0=cold)
    assert (deq.forward_solution.steps < steps).all()
    assert torch.allclose(cold, warm, atol=1e-3)


def test_integer_inputs_and_several_inputs():
    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 4)

        def forward(self, z: Tensor, tokens: Tensor, gain: float, shift: dict[str, Tensor]) -> Tensor:
            return gain * torch.tanh(z + self.table(tokens)) + shift["x"]

    deq = inn.DEQ(Embedding(), state_shape=(4,))
    shift = torch.randn(3, 4, requires_grad=True)
    deq(torch.tensor([1, 2, 3]), 0.5, {"x": shift}).sum().backward()
    assert deq.cell.table.weight.grad.abs().sum() > 0
    assert shift.grad.abs().sum() > 0


def test_an_input_is_not_cut_because_the_batch_shrank_to_its_size(monkeypatch):
    """64 samples, then 8: the 8 x 8 matrix among the inputs is nobody's data."""
    monkeypatch.setattr(loop, "PRICE", 0)
    w, x = matrix(8, 0.98, F64), normal(64, 8, dtype=F64)
    x[:56] = 0
    x[56:60] *= 1e-4
    rows = []

    def f(z: Tensor, w: Tensor, x: Tensor) -> Tensor:
        rows.append(len(z))
        return torch.tanh(z @ w + x)

    found = inn.fixed_point(f, torch.zeros_like(x), w, x, solver=Picard(rtol=1e-9, atol=1e-7, max_steps=2000))
    assert 8 in rows
    assert rows[-1] < 8
    assert torch.allclose(found.value, f(found.value, w, x), atol=1e-6)


def test_each_tensor_of_a_state_keeps_its_dtype():
    half, single = torch.rand(3, 2, dtype=torch.bfloat16), torch.rand(3, 4, 1, requires_grad=True)
    double = torch.rand(3, 1, dtype=F64)

    def f(z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return 0.5 * z[0].cos() + half, 0.3 * z[1] + z[2][:, None].float() + single, 0.5 * z[2].sin() + double

    z0 = (torch.zeros_like(half), torch.zeros_like(single), torch.zeros_like(double))
    found = inn.fixed_point(f, z0, solver=Anderson(rtol=1e-2))
    assert [leaf.dtype for leaf in found.value] == [torch.bfloat16, torch.float32, F64]
    assert found.converged.all()
    (g,) = torch.autograd.grad(found.value[1].sum(), single)
    assert torch.allclose(g, torch.full_like(g, 1 / 0.7), rtol=1e-2)


def test_the_strategies_of_a_deq_are_swapped_by_assignment():
    deq, x = inn.DEQ(Cell(), state_shape=(6,)).double(), normal(3, 4, dtype=F64)
    reference = None
    for solver in (Picard(**TIGHT), Anderson(**TIGHT), Broyden(**TIGHT), Newton(**TIGHT)):
        for backward in (inn.Implicit(solver=Dense()), inn.Implicit(solver=GMRES(**TIGHT)), inn.Unroll(steps=150)):
            deq.solver, deq.backward = solver, backward
            deq.zero_grad()
            deq(x).pow(2).sum().backward()
            grads = torch.cat([p.grad.flatten() for p in deq.parameters()])
            reference = grads if reference is None else reference
            assert torch.allclose(grads, reference, atol=1e-8)


def test_instances_share_nothing():
    a, b = inn.DEQ(Same()), inn.DEQ(Same(), solver=Picard(rtol=1e-2))
    assert a.solver == Anderson()
    b.solver = Newton()
    assert a.solver == Anderson()
    a(torch.zeros(2, 3))
    assert b.forward_solution is None


@pytest.mark.parametrize("used", [False, True])
def test_a_deq_survives_copying_and_storing(used, tmp_path):
    deq, x = inn.DEQ(Cell(), state_shape=(6,), solver=Broyden(memory=7)), torch.randn(3, 4)
    if used:
        deq(x).sum().backward()
    file = tmp_path / "deq.pt"
    torch.save(deq, file)
    fresh = inn.DEQ(Cell(), state_shape=(6,), solver=Broyden(memory=7))
    fresh.load_state_dict(deq.state_dict())
    copies = [copy.deepcopy(deq), pickle.loads(pickle.dumps(deq)), torch.load(file, weights_only=False), fresh]
    for other in copies:
        assert other.forward_solution is None
        assert other.backward_solution is None
        assert other.solver == deq.solver
        assert torch.equal(other(x), deq(x))
        other(x).sum().backward()
        assert other.cell.recur.weight is not deq.cell.recur.weight
        assert other.cell.recur.parametrizations.weight.original.grad is not None
    buffer = io.BytesIO()
    torch.save(deq.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))


def test_a_deq_moves_and_says_what_it_is():
    deq = inn.DEQ(Cell(), state_shape=(6,)).to(F64)
    assert deq(normal(2, 4, dtype=F64)).dtype == F64
    assert deq.to("meta").cell.inject.weight.device.type == "meta"
    text = repr(inn.DEQ(Same(), state_shape=(3,), backward=inn.Unroll(steps=2)))
    for part in ("state_shape=(3,)", "solver=Anderson(", "backward=Unroll(steps=2", "(cell): Same()"):
        assert part in text


def test_gradients_flow_in_eval_mode_too():
    deq = inn.DEQ(Cell(), state_shape=(6,)).eval()
    x = torch.randn(2, 4, requires_grad=True)
    deq(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_constrained_weight_is_computed_once_a_solve():
    calls = 0

    class Counting(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return 0.5 * weight

    cell = Cell()
    parametrize.register_parametrization(cell.inject, "weight", Counting())
    deq, x = inn.DEQ(cell, state_shape=(6,), solver=Picard(rtol=1e-6)), torch.randn(3, 4)
    calls = 0
    with torch.no_grad():
        deq(x)
    assert deq.forward_solution.evaluations > 5
    assert calls == 2  # at the first call of f, which is watched, and for the solve
    deq(x).sum().backward()
    assert calls <= 2 + 3  # watched once, solved with once, recorded once in the backward


# constraints


@pytest.mark.parametrize("method", ["project", "rescale"])
@pytest.mark.parametrize("kappa", [0.3, 0.95, 5.0])
def test_the_norm_constraint_holds_and_is_differentiable_where_it_is_active(method, kappa):
    weight = normal(5, 4, dtype=F64)
    weight[1] = 0
    weight[2] *= 0.01
    constraint = InfNorm(kappa=kappa, method=method)
    bounded = constraint(weight)
    assert (bounded.abs().sum(1) <= kappa * (1 + 1e-12)).all()
    inside = weight.abs().sum(1) <= kappa
    assert torch.equal(bounded[inside], weight[inside])
    assert torch.allclose(constraint(bounded), bounded)
    active = weight[[0, 2, 3, 4]].requires_grad_()  # abs has a kink at zero, which differences can't see
    assert torch.autograd.gradcheck(constraint, active)
    (g,) = torch.autograd.grad(constraint(weight.requires_grad_()).sum(), weight)
    assert torch.equal(g[1], torch.ones(4, dtype=F64))  # a zero row is inside the ball, and learns


def test_the_projection_is_the_nearest_point_of_the_ball():
    weight = normal(4, 6, dtype=F64) * 3
    projected = InfNorm(kappa=1.5)(weight)
    for seed in range(200):  # <w - P(w), p - P(w)> <= 0 for every p of the ball
        p = normal(4, 6, dtype=F64, seed=seed)
        p = p / p.abs().sum(1, keepdim=True) * 1.5
        assert (((weight - projected) * (p - projected)).sum(1) <= 1e-10).all()


def test_constraints_are_values():
    assert inn.constraints.parse(repr(InfNorm(kappa=0.5))) == InfNorm(kappa=0.5)
    with pytest.raises(ValueError, match="kappa"):
        InfNorm(kappa=0)
    with pytest.raises(ValueError, match="method"):
        InfNorm(method="clip")


# ImplicitModel


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_implicit_model_is_its_equation(activation, bias):
    model = ImplicitModel(5, 7, 3, activation=activation, bias=bias, solver=Anderson(**TIGHT)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    u = normal(6, 5, dtype=F64)
    x, y = model.state(u), model(u)
    b, c = (model.b, model.c) if bias else (0, 0)
    assert torch.allclose(x, ACTIVATIONS[activation](x @ model.A.T + u @ model.B.T + b), atol=1e-10)
    assert torch.allclose(y, x @ model.C.T + u @ model.D.T + c)
    assert model.A.abs().sum(1).max() <= 0.95 + 1e-12
    assert model.A.abs().sum(1).max() > 0.9  # the constraint is active


def test_the_implicit_model_has_right_gradients_with_the_constraint_active():
    model = ImplicitModel(3, 4, 2, solver=Anderson(**TIGHT), backward=inn.Implicit(solver=Dense(**TIGHT))).double()
    with torch.no_grad():
        model.parametrizations.A.original.mul_(4)
    names = [name for name, _ in model.named_parameters()]
    u = normal(3, 3, dtype=F64).requires_grad_()

    def call(u: Tensor, *parameters: Tensor) -> Any:
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (u,))

    parameters = [p.detach().clone().requires_grad_() for p in model.parameters()]
    assert torch.autograd.gradcheck(call, (u, *parameters))


def test_an_implicit_model_is_rebuilt_from_its_description():
    model = ImplicitModel(
        4,
        5,
        2,
        activation="tanh",
        constraint=InfNorm(kappa=0.5),
        solver=Newton(),
        backward=inn.Unroll(steps=2),
        bias=False,
    )
    again = from_config(model.config())
    again.load_state_dict(model.state_dict())
    u = torch.randn(3, 4)
    assert torch.equal(again(u), model(u))
    assert again.config() == model.config()
    free = from_config({**model.config(), "constraint": None})
    assert not parametrize.is_parametrized(free)
    with pytest.raises(ValueError, match="can't be written down"):
        ImplicitModel(4, 5, 2, activation=torch.sin).config()
    with pytest.raises(ValueError, match=r"no model is called 'Other'. There are: .*ImplicitModel"):
        from_config({"model": "Other"})
    with pytest.raises(TypeError, match="widths"):
        from_config({**model.config(), "widths": 3})
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(u), model(u))


@pytest.mark.parametrize(
    ("text", "call"),
    [
        (r"states=0", lambda: ImplicitModel(4, 0, 2)),
        (r"no activation is called 'rely'.*relu", lambda: ImplicitModel(4, 5, 2, activation="rely")),
        (r"not \(batch, 4\).*flatten", lambda: ImplicitModel(4, 5, 2)(torch.zeros(3, 2, 2))),
        (r"not \(batch, 4\)", lambda: ImplicitModel(4, 5, 2)(torch.zeros(3, 5))),
        (r"write constraint=InfNorm", lambda: ImplicitModel(4, 5, 2, constraint=0.95)),
    ],
)
def test_an_implicit_model_says_what_is_wrong(text, call):
    with pytest.raises((ValueError, TypeError), match=text):
        call()


def test_a_new_implicit_model_starts_as_a_contraction():
    model = ImplicitModel(10, 50, 3)
    model(torch.randn(20, 10))
    assert model.A.abs().sum(1).max() <= 0.5 + 1e-6
    assert model.forward_solution.steps.max() <= 12


def test_spectral_radius_close_to_one_is_still_solved_by_the_defaults():
    w = matrix(30, 1.9, torch.float32)
    x = normal(16, 30, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inn.fixed_point(lambda z: torch.tanh(z @ w + x), torch.zeros_like(x))
