"""What f depends on beside its arguments: autocast, low precision, random numbers, batch statistics, compilation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import implicitnets as inn
from implicitnets import ConvergenceWarning, Implicit, Unroll
from implicitnets.solvers import GMRES, Anderson, Dense, Picard

TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12, "max_steps": 200}
HOW: dict[str, Any] = {"solver": Anderson(**TIGHT), "backward": Implicit(solver=GMRES(**TIGHT))}


class Cell(nn.Module):
    """z -> after(tanh(Wz + Ux)), with ‖W‖₂ = 0.5; it counts its calls."""

    def __init__(self, after: nn.Module | None = None, size: int = 5) -> None:
        super().__init__()
        self.recur, self.inject = nn.Linear(size, size), nn.Linear(size, size)
        nn.init.orthogonal_(self.recur.weight, 0.5)
        self.after, self.calls = after or nn.Identity(), 0

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self.after(torch.tanh(self.recur(z) + self.inject(x)))


class Silent(Cell):
    """Without the count, which is a reason to compile anew."""

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.recur(z) + self.inject(x))


class Scaled(nn.BatchNorm1d):
    """Batch normalization by 0.3, so that it leaves a contraction."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.3 * super().forward(x)


def loss(z: Tensor) -> Tensor:
    return (z[::2] ** 3 + z[::2].sin()).sum()


def unrolled(cell: Cell, x: Tensor, before: Callable[[], Any] = lambda: None) -> Tensor:
    z = torch.zeros_like(x)
    for _ in range(150):
        before()
        z = cell(z, x)
    return z


def gradients(value: Tensor, *targets: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss(value), targets))


def close(a: list[Tensor], b: list[Tensor], rtol: float = 1e-8) -> bool:
    return all(bool((one - other).norm() <= rtol * other.norm()) for one, other in zip(a, b, strict=True))


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(8, 5, dtype=torch.float64, requires_grad=True)


# randomness


@pytest.mark.parametrize("how", [HOW["backward"], Unroll(steps=150), Unroll(steps=150, start="z0", checkpoint=True)])
def test_dropout_keeps_its_mask_through_one_solve_and_its_gradient(x, how):
    deq = inn.DEQ(Cell(nn.Dropout(0.4)).double(), solver=HOW["solver"], backward=how)
    seed = torch.get_rng_state()
    value = deq(x)
    after = torch.get_rng_state()
    assert bool(deq.forward_solution.converged.all())
    torch.rand(7)
    before = torch.get_rng_state()
    found = gradients(value, x, deq.cell.recur.weight)
    assert torch.equal(torch.get_rng_state(), before), "the gradient changed the state of the random numbers"
    oracle = unrolled(deq.cell, x, lambda: torch.set_rng_state(seed))
    assert torch.allclose(value, oracle)
    assert close(found, gradients(oracle, x, deq.cell.recur.weight))
    assert torch.equal(torch.get_rng_state(), after), "a solve draws as much as one call of the cell"


def test_each_call_drops_others(x):
    deq = inn.DEQ(Cell(nn.Dropout(0.4)).double(), **HOW)
    zeros = [deq(x) == 0 for _ in range(2)]
    assert not torch.equal(*zeros)
    deq.eval()
    assert not bool((deq(x) == 0).any())


def test_dropout_is_frozen_without_gradients_too(x):
    deq = inn.DEQ(Cell(nn.Dropout(0.4)).double(), **HOW)
    with torch.no_grad():
        deq(x)
    assert bool(deq.forward_solution.converged.all())


def test_dropout_differs_between_copies_where_vmap_says_so(x):
    deq = inn.DEQ(Cell(nn.Dropout(0.4)).double(), **HOW)
    copies = torch.vmap(deq, randomness="different")(torch.stack([x, x]).detach())
    assert not torch.equal(copies[0] == 0, copies[1] == 0)


# batch statistics


def test_batch_norm_solves_the_batch_as_one_and_updates_its_statistics_once(x):
    norm = Scaled(5)
    deq = inn.DEQ(Cell(norm).double(), **HOW)
    value = deq(x)
    assert norm.num_batches_tracked == 1
    inside = torch.tanh(deq.cell.recur(value) + deq.cell.inject(x))
    assert torch.allclose(norm.running_mean, 0.1 * inside.mean(0))
    assert deq.forward_solution.evaluations == deq.cell.calls
    assert len(set(deq.forward_solution.residual.tolist())) == 1
    found = gradients(value, x, deq.cell.recur.weight, norm.weight)
    assert norm.num_batches_tracked == 1
    oracle = unrolled(deq.cell, x)
    assert torch.allclose(value, oracle)
    assert close(found, gradients(oracle, x, deq.cell.recur.weight, norm.weight))


def test_batch_norm_in_eval_mode_is_a_map_of_each_sample(x):
    norm = Scaled(5)
    deq = inn.DEQ(Cell(norm).double(), **HOW).eval()
    value = deq(x)
    assert norm.num_batches_tracked == 0
    assert torch.allclose(value[:3], deq(x[:3]))
    assert close(gradients(value, x, norm.weight), gradients(unrolled(deq.cell, x), x, norm.weight))


def test_spectral_norm_iterates_once_a_call(x):
    cell = Cell().double()
    parametrizations.spectral_norm(cell.recur, n_power_iterations=1)
    deq, twin = inn.DEQ(cell, **HOW), copy.deepcopy(cell)
    value = deq(x)
    twin(value, x)
    assert torch.allclose(cell.recur.parametrizations.weight[0]._u, twin.recur.parametrizations.weight[0]._u)
    value.sum().backward()
    assert torch.allclose(cell.recur.parametrizations.weight[0]._u, twin.recur.parametrizations.weight[0]._u)


# precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("solver", [Anderson(), Picard(), Anderson(rtol=1e-6)])
def test_low_precision_converges_to_its_own_floor(x, dtype, solver):
    wide = inn.DEQ(Cell().double(), **HOW)
    deq = inn.DEQ(copy.deepcopy(wide.cell).to(dtype), solver=solver)
    value = deq(x.to(dtype))
    value.float().sum().backward()
    assert value.dtype == dtype
    assert deq.forward_solution.residual.dtype == torch.float32
    assert bool(deq.forward_solution.converged.all())
    assert bool(deq.backward_solution.converged.all())
    eps = torch.finfo(dtype).eps
    assert (value.double() - wide(x)).norm() < 4 * eps * wide(x).norm()
    wide(x).sum().backward()
    exact = wide.cell.recur.weight.grad
    assert (deq.cell.recur.weight.grad.double() - exact).norm() < 8 * eps * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("again", [False, True], ids=["alone", "twice"])
def test_autocast_lowers_f_in_both_passes_and_the_solver_in_none(x, dtype, again):
    cell, seen, x = Cell(), [], x.float().detach().requires_grad_()

    def f(z: Tensor, x: Tensor) -> Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), z.dtype))
        return cell(z, x)

    exact = gradients(unrolled(cell, x), x, cell.recur.weight)
    with torch.autocast("cpu", dtype):
        solution = inn.fixed_point(f, torch.zeros_like(x), x)
        if again:  # the weights are in autocast's cache now, with a history of their own
            solution = inn.fixed_point(f, torch.zeros_like(x), x)
    assert solution.value.dtype == torch.float32
    found = gradients(solution.value, x, cell.recur.weight)
    assert set(seen) == {(True, torch.float32)}
    assert bool(solution.converged.all())
    assert close(found, exact, rtol=4 * torch.finfo(dtype).eps)


def test_a_gradient_taken_under_autocast_is_that_of_the_forward_pass(x):
    cell, x = Cell(), x.float().detach().requires_grad_()
    value = inn.DEQ(cell)(x)
    plain = torch.autograd.grad(loss(value), (x, cell.recur.weight), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = torch.autograd.grad(loss(value), (x, cell.recur.weight))
    assert close(list(lowered), list(plain), rtol=1e-6)


# data that can't be solved


@pytest.mark.parametrize("where", ["input", "start"])
def test_masked_samples_leave_the_others_their_gradient(x, where):
    deq = inn.DEQ(Cell().double(), solver=HOW["solver"], backward=Implicit(solver=Dense(), unconverged="mask"))
    clean = [0, 1, 2, 4, 5, 6, 7]
    loss(deq(x)[clean]).backward()
    expected, x.grad = deq.cell.recur.weight.grad, None
    deq.zero_grad()
    bad, z0 = x.detach().clone(), torch.zeros(8, 5, dtype=torch.float64)
    (bad if where == "input" else z0)[3] = torch.nan
    bad.requires_grad_()
    with pytest.warns(ConvergenceWarning, match="1 of 8 samples"):
        value = deq(bad, z0=z0)
    assert deq.forward_solution.status.tolist() == [0, 0, 0, 3, 0, 0, 0, 0]
    loss(value[clean]).backward()
    assert torch.allclose(deq.cell.recur.weight.grad, expected)
    assert not bool(bad.grad[3].any())


@pytest.mark.parametrize("mode", ["backward", "jvp", "vmap", "hessian"])
def test_an_unconverged_sample_is_masked_in_every_mode(mode):
    """z = a z + x; the second sample expands."""
    a = torch.tensor([[0.5], [1.5], [-0.5]], dtype=torch.float64)
    x = torch.ones(3, 1, dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        return inn.fixed_point(
            lambda z, a, x: a * z + x,
            torch.zeros_like(x),
            a,
            x,
            solver=Picard(rtol=1e-12, max_steps=60),
            backward=Implicit(solver=Dense(), unconverged="mask"),
        ).value

    exact = torch.tensor([[2.0], [0.0], [2 / 3]], dtype=torch.float64)  # 1 / (1 - a), or masked

    def loss(x: Tensor) -> Tensor:
        return value(x).square().sum() / 2

    modes = {
        "backward": lambda: torch.func.grad(lambda x: value(x).sum())(x),
        "jvp": lambda: torch.func.jvp(value, (x,), (torch.ones_like(x),))[1],
        "vmap": lambda: torch.vmap(torch.func.grad(lambda x: value(x).sum()))(torch.stack([x, 2 * x]))[1],
        "hessian": lambda: torch.func.hessian(loss)(x).squeeze().diagonal().sqrt()[:, None],
    }
    with pytest.warns(ConvergenceWarning):
        found = modes[mode]()
    assert torch.allclose(found, exact, rtol=1e-6)


# compilation


quietly = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # which Dynamo itself looks at


class Model(nn.Module):
    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.before, self.deq, self.after = nn.Linear(5, 5), inn.DEQ(Cell(), **how), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.deq(self.before(x)))


def compiled_and_not(model: nn.Module, x: Tensor, **options: Any) -> tuple[list[Any], list[Tensor], list[Tensor]]:
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    values = []
    for run in (model, torch.compile(model, backend=backend, **options)):
        value = run(x)
        values.append([value, *torch.autograd.grad(value.square().sum(), list(model.parameters()))])
    torch.compiler.reset()
    return graphs, *values


@quietly
def test_the_surrounding_model_compiles_with_one_break(x):
    graphs, plain, compiled = compiled_and_not(Model(), x.detach().float())
    assert len(graphs) == 2
    assert close(compiled, plain, 1e-5)


@quietly
def test_a_fixed_number_of_steps_compiles_into_one_graph(x):
    model = Model(backward=Unroll(steps=6, start="z0"), solver=Anderson(rtol=1.0))
    graphs, plain, compiled = compiled_and_not(model, x.detach().float(), fullgraph=True)
    assert len(graphs) == 1
    assert close(compiled, plain, 1e-5)
    assert model.deq.forward_solution.residual.shape == (8,)
    assert bool(model.deq.forward_solution.converged.all())


@quietly
def test_the_record_of_the_compiled_steps_is_that_of_the_others(x):
    deq = inn.DEQ(Cell().double(), backward=Unroll(steps=9, damping=0.3, start="z0"), solver=Picard(rtol=0.1))
    deq(x.detach())
    torch.compiler.reset()
    plain = deq.forward_solution
    torch.compile(deq, backend="eager", fullgraph=True)(x.detach())
    torch.compiler.reset()
    compiled = deq.forward_solution
    assert compiled is not plain
    assert compiled.residual.dtype == torch.float64
    for name in ("value", "residual", "status", "steps"):
        assert torch.allclose(getattr(compiled, name), getattr(plain, name))
    assert compiled.evaluations == plain.evaluations - 1  # the first is not watched apart


@quietly
def test_a_compiled_cell_is_not_compiled_anew_at_each_step(x):
    model, graphs = Model(), []
    model.deq.cell = Silent()
    plain = model(x.detach().float())
    torch.compiler.reset()
    model.deq.cell.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward)
    counts = []
    for _ in range(6):
        value = model(x.detach().float())
        value.sum().backward()
        counts.append(len(graphs))
    assert 1 <= counts[-1] == counts[-2] <= 4
    assert torch.allclose(value, plain)
    torch.compiler.reset()
