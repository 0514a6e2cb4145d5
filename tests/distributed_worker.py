"""One of the processes of test_distributed.py: runs every check below, and writes down how each went.

python tests/distributed_worker.py RANK FOLDER [CHECK]
"""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import traceback
import warnings
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import implicitnets as inn
from implicitnets.solvers import GMRES, Anderson, Broyden, Dense, Newton, Picard

WORLD = 2
LIMIT = 60
"""Seconds that a process waits for the other."""
TIGHT: dict[str, Any] = {"rtol": 1e-13, "atol": 1e-14, "max_steps": 500}
EXACT: dict[str, Any] = {"solver": Anderson(**TIGHT), "backward": inn.Implicit(solver=GMRES(**TIGHT))}
OUTPUTS = 3


class Cell(nn.Module):
    """A contraction, the slower the larger its input."""

    def __init__(self, states: int = 6) -> None:
        super().__init__()
        self.recur, self.inject = nn.Linear(states, states), nn.Linear(4, states)
        nn.init.orthogonal_(self.recur.weight, gain=0.95)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.recur(z) + self.inject(x))


class Classifier(nn.Module):
    """An encoder, an equilibrium that is used once or more, and a head."""

    def __init__(self, uses: int = 1) -> None:
        super().__init__()
        self.encoder, self.head, self.uses = nn.Linear(4, 4), nn.Linear(6, OUTPUTS), uses
        self.deq = inn.DEQ(Cell(), state_shape=(6,), **EXACT)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        return sum((self.head(self.deq(x / k)) for k in range(1, self.uses + 1)), start=torch.zeros(()))


def data() -> Tensor:
    """A batch for every rank; the first is saturated, so that its equilibria take fewer steps."""
    torch.manual_seed(1)
    scale = torch.tensor([[100.0], [0.3]]).repeat_interleave(4, 0)
    return scale * torch.randn(4 * WORLD, 4)


def part(x: Tensor, rank: int) -> Tensor:
    return x.chunk(WORLD)[rank].detach().clone().requires_grad_()


def classifier(uses: int = 1) -> Classifier:
    torch.manual_seed(0)
    return Classifier(uses)


def loss(y: Tensor) -> Tensor:
    return y.square().mean()


def reference(uses: int = 1) -> tuple[dict[str, Tensor], Tensor]:
    """The gradients of a single process that has the whole batch."""
    model, x = classifier(uses), data().requires_grad_()
    loss(model(x)).backward()
    return gradients(model), x.grad


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        assert grad is not None, name
        found[name.removeprefix("module.")] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return found


def new_group() -> dist.ProcessGroup:
    return dist.new_group(timeout=timedelta(seconds=LIMIT))


def gathered(value: Any) -> list[Any]:
    """What every rank has."""
    box: list[Any] = [None] * WORLD
    dist.all_gather_object(box, value)
    return box


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def assert_like_one_process(model: nn.Module, x: Tensor, rank: int, uses: int = 1) -> None:
    expected, along_x = reference(uses)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        close(grad, expected[name])
    close(x.grad / WORLD, part(along_x, rank))  # the loss is the mean over ranks


def assert_ranks_differ(deq: inn.DEQ) -> None:
    assert deq.forward_solution is not None
    assert deq.backward_solution is not None
    assert len(set(gathered(deq.forward_solution.evaluations))) == WORLD
    assert len(set(gathered(deq.backward_solution.evaluations))) == WORLD


def check_ddp(rank: int) -> None:
    for static in (False, True):
        model = classifier()
        wrapped = DistributedDataParallel(model, static_graph=static)
        for _ in range(2):
            model.zero_grad()
            x = part(data(), rank)
            loss(wrapped(x)).backward()
            assert_like_one_process(wrapped, x, rank)
        assert_ranks_differ(model.deq)


def check_ddp_uses_a_layer_twice(rank: int) -> None:
    for static in (False, True):
        model, x = DistributedDataParallel(classifier(2), static_graph=static), part(data(), rank)
        loss(model(x)).backward()
        assert_like_one_process(model, x, rank, 2)


def shard(model: Classifier, *modules: nn.Module) -> Classifier:
    for module in modules:
        fully_shard(module)
    return model


class Collectives(TorchDispatchMode):
    """Counts the collectives that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def check_fsdp_gathers_once_a_solve(rank: int) -> None:
    model = classifier()
    shard(model, model.deq, model)
    x = part(data(), rank)
    with Collectives() as forward:
        value = loss(model(x))
    with Collectives() as backward:
        value.backward()
    assert_like_one_process(model, x, rank)
    assert_ranks_differ(model.deq)
    # The root keeps its own parameters for the backward pass.
    assert forward.counts == {"_allgather_base_": 2}
    assert backward.counts == {"_allgather_base_": 1, "_reduce_scatter_base_": 2}


def check_fsdp_of_the_whole_model(rank: int) -> None:
    model = classifier(2)
    shard(model, model)
    x = part(data(), rank)
    with Collectives() as forward:
        value = loss(model(x))
    value.backward()
    assert_like_one_process(model, x, rank, 2)
    assert forward.counts == {"_allgather_base_": 1}


def check_fsdp_of_an_implicit_model(rank: int) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(inn.models.ImplicitModel(4, 6, OUTPUTS, **EXACT))
    alone, sharded = models
    loss(alone(data())).backward()
    fully_shard(sharded)
    loss(sharded(part(data(), rank))).backward()
    expected = gradients(alone)
    for name, grad in gradients(sharded).items():
        close(grad, expected[name])


def check_sharding_the_cell_is_refused(rank: int) -> None:
    sharded, inner, wrapped = classifier(), classifier(), classifier()
    shard(sharded, sharded.deq.cell)
    shard(inner, inner.deq.cell.recur)
    wrapped.deq.cell = DistributedDataParallel(wrapped.deq.cell)
    for model, name in ((sharded, "the cell is"), (inner, r"the cell\.recur is"), (wrapped, "the cell is")):
        with pytest.raises(TypeError, match=name + r" sharded or wrapped.*Shard .* fully_shard\(deq\)"):
            model(part(data(), rank))
    cell = sharded.deq.cell
    with pytest.raises(TypeError, match=r"fully_shard\(deq\)"):
        inn.fixed_point(cell, torch.zeros(4, 6), torch.zeros(4, 4))


# collectives inside the cell


class Total(torch.autograd.Function):
    """The sum over all ranks, differentiable to any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return Total.apply(g, ctx.group), None


class Coupled(nn.Module):
    """A contraction that subtracts the mean over the samples of all ranks, as batch normalization would."""

    def __init__(self, group: Any, states: int = 5) -> None:
        super().__init__()
        self.group, self.calls = group, 0
        torch.manual_seed(0)
        self.weight = nn.Parameter(0.8 * torch.linalg.qr(torch.randn(states, states))[0])

    def total(self, x: Tensor) -> Tensor:
        return x if self.group is None else Total.apply(x, self.group)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        h = z @ self.weight
        mean = self.total(h.sum(0)) / self.total(torch.tensor(float(len(h))))
        return torch.tanh(h - 0.5 * mean + x)


def uneven(rank: int) -> tuple[Tensor, slice]:
    """The inputs of all ranks, and which are mine: ranks have batches of different sizes and scales."""
    torch.manual_seed(1)
    x = torch.randn(5, 5) * torch.tensor([2.0, 2.0, 0.1, 0.1, 0.1])[:, None]
    return x, slice(0, 2) if rank == 0 else slice(2, 5)


def unrolled(x: Tensor) -> tuple[Tensor, Coupled]:
    """The equilibrium by many applications in one process, differentiable."""
    cell, z = Coupled(None), torch.zeros_like(x)
    for _ in range(300):
        z = cell(z, x)
    return z, cell


def summed(x: Tensor) -> Tensor:
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def check_sync_group(rank: int) -> None:
    group = new_group()
    whole, mine = uneven(rank)
    whole.requires_grad_()
    expected, cell = unrolled(whole)
    expected.pow(3).sum().backward()
    forward = (Anderson(**TIGHT), Picard(**TIGHT), Broyden(**TIGHT))
    for solver, linear in zip(forward, (GMRES(**TIGHT), Anderson(**TIGHT), Dense(**TIGHT)), strict=True):
        deq = inn.DEQ(Coupled(group), solver=solver, backward=inn.Implicit(solver=linear), sync_group=group)
        x = whole.detach()[mine].requires_grad_()
        z = deq(x)
        z.pow(3).sum().backward()
        close(z, expected[mine])
        close(x.grad, whole.grad[mine])
        close(summed(deq.cell.weight.grad), cell.weight.grad)
        assert len(set(gathered(deq.cell.calls))) == 1
        for solution in (deq.forward_solution, deq.backward_solution):
            assert solution.converged.shape == (len(x),)
            assert solution.converged.all()


def check_one_rank_decides(rank: int) -> None:
    """Even if the ranks would stop at different times."""
    group = new_group()
    whole, mine = uneven(rank)
    solver = Picard(rtol=0.1 ** (4 + 4 * rank))
    deq = inn.DEQ(Coupled(group), solver=solver, backward=inn.Implicit(solver=solver), sync_group=group)
    deq(whole[mine]).sum().backward()
    for solution in (deq.forward_solution, deq.backward_solution):
        assert solution.converged.all()
        assert len(set(gathered(solution.evaluations))) == 1


def check_sync_group_of_an_affine_map(rank: int) -> None:
    """z = z / 2 - s / 10 + b with s the sum over all 5 samples has s = s / 2 - s / 2 + Σb."""
    group = new_group()
    whole, mine = uneven(rank)

    def f(z: Tensor, b: Tensor) -> Tensor:
        return 0.5 * z - 0.1 * Total.apply(z.sum(0), group) + b

    for solver in (Dense(rtol=1e-13), GMRES(rtol=1e-13)):
        z = inn.fixed_point(f, torch.zeros_like(whole[mine]), whole[mine], solver=solver, sync_group=group).value
        close(z, 2 * whole[mine] - 0.2 * whole.sum(0))


def check_sync_group_measures_the_true_residual(rank: int) -> None:
    group = new_group()
    whole, mine = uneven(rank)
    solution = inn.fixed_point(
        cell := Coupled(group),
        torch.zeros_like(whole[mine]),
        whole[mine],
        solver=Anderson(record=True),
        sync_group=group,
    )
    with torch.no_grad():
        residual = (cell(solution.value, whole[mine]) - solution.value).square().sum()
    close(solution.residual, summed(residual).sqrt().expand(len(whole[mine])))
    assert solution.evaluations == cell.calls - 1
    assert gathered(solution.trace.tolist()) == [solution.trace.tolist()] * WORLD


def check_sync_group_second_derivatives(rank: int) -> None:
    group = new_group()
    whole, mine = uneven(rank)

    def penalty(cell: Coupled, x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        along = torch.autograd.grad(z.pow(3).sum(), (x, cell.weight), create_graph=True)
        return torch.autograd.grad(along[0].square().sum(), (x, cell.weight))

    whole.requires_grad_()
    x = whole.detach()[mine].requires_grad_()
    z, cell = unrolled(whole)
    expected = penalty(cell, whole, z)
    deq = inn.DEQ(Coupled(group), **EXACT, sync_group=group)
    found = penalty(deq.cell, x, deq(x))
    close(found[0], expected[0][mine])
    close(summed(found[1]), expected[1])


def check_sync_group_with_other_backwards_and_states(rank: int) -> None:
    group = new_group()
    whole, mine = uneven(rank)
    expected, cell = unrolled(whole)
    (truth,) = torch.autograd.grad(expected.pow(3).sum(), cell.weight)
    backwards = (inn.Unroll(steps=150), inn.Unroll(start="z0", steps=300), inn.backward.Shine(solver=GMRES(**TIGHT)))
    for backward in backwards:
        deq = inn.DEQ(Coupled(group), solver=Broyden(**TIGHT), backward=backward, sync_group=group)
        deq(whole[mine]).pow(3).sum().backward()
        close(summed(deq.cell.weight.grad), truth)

    coupled = Coupled(group)

    def pair(z: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        return coupled(z[1].flatten(1), x), z[0][:, None]

    start = (torch.zeros_like(whole[mine]), torch.zeros_like(whole[mine])[:, None])
    z = inn.fixed_point(pair, start, whole[mine], **EXACT, sync_group=group).value
    close(z[0], expected[mine])
    (0.5 * z[0].pow(3) + 0.5 * z[1][:, 0].pow(3)).sum().backward()
    close(summed(coupled.weight.grad), truth)


class Refusing(Picard):
    """A solver that fails on its own."""

    def step(self, f: Any, now: Any, state: Any) -> Tensor:
        raise FloatingPointError("out of luck")


def check_failures_reach_all_ranks(rank: int) -> None:
    group = new_group()
    whole, mine = uneven(rank)

    def call(f: Any = None, solver: Any = Anderson(), z0: Any = None) -> None:
        x = whole[mine]
        inn.fixed_point(f or Coupled(group), x if z0 is None else z0, x, solver=solver, sync_group=group)

    with pytest.raises(RuntimeError, match=r"Newton, can't be used with sync_group.*Anderson\(\)"):
        call(solver=Newton())
    with pytest.raises((FloatingPointError, RuntimeError), match="out of luck"):
        call(solver=Refusing())
    with pytest.raises(ValueError, match="may differ in the batch only"):
        call(z0=torch.zeros(2, 3 + rank))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(solver=Picard(max_steps=2))
    assert [w.category for w in caught] == [inn.ConvergenceWarning], caught[0]
    calls = Counter[str]()

    def breaks(z: Tensor, x: Tensor) -> Tensor:
        calls["f"] += 1
        return 0.5 * z + x if calls["f"] < 4 else z[:, :1]

    with pytest.raises(ValueError, match="has shape"):
        call(breaks)
    call()  # and the group is still in step


def check_vmap_is_refused(rank: int) -> None:
    group = new_group()

    def solve(b: Tensor) -> Tensor:
        return inn.fixed_point(lambda z, b: 0.5 * z + b, torch.zeros(2, 1), b, sync_group=group).value

    with pytest.raises(RuntimeError, match=r"vmap.*sync_group"):
        torch.func.vmap(solve)(torch.ones(3, 2, 1))


def check_copies(rank: int) -> None:
    group = new_group()
    deq = inn.DEQ(Coupled(None), sync_group=group)
    assert copy.deepcopy(deq).sync_group is group
    assert copy.copy(deq).sync_group is group
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(deq)
    for wrong in ("gloo", Coupled, dist.new_group([0]) if rank else 1):
        with pytest.raises(TypeError, match=r"sync_group=.*new_group\(\)"):
            inn.DEQ(Coupled(None), sync_group=wrong)


def main(rank: int, folder: Path, only: str = "") -> None:
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("error")
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=LIMIT))
    results = {}
    for name, check in list(globals().items()):
        if name.startswith("check_") and only in name:
            try:
                check(rank)
                results[name] = "passed"
            except Exception:
                results[name] = traceback.format_exc()
            (folder / f"rank{rank}").write_bytes(pickle.dumps(results))
    gc.collect()
    if all(text == "passed" for text in results.values()):
        dist.barrier()  # nobody leaves while others still communicate
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
