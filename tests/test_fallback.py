"""A chain of solvers: each sample goes as far down it as it must, and no further."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import matrix, monotone, normal
from torch import Tensor
from torch.autograd import gradcheck

from implicitnets import ConvergenceWarning, Implicit, Status, fixed_point, solvers
from implicitnets.solvers import GMRES, Anderson, BiCGSTAB, Broyden, Dense, Fallback, Newton, Picard

F64 = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14}


class Lines:
    """z -> rate · z + 1, whose fixed point is 1 / (1 − rate); it logs how many rows it was asked for."""

    def __init__(self, rate: Tensor, log: list[int]) -> None:
        self.rate, self.log = rate, log

    def __call__(self, z: Tensor) -> Tensor:
        self.log.append(len(z))
        return self.rate * z + 1

    def select(self, rows: Tensor) -> Lines:
        return Lines(self.rate[rows], self.log)


RATE = torch.tensor([[0.1], [-3.0], [0.2], [0.999], [0.3], [-0.4], [5.0], [0.0]], dtype=F64)
HARD = torch.tensor([1, 3, 6])  # two that Picard drives out, one that it takes too long for
EASY = torch.tensor([0, 2, 4, 5, 7])


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "whole"])
def test_a_sample_goes_on_only_where_it_has_not_converged(cut):
    log: list[int] = []
    alone_log: list[int] = []
    lines, same = Lines(RATE, log), Lines(RATE, alone_log)
    first, second = Picard(max_steps=40, **TIGHT), Newton(linear=Dense(), **TIGHT)
    found = Fallback(first, second).run(lines if cut else lines.__call__, torch.zeros(8, 1, dtype=F64))
    calls = len(log)
    alone = first.run(same if cut else same.__call__, torch.zeros(8, 1, dtype=F64))
    later = log[len(alone_log) :]

    assert found.converged.all()
    assert not alone.converged[HARD].any()
    assert torch.allclose(found.value, 1 / (1 - RATE), rtol=1e-9)
    assert torch.equal(found.value[EASY], alone.value[EASY])  # to the bit
    assert torch.equal(found.residual[EASY], alone.residual[EASY])
    assert torch.equal(found.steps[EASY], alone.steps[EASY])
    assert found.evaluations == calls
    assert torch.allclose(found.residual, (RATE * found.value + 1 - found.value).norm(dim=1))
    assert (found.steps[HARD] > alone.steps[HARD]).all()
    assert later[0] == 8  # to find out who is left
    assert set(later[1:]) == {3 if cut else 8}


def test_the_steps_are_those_of_each_solver_from_where_the_last_one_stood():
    rate, z0 = RATE[HARD], torch.zeros(3, 1, dtype=F64)

    def f(z: Tensor) -> Tensor:
        return rate * z + 1

    first, second = Picard(max_steps=7, **TIGHT), Anderson(**TIGHT)
    one = first.run(f, z0)
    assert one.status.tolist() == [Status.DIVERGED, Status.MAX_STEPS, Status.DIVERGED]
    start = torch.where(one.status[:, None] == Status.DIVERGED, z0, one.value)
    two = second.run(f, start)
    both = Fallback(first, second).run(f, z0)
    assert torch.equal(both.steps, one.steps + two.steps)
    assert torch.equal(both.value, two.value)
    assert both.evaluations == one.evaluations + two.evaluations


def test_where_nobody_converges_the_best_that_was_seen_is_returned():
    z0 = torch.zeros(2, 1, dtype=F64)
    with pytest.warns(ConvergenceWarning, match=r"2 of 2 samples.*Fallback\(Picard\(.*a further solver in the chain"):
        found = Fallback(Picard(max_steps=3), Anderson(max_steps=4)).solve(lambda z: z + 1, z0)
    assert found.steps.tolist() == [7, 7]
    assert torch.equal(found.residual, torch.ones(2, dtype=F64))
    bad = Fallback(Picard(), Newton()).run(lambda z: z + torch.nan, z0)
    assert bad.status.tolist() == [Status.NONFINITE] * 2
    assert torch.equal(bad.value, z0)
    # Picard comes closer than a second solver that starts anew from z0 and may take no step
    rate = torch.tensor([[-3.0], [0.9]], dtype=F64)
    stopped = Fallback(Picard(max_steps=5), Picard(max_steps=0)).run(
        lambda z: rate * z + 1, torch.ones(2, 1, dtype=F64)
    )
    assert torch.equal(
        stopped.value[1], Picard(max_steps=5).run(lambda z: rate * z + 1, torch.ones(2, 1).double()).value[1]
    )
    assert stopped.steps.tolist() == [5, 5]


def test_who_went_astray_starts_anew_and_keeps_the_best_that_was_seen_on_the_way():
    """Two parts of a state: one falls to its fixed point, one flees from its own."""
    rate, z0 = torch.tensor([[0.1, -3.0]], dtype=F64), torch.tensor([[100.0, 0.26]], dtype=F64)

    def f(z: Tensor) -> Tensor:
        return rate * z + 1

    first = Picard(max_steps=12, record=True)
    one = first.run(f, z0)
    assert one.status.tolist() == [Status.DIVERGED]
    assert one.residual < 0.1 * one.trace[0]  # it had come closer before
    both = Fallback(first, Picard(max_steps=0)).run(f, z0)
    assert torch.equal(both.trace[-1], one.trace[0])  # back at z0
    assert torch.equal(both.residual, one.residual)
    assert torch.equal(both.value, one.value)


def test_who_has_converged_is_left_alone_even_if_the_next_solver_would_go_on():
    """Here because the map has moved by then; in practice by rounding."""
    first, second = Picard(max_steps=40, record=True), Picard(max_steps=5, record=True)
    calls, z0 = 0, torch.zeros(8, 1, dtype=F64)

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return RATE * z + 1 + 0.1 * (calls > 41)

    one = first.run(f, z0)
    assert one.evaluations == calls == 41
    calls = 0
    both = Fallback(first, second).run(f, z0)
    for name in ("value", "residual", "steps", "status"):
        assert torch.equal(getattr(both, name)[EASY], getattr(one, name)[EASY])
    assert both.trace is not None
    assert (both.trace[41:, EASY] == one.residual[EASY]).all()


def test_the_trace_goes_through_the_chain():
    z0 = torch.zeros(8, 1, dtype=F64)
    chain = Fallback(Picard(max_steps=30), Newton(linear=Dense()), record=True)
    found = chain.run(lambda z: RATE * z + 1, z0)
    one = replace(chain.solvers[0], record=True).run(lambda z: RATE * z + 1, z0)
    assert found.trace is not None
    assert one.trace is not None
    assert torch.equal(found.trace[: len(one.trace)], one.trace)
    assert torch.equal(found.trace[-1], found.residual)
    assert (found.trace[len(one.trace) :, EASY] == found.residual[EASY]).all()
    assert Fallback().run(torch.cos, z0).trace is None


def test_a_chain_that_need_not_go_on_is_its_first_solver():
    z0, x = torch.zeros(4, 6, dtype=F64), normal(4, 6, dtype=F64)
    chain, first = Fallback(Anderson(), Newton()), Anderson()
    one, other = (solver.run(lambda z: 0.5 * torch.tanh(z) + x, z0) for solver in (chain, first))
    for name in ("value", "residual", "steps", "status"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert one.evaluations == other.evaluations


def test_a_tree_and_an_empty_batch():
    z0 = {"a": torch.zeros(3, 2, dtype=F64), "b": (torch.zeros(3, 1, 2, dtype=F64),)}
    rate = torch.tensor([0.1, -3.0, 0.5], dtype=F64)

    def f(z: dict[str, Any]) -> dict[str, Any]:
        return {"a": rate[:, None] * z["a"] + 1, "b": (rate[:, None, None] * z["b"][0] + 2,)}

    found = Fallback(Picard(), Newton()).run(f, z0)
    assert found.converged.all()
    assert torch.allclose(found.value["b"][0][:, 0, 0], 2 / (1 - rate), rtol=1e-3)
    assert Fallback().run(torch.cos, torch.zeros(0, 2)).value.shape == (0, 2)


@pytest.mark.parametrize(
    "adjoint", [Fallback(Picard(max_steps=5), GMRES(), **TIGHT), Fallback(BiCGSTAB(), Dense(), **TIGHT)]
)
def test_a_chain_differentiates(adjoint):
    w, pre = monotone(4, 1.2, F64), normal(3, 4, dtype=F64)
    x = pre - pre.relu() @ w.T
    chain = Fallback(Picard(max_steps=20), Newton(), **TIGHT)

    def solve(w: Tensor, x: Tensor) -> Tensor:
        f = fixed_point(
            lambda z, x: torch.relu(z @ w.T + x),
            torch.zeros_like(x),
            x,
            solver=chain,
            backward=Implicit(solver=adjoint),
        )
        assert f.converged.all()
        return f.value

    assert gradcheck(solve, (w.requires_grad_(), x.requires_grad_()))


def test_one_tolerance_and_one_budget_hold_for_the_chain():
    chain = Fallback(Anderson(max_steps=30), Broyden(max_steps=20), rtol=1e-7)
    assert (chain.rtol, chain.atol, chain.max_steps) == (1e-7, 1e-6, 50)
    assert chain.solvers == (Anderson(rtol=1e-7, max_steps=30), Broyden(rtol=1e-7, max_steps=20))
    assert [s.max_steps for s in replace(chain, max_steps=100).solvers] == [30, 70]
    assert [s.max_steps for s in replace(chain, max_steps=10).solvers] == [10, 0]
    assert all(s.atol == 0 for s in replace(chain, atol=0.0).solvers)
    with pytest.raises(ValueError, match=r"different tolerances, rtol = 1e-07, 0.0001; .* Fallback\(..., rtol=1e-07\)"):
        Fallback(Anderson(rtol=1e-7), Newton())
    with pytest.raises(ValueError, match=r"Fallback\(rtol=-1.0\): rtol must be"):
        Fallback(Anderson(), Newton(), rtol=-1.0)


def test_a_chain_is_a_value_with_a_text_form():
    for chain in (
        Fallback(),
        Fallback(Picard(damping=0.5), Fallback(Anderson(memory=3), Newton(linear=Dense()))),
        Fallback(Anderson(), Newton(), rtol=1e-9, max_steps=70, record=True),
    ):
        assert solvers.parse(repr(chain)) == chain
        assert hash(solvers.parse(repr(chain))) == hash(chain)
        assert replace(chain) == chain
    assert solvers.parse("fallback") == solvers.by_name("fallback") == Fallback(Anderson(), Newton()) == Fallback()
    assert solvers.parse("Fallback(Picard(damping=0.5), newton)") == Fallback(Picard(damping=0.5), Newton())
    assert Fallback(Anderson(), Newton()) != Fallback(Newton(), Anderson())
    with pytest.raises(TypeError, match=r"Fallback\(Anderson\): the chain must consist of Solvers"):
        Fallback(Anderson)
    with pytest.raises(ValueError, match="can't read solver"):
        solvers.parse("Fallback(5)")


def test_random_layers_are_solved_where_picard_is_not_enough():
    w = matrix(20, 1.8, F64)
    x = normal(6, 20, dtype=F64) * torch.tensor([0.01, 0.1, 1, 2, 5, 20], dtype=F64)[:, None]

    def f(z: Tensor) -> Tensor:
        return torch.tanh(z @ w.T + x)

    alone = Picard(rtol=1e-8).run(f, torch.zeros_like(x))
    assert alone.converged.any()
    assert not alone.converged.all()
    found = Fallback(Picard(), Newton(), rtol=1e-8).run(f, torch.zeros_like(x))
    assert found.converged.all()
    assert torch.equal(found.value[alone.converged], alone.value[alone.converged])
