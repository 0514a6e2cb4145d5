"""Every model x solver x backward: the equilibrium is found, is the same, and is differentiated rightly."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, F64_TIGHT, Architecture
from torch import Tensor, nn

import implicitnets as inn
from implicitnets import storage
from implicitnets.analysis import spectral_radius
from implicitnets.models import Equilibrium, from_config
from implicitnets.pytree import leaves, rebuild
from implicitnets.solvers import GMRES, Anderson, Dense, Newton

BACKWARDS: dict[str, inn.Backward] = {
    "GMRES": inn.Implicit(solver=GMRES(**F64_TIGHT)),
    "Dense": inn.Implicit(solver=Dense(**F64_TIGHT)),
    "Anderson": inn.Implicit(solver=Anderson(**F64_TIGHT)),
}
ROWS = [pytest.param(row, id=name) for name, row in ARCHITECTURES.items()]
SOLVED = [
    pytest.param(row, solver, id=f"{name}-{type(solver).__name__}")
    for name, row in ARCHITECTURES.items()
    for solver in row.solvers
]


def build(row: Architecture, **how: Any) -> Any:
    """The row's model in float64, the same weights each time."""
    torch.manual_seed(0)
    model = row.make(**how).double().eval()
    assert isinstance(model, Equilibrium)
    return model


def reference(row: Architecture) -> Any:
    """The model with a tight solver, and its output."""
    model = build(row, solver=row.solvers[0], backward=BACKWARDS["GMRES"])
    return model, model(*row.inputs())


def differentiable(inputs: Sequence[Any]) -> list[Any]:
    return [
        x.detach().clone().requires_grad_()
        if isinstance(x, Tensor) and x.is_floating_point() and not x.is_sparse
        else x
        for x in inputs
    ]


def gradients(model: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    inputs = differentiable(inputs)
    out = leaves(model(*inputs))
    of = [t for t in (*inputs, *model.parameters()) if isinstance(t, Tensor) and t.requires_grad]
    weights = [torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).reshape(t.shape) for t in out]
    return list(torch.autograd.grad(out, of, weights, materialize_grads=True))


def close(a: Any, b: Any, rtol: float = 1e-8) -> None:
    for x, y in zip(leaves(a), leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("row", "solver"), SOLVED)
def test_every_solver_finds_the_same_equilibrium(row, solver):
    _, wanted = reference(row)
    model = build(row, solver=solver)
    with torch.no_grad():
        close(model(*row.inputs()), wanted)
    assert model.forward_solution.converged.all()


@pytest.mark.parametrize("row", ROWS)
def test_the_default_solver_converges(row):
    model = row.make().eval()
    inputs = [x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in row.inputs()]
    model(*inputs)
    assert model.forward_solution.converged.all()


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("backward", BACKWARDS.values(), ids=BACKWARDS)
def test_every_backward_gives_the_gradient_of_long_unrolling(row, backward):
    exact = gradients(build(row, solver=row.solvers[0], backward=backward), row.inputs())
    newton = build(row, solver=Newton(**F64_TIGHT), backward=inn.Unroll(steps=400, damping=0.3))
    close(exact, gradients(newton, row.inputs()), rtol=1e-6)


@pytest.mark.parametrize("row", [row for row in ROWS if row.values[0].smooth])
def test_gradcheck(row):
    model = build(row, solver=row.solvers[0], backward=BACKWARDS["Dense"])
    names, values = [name for name, _ in model.named_parameters()], list(model.parameters())
    inputs = differentiable(row.inputs())

    def call(*tensors: Tensor) -> Any:
        given = iter(tensors)
        some = [next(given) if isinstance(x, Tensor) and x.requires_grad else x for x in inputs]
        return tuple(leaves(torch.func.functional_call(model, dict(zip(names, given, strict=True)), tuple(some))))

    free = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    assert torch.autograd.gradcheck(call, (*free, *values), fast_mode=True)


@pytest.mark.parametrize("row", ROWS)
def test_it_starts_as_a_contraction_at_its_equilibrium(row):
    seen: list[Any] = []
    model = build(row, solver=row.solvers[0])
    original = model.equilibrium

    def watched(f, z0, *inputs):
        seen.append((f, inputs, original(f, z0, *inputs)))
        return seen[-1][2]

    model.equilibrium = watched
    model(*row.inputs())
    for f, inputs, state in seen:  # one, or several where a model solves several equations
        state = rebuild(torch.detach, state)  # noqa: PLW2901
        assert spectral_radius(lambda z, f=f, inputs=inputs: f(z, *inputs), state).max() < 1


@pytest.mark.parametrize("extreme", [False, True], ids=["initial", "extreme"])
@pytest.mark.parametrize("row", [row for row in ROWS if row.values[0].unique])
def test_from_20_starts_the_same_equilibrium(row, extreme):
    model = build(row, solver=row.solvers[0])
    if extreme:
        row.extreme(model)
    with torch.no_grad():
        wanted = model(*row.inputs())
        assert model.forward_solution.converged.all()
        state = model.forward_solution.value
        for seed in range(20):
            torch.manual_seed(seed)
            z0 = rebuild(lambda t: row.spread * torch.randn_like(t), state)
            got = model(*row.inputs(), z0=z0)
            assert model.forward_solution.converged.all()
            close(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("row", [row for row in ROWS if row.values[0].saved])
def test_it_is_written_down_and_read_again(row, tmp_path):
    model, wanted = reference(row)
    again = from_config(model.config())
    assert again.config() == model.config()
    storage.save(model, tmp_path)
    loaded = storage.load(tmp_path).eval()
    assert type(loaded).__name__ == type(model).__name__
    close(loaded(*row.inputs()), wanted, rtol=0)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_computes_the_same(row, how):
    model, wanted = reference(row)
    close(how(model)(*row.inputs()), wanted, rtol=0)


@pytest.mark.parametrize("row", ROWS)
def test_it_shows_its_solver_and_its_backward(row):
    text = repr(build(row, solver=row.solvers[0], backward=BACKWARDS["GMRES"]))
    assert repr(row.solvers[0]) in text
    assert repr(BACKWARDS["GMRES"]) in text


@pytest.mark.parametrize("row", ROWS)
def test_a_sample_does_not_depend_on_its_batch_mates(row):
    model, wanted = reference(row)
    inputs = row.inputs()
    batch = leaves(wanted)[0].shape[0]
    alone = [x[1:2] if isinstance(x, Tensor) and x.dim() and x.shape[0] == batch else x for x in inputs]
    close(model(*alone), rebuild(lambda t: t[1:2], wanted))
