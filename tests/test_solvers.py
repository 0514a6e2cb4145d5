"""Every solver on every problem: right value, truthful record, each sample on its own."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DTYPES, PROBLEMS, SOLVERS, Problem, generator, matrix, monotone, normal
from torch import Tensor

from implicitnets import ConvergenceWarning, Status, solvers
from implicitnets.pytree import leaves, rebuild
from implicitnets.solvers import Anderson, Broyden, Newton, Picard, loop

each_solver = pytest.mark.parametrize("solver_name", SOLVERS)
each_problem = pytest.mark.parametrize("problem_name", PROBLEMS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def flat(state: Any) -> Tensor:
    parts = leaves(state)
    return (
        torch.cat([part.reshape(part.shape[0], part[:1].numel()) for part in parts], 1) if len(parts[0]) else parts[0]
    )


def residual(problem: Problem, value: Any) -> Tensor:
    return torch.linalg.vector_norm(flat(problem.f(value)) - flat(value), dim=1)


@each_dtype
@each_problem
@each_solver
def test_finds_the_fixed_point_and_reports_the_truth(solver_name, problem_name, dtype):
    problem, entry = PROBLEMS[problem_name](dtype), SOLVERS[solver_name]
    solver = entry.at(dtype)
    calls = 0

    def counted(z: Any) -> Any:
        nonlocal calls
        calls += 1
        return problem.f(z)

    found = solver.run(counted, problem.z0)

    assert found.evaluations == calls
    assert found.all_converged == bool(found.converged.all())
    true = residual(problem, found.value)
    precision = torch.finfo(dtype).eps * 50
    assert torch.allclose(found.residual, true, rtol=1e-3, atol=float(precision * (1 + flat(found.value).abs().sum())))
    limit = solver.atol + solver.rtol * torch.linalg.vector_norm(flat(problem.f(found.value)), dim=1)
    assert (true[found.converged] <= limit[found.converged] * 1.01 + precision).all()
    if problem.solution is None:
        assert not found.converged.any()
        assert flat(found.value).isfinite().all()
    elif entry.solves(problem.kind):
        assert found.converged.all()
    if problem.solution is not None:
        error = torch.linalg.vector_norm(flat(found.value) - flat(problem.solution), dim=1)
        bound = problem.gain * limit + 100 * precision
        assert (error[found.converged] <= bound[found.converged]).all()
    for leaf, start in zip(leaves(found.value), leaves(problem.z0), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.device) == (start.shape, start.dtype, start.device)


def company(problem: Problem, i: int, batch: int) -> tuple[Any, Any]:
    """The map and the start of sample i alone (the map gets copies of it for company)."""

    def alone(z: Any) -> Any:
        full = rebuild(lambda leaf: leaf.expand(batch, *leaf.shape[1:]), z)
        return rebuild(lambda leaf: leaf[i : i + 1], problem.f(full))

    return alone, rebuild(lambda leaf: leaf[i : i + 1], problem.z0)


@each_problem
@pytest.mark.parametrize("solver_name", [name for name, entry in SOLVERS.items() if entry.own_way])
def test_a_sample_does_not_depend_on_its_batch_mates(solver_name, problem_name):
    problem, solver = PROBLEMS[problem_name](torch.float64), SOLVERS[solver_name].at(torch.float64)
    together = solver.run(problem.f, problem.z0)
    start, value = flat(problem.z0), flat(together.value)
    for i in range(start.shape[0]):
        alone, z0 = company(problem, i, start.shape[0])
        single = solver.run(alone, z0)
        assert single.steps[0] == together.steps[i]
        assert single.status[0] == together.status[i]
        scale = 1 + float(value[i].abs().max())
        assert torch.allclose(flat(single.value)[0], value[i], rtol=1e-6, atol=1e-6 * scale)


class Rowwise:
    """A selectable map of slow and fast samples that counts the rows it was asked for."""

    def __init__(self, rate: Tensor, log: list[int]) -> None:
        self.rate, self.log = rate, log

    def __call__(self, z: Tensor) -> Tensor:
        self.log.append(len(z))
        return torch.cos(self.rate * z)

    def select(self, rows: Tensor) -> Rowwise:
        return Rowwise(self.rate[rows], self.log)


@pytest.mark.parametrize(
    "solver",
    [Picard(max_steps=2000), Anderson(), Broyden(), Newton(), Anderson(damping=0.2)],
    ids=lambda s: repr(s)[:16],
)
def test_finished_samples_are_dropped_without_changing_the_others(monkeypatch, solver):
    monkeypatch.setattr(loop, "PRICE", 0)
    rate = torch.cat([torch.full((60, 1), 0.05), torch.linspace(0.9, 1.2, 4)[:, None]]).double()
    log: list[int] = []
    dropping = solver.run(Rowwise(rate, log), torch.zeros(64, 1, dtype=torch.float64))
    keeping = solver.run(lambda z: torch.cos(rate * z), torch.zeros(64, 1, dtype=torch.float64))
    assert torch.equal(dropping.steps, keeping.steps)
    assert torch.allclose(dropping.value, keeping.value, atol=1e-12)
    assert dropping.converged.all()
    assert log[0] == 64
    assert log[-1] <= 4


def test_small_states_are_not_dropped_for_a_few_steps():
    """Cutting the inputs would take longer than evaluating the finished samples along."""
    log: list[int] = []
    rate = torch.cat([torch.full((60, 1), 0.05), torch.full((4, 1), 0.6)]).double()
    assert Picard().run(Rowwise(rate, log), torch.zeros(64, 1, dtype=torch.float64)).converged.all()
    assert set(log) == {64}


@pytest.mark.parametrize("solver", [Anderson(lazy=0, rtol=1e-6), Anderson(damping=0.3), Broyden()], ids=repr)
def test_the_best_iterate_is_returned_however_the_residual_moves(solver):
    """The trace has every residual; the one reported is the least of a sample's own."""
    w, x = monotone(30, 3.0, torch.float64), normal(40, 30, dtype=torch.float64)
    traced = replace(solver, record=True, max_steps=25)
    found = traced.run(lambda z: torch.relu(z @ w.T + x), torch.zeros_like(x))
    assert not found.converged.all()
    for i in range(len(x)):
        assert found.residual[i] == found.trace[: found.steps[i] + 1, i].min()
    true = (torch.relu(found.value @ w.T + x) - found.value).norm(dim=1)
    assert torch.allclose(found.residual, true)


def test_a_map_that_mixes_its_samples_is_never_cut(monkeypatch):
    monkeypatch.setattr(loop, "PRICE", 0)

    class Mixing(Rowwise):
        def __call__(self, z: Tensor) -> Tensor:  # like batch statistics
            return super().__call__(z) + 0.1 * z.mean(0)

        def select(self, rows: Tensor) -> Mixing:
            return Mixing(self.rate[rows], self.log)

    class Shared(Rowwise):
        def __call__(self, z: Tensor) -> Tensor:  # an input whose first axis only looks like the batch
            self.log.append(len(z))
            return 0.1 * z @ self.rate.expand(-1, 12) + torch.linspace(0, 1, 12, dtype=z.dtype).diag()

    rate = torch.cat([torch.zeros(6, 1), torch.full((6, 1), 0.9)]).double()
    for cls, width in ((Mixing, 1), (Shared, 12)):
        log: list[int] = []
        Picard(rtol=1e-8, max_steps=300).run(cls(rate, log), torch.zeros(12, width, dtype=torch.float64))
        assert sum(rows < 12 for rows in log) == 1  # the trial
        assert log[-1] == 12


def test_a_bad_sample_harms_nobody_else():
    x = normal(6, 3, dtype=torch.float64)
    x[1] = torch.nan
    x[4] = torch.inf
    for name, entry in SOLVERS.items():
        if not entry.own_way or not entry.solves(frozenset({"contraction"})):
            continue
        # On 0.5 tanh(z) + x it is for rounding to decide whether newton_krylov stalls.
        found = entry.at(torch.float64).run(lambda z: 0.2 * torch.tanh(z) + x, torch.zeros_like(x))
        good = torch.tensor([0, 2, 3, 5])
        assert found.status[[1, 4]].tolist() == [Status.NONFINITE] * 2, name
        assert found.converged[good].all(), name
        assert torch.allclose(found.value[good], (0.2 * torch.tanh(found.value) + x)[good], atol=1e-6), name


def test_divergence_running_out_of_steps_and_bad_values_are_told_apart():
    z0 = torch.ones(2, 1, dtype=torch.float64)
    kinds = {
        Status.DIVERGED: lambda z: 3 * z + 1,
        Status.MAX_STEPS: lambda z: z + 1,
        Status.NONFINITE: lambda z: torch.exp(z.exp()) + 1,
    }
    for status, f in kinds.items():
        with pytest.warns(ConvergenceWarning, match="2 of 2 samples did not converge"):
            found = Picard().solve(f, z0)
        assert (found.status == status).all()
        assert torch.equal(found.value, z0)  # the best iterate: the residual never fell
        assert torch.allclose(found.residual, (f(z0) - z0).norm(dim=1))


def test_the_warning_counts_names_causes_and_says_what_to_try():
    rate = torch.tensor([[0.1], [3.0], [0.999]], dtype=torch.float64)
    with pytest.warns(ConvergenceWarning) as caught:
        Picard(max_steps=40).solve(lambda z: rate * z + 1, torch.zeros_like(rate))
    text = str(caught[0].message)
    for part in ("2 of 3 samples", "1 ran out of steps", "1 diverged", "Picard(", "max_steps=", "largest residual"):
        assert part in text
    assert caught[0].filename == __file__


def test_no_warning_without_a_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Picard().solve(torch.cos, torch.zeros(3, 1))
        Picard().solve(torch.cos, torch.zeros(0, 1))


@each_solver
def test_a_mistyped_option_is_a_type_error(solver_name):
    cls = type(SOLVERS[solver_name].solver)
    name = {"TorchDEQ": ["anderson"], "SciPy": ["hybr"]}.get(cls.__name__, [])
    with pytest.raises(TypeError, match="max_step"):
        cls(*name, max_step=3)


@each_solver
@pytest.mark.parametrize(
    ("option", "value"), [("rtol", -1e-3), ("atol", -1.0), ("max_steps", -1), ("rtol", float("nan"))]
)
def test_an_impossible_option_is_refused_by_name(solver_name, option, value):
    solver = SOLVERS[solver_name].solver
    name = {"name": getattr(solver, "name", "")} if hasattr(solver, "name") else {}
    with pytest.raises(ValueError, match=f"{option}=.*{option} must be"):
        type(solver)(**name, **{option: value})


@each_solver
def test_solvers_are_values(solver_name):
    solver = SOLVERS[solver_name].solver
    assert solvers.parse(repr(solver)) == solver
    assert hash(solver) == hash(solvers.parse(repr(solver)))
    with pytest.raises(AttributeError):
        solver.rtol = 1.0


def test_names_become_solvers_in_one_place():
    assert solvers.by_name("anderson", memory=7) == Anderson(memory=7)
    assert solvers.by_name("GMRES") == solvers.GMRES()
    assert solvers.by_name("scipy", name="hybr") == solvers.SciPy("hybr")
    with pytest.raises(ValueError, match=r"did you mean 'anderson'.*anderson, bicgstab, broyden, dense, .*newton"):
        solvers.by_name("andersen")
    with pytest.raises(TypeError, match="memry"):
        solvers.by_name("anderson", memry=3)
    for text in ("Anderson(5)", "Anderson(**{})", "__import__('os')", "Anderson(memory=open)", "1 +", "[]"):
        with pytest.raises((ValueError, TypeError)):
            solvers.parse(text)


def test_the_trace_is_the_residual_of_every_iteration():
    rate = torch.tensor([[0.1], [0.9]], dtype=torch.float64)
    seen: list[Tensor] = []

    def f(z: Tensor) -> Tensor:
        seen.append((torch.cos(rate * z) - z).norm(dim=1))
        return torch.cos(rate * z)

    found = Picard(record=True).run(f, torch.zeros(2, 1, dtype=torch.float64))
    assert found.trace is not None
    assert found.trace.shape == (found.evaluations, 2)
    last = found.steps.max()
    for i in range(2):
        own = int(found.steps[i])
        assert torch.allclose(found.trace[: own + 1, i], torch.stack(seen)[: own + 1, i])
        assert (found.trace[own : last + 1, i] == found.residual[i]).all()  # a finished sample keeps its residual
    assert Picard().run(f, torch.zeros(2, 1, dtype=torch.float64)).trace is None


def test_a_start_at_the_solution_takes_no_step_and_keeps_it_apart():
    solution = torch.full((3, 1), 0.7390851332151607, dtype=torch.float64)
    found = Anderson().run(torch.cos, solution)
    assert found.steps.tolist() == [0, 0, 0]
    assert found.evaluations == 1
    found.value.zero_()
    assert (solution > 0.7).all()


def test_a_known_value_of_the_start_saves_its_evaluation():
    z0 = torch.zeros(3, 1)
    cold, warm = Anderson().run(torch.cos, z0), Anderson().run(torch.cos, z0, fz0=torch.cos(z0))
    assert torch.equal(cold.value, warm.value)
    assert warm.evaluations == cold.evaluations - 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_states_are_solved_in_float32_and_given_back(dtype):
    found = Anderson(rtol=1e-2).run(torch.cos, torch.zeros(4, 2, dtype=dtype))
    assert found.value.dtype == dtype
    assert found.converged.all()
    assert (found.value.float() - 0.739).abs().max() < 2e-2


# Anderson's promises


@pytest.mark.parametrize(
    "problem_name", [p for p in PROBLEMS if p not in ("none", "monotone", "no_fixed_point", "diverges")]
)
@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-9])
def test_anderson_needs_at_most_a_fifth_more_evaluations_than_picard(problem_name, rtol):
    problem = PROBLEMS[problem_name](torch.float64)
    picard = Picard(rtol=rtol, atol=0, max_steps=3000).run(problem.f, problem.z0)
    anderson = Anderson(rtol=rtol, atol=0, max_steps=3000).run(problem.f, problem.z0)
    assert anderson.converged.all()
    assert anderson.evaluations <= 1.2 * picard.evaluations


@pytest.mark.parametrize("rate", [0.1, 0.45, 0.9])
def test_anderson_is_lazy_where_plain_steps_do(rate):
    """Picard's very iterates on an easy map, and fewer of them on a hard one."""
    b = normal(5, 3, dtype=torch.float64)
    turn = torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 0]], dtype=torch.float64)
    options = {"rtol": 1e-5, "atol": 0.0, "max_steps": 200}
    picard, anderson = (
        solver.run(lambda z: rate * z @ turn + b, torch.zeros_like(b))
        for solver in (Picard(**options), Anderson(**options))
    )
    assert torch.equal(picard.value, anderson.value) == (rate < 0.5)
    assert (anderson.evaluations < picard.evaluations) == (rate > 0.5)


@pytest.mark.parametrize(("entries", "early"), [(511, False), (512, True)])
def test_anderson_mixes_from_the_third_step_on_where_residuals_come_back(entries, early):
    """Symmetric maps, whose residual is like the one before the last, but falls by more than half in each step."""
    slopes, b = torch.linspace(-0.5, 0.5, entries, dtype=torch.float64), normal(5, entries, dtype=torch.float64)
    slopes = slopes[torch.randperm(entries, generator=torch.Generator().manual_seed(0))]  # the first ones are like all
    options = {"rtol": 1e-5, "atol": 0.0, "max_steps": 200}
    picard, lazy, eager = (
        solver.run(lambda z: z * slopes + b, torch.zeros_like(b)).evaluations
        for solver in (Picard(**options), Anderson(**options), Anderson(**options, lazy=0.0))
    )
    assert (lazy <= eager + 2) == early
    assert eager + 2 < picard - 2


def test_anderson_stays_plain_where_a_large_state_forgets_its_residual():
    """A rotation by a right angle and a shift: r₂ is −ρ² r₀, or has nothing to do with it."""
    b = normal(5, 512, dtype=torch.float64)
    options = {"rtol": 1e-5, "atol": 0.0, "max_steps": 200}
    for f in (lambda z: 0.4 * z.roll(7, 1) + b, lambda z: 0.4 * torch.cat((-z[:, 256:], z[:, :256]), 1) + b):
        picard, lazy = (solver(**options).run(f, torch.zeros_like(b)) for solver in (Picard, Anderson))
        assert torch.equal(picard.value, lazy.value)


@pytest.mark.parametrize(("small", "same"), [(0.25, True), (0.4, False)])
def test_one_slow_step_does_not_make_anderson_mix(small, same):
    """The residual falls by 0.8 and by ``small`` in turns: together to a fifth, which is good enough, or to a third."""
    w = torch.tensor([[0.0, 0.8, 0], [small, 0, 0], [0, 0, 0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    picard, anderson = (
        solver(rtol=0.0, atol=1e-8, max_steps=200).run(lambda z: z @ w + b, torch.zeros_like(b))
        for solver in (Picard, Anderson)
    )
    assert (anderson.evaluations == picard.evaluations) == same
    assert torch.equal(picard.value, anderson.value) == same


def test_anderson_does_not_begin_to_mix_three_steps_before_the_end():
    """The residual falls by 0.6 a step; the tolerance is two and a half steps, then three and a half, away."""
    b = normal(5, 3, dtype=torch.float64)
    for steps, same in ((4.5, True), (5.5, False)):  # the first two tell the rate
        options = {"rtol": 0.0, "atol": float(b.norm(dim=1).min()) * 0.6**steps, "max_steps": 50}
        one = b[:1] / b[:1].norm() * b.norm(dim=1).min()
        picard, anderson = (
            solver.run(lambda z, one=one: 0.6 * z + one, torch.zeros_like(one))
            for solver in (Picard(**options), Anderson(**options))
        )
        assert torch.equal(picard.value, anderson.value) == same


@pytest.mark.parametrize(("seed", "n", "kind"), [(87, 4, "signed"), (247, 8, "sparse"), (804, 4, "sparse")])
def test_anderson_does_not_stall_on_well_posed_relu_layers(seed, n, kind):
    """‖A‖∞ < 1, so Picard converges; here mixing overshoots, and halving the steps for it would end in tiny ones."""
    g = generator(seed)
    a = torch.randn(n, n, generator=g, dtype=torch.float64)
    if kind == "sparse":
        a = a * (torch.rand(n, n, generator=g) < 3 / n)
    else:
        a = a.abs() * torch.sign(torch.randn(n, 1, generator=g, dtype=torch.float64))
    a = 0.95 * a / a.abs().sum(1, keepdim=True).clamp_min(1e-9)
    x = torch.randn(8, n, generator=g, dtype=torch.float64)
    picard, anderson = (
        solver.run(lambda z: torch.relu(z @ a.T + x), torch.zeros_like(x))
        for solver in (Picard(max_steps=400), Anderson(max_steps=400))
    )
    assert picard.converged.all()
    assert anderson.evaluations < picard.evaluations


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("scale", "norm"), [(0.9, 3), (1.45, 7), (2, 13), (3, 30)])
@pytest.mark.parametrize(("rtol", "steps"), [(1e-3, 60), (1e-5, 120)])
def test_anderson_solves_monotone_cells_of_large_norm(seed, scale, norm, rtol, steps):
    w = monotone(100, scale, torch.float32, seed=seed, m=1.0)
    assert torch.linalg.matrix_norm(w, 2) > norm
    x = normal(8, 100, dtype=torch.float32, seed=seed + 1)
    found = Anderson(rtol=rtol, atol=0, max_steps=steps).run(lambda z: torch.relu(z @ w.T + x), torch.zeros_like(x))
    assert found.converged.all()


@pytest.mark.parametrize(
    "solver", [Anderson(atol=0, rtol=1e-8, max_steps=200), Broyden(atol=0, rtol=1e-8, max_steps=200)]
)
@given(power=st.integers(-60, 60), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_solvers_do_not_depend_on_the_units(solver, power, seed):
    a, b = matrix(8, 0.9, torch.float64, seed), normal(3, 8, dtype=torch.float64, seed=seed)
    one = solver.run(lambda z: z @ a + b, torch.zeros_like(b))
    unit = 2.0**power
    other = solver.run(lambda z: z @ a + unit * b, torch.zeros_like(b))
    assert torch.equal(one.steps, other.steps)
    assert torch.allclose(one.value * unit, other.value, rtol=1e-12, atol=0)


def test_anderson_on_an_affine_map_is_as_fast_as_gmres():
    """With enough memory the iterates are GMRES's (Walker and Ni 2011): the dimension bounds the steps."""
    a, b = matrix(7, 3.0, torch.float64), normal(4, 7, dtype=torch.float64)
    found = Anderson(memory=7, rtol=1e-8, atol=0).run(lambda z: z @ a + b, torch.zeros_like(b))
    assert found.converged.all()
    assert found.steps.max() <= 12


@pytest.mark.parametrize("solver", [solvers.GMRES(restart=9, rtol=1e-8), solvers.BiCGSTAB(rtol=1e-8), solvers.Dense()])
def test_affine_solvers_need_no_contraction(solver):
    a, b = matrix(8, 5.0, torch.float64), normal(4, 8, dtype=torch.float64)
    found = solver.run(lambda z: z @ a + b, torch.zeros_like(b))
    assert found.converged.all()
    assert torch.allclose(found.value, torch.linalg.solve(torch.eye(8).double() - a.T, b.T).T, atol=1e-5)


def test_gmres_survives_stagnation():
    """(I − J) = a cyclic shift: the residual does not fall until the space is full."""
    shift = torch.roll(torch.eye(5, dtype=torch.float64), 1, 0)
    b = torch.zeros(2, 5, dtype=torch.float64)
    b[0, 0] = b[1, 3] = 1
    found = solvers.GMRES(restart=5, max_steps=3).run(lambda z: z - z @ shift.T + b, torch.zeros_like(b))
    assert found.converged.all()
    assert torch.allclose(found.value @ shift.T, b, atol=1e-6)


def test_newton_converges_quadratically_and_ends_on_piecewise_linear_maps():
    relu, smooth = PROBLEMS["relu_kink"](torch.float64), PROBLEMS["tanh"](torch.float64)
    solver = Newton(linear=solvers.Dense(), rtol=1e-13, atol=1e-13)
    assert solver.run(smooth.f, smooth.z0).steps.max() <= 8
    w, x = monotone(30, 2.0, torch.float64), normal(6, 30, dtype=torch.float64)
    found = solver.run(lambda z: torch.relu(z @ w.T + x), torch.zeros_like(x))
    assert found.converged.all()
    assert found.steps.max() <= 10
    assert solver.run(relu.f, relu.z0).converged.all()


def test_newton_takes_a_map_that_does_not_depend_on_its_state():
    b = normal(3, 2, dtype=torch.float64)
    for f in (lambda z: b, lambda z: b + 0 * z.detach()):
        assert torch.allclose(Newton().run(f, torch.zeros_like(b)).value, b)


@pytest.mark.parametrize(
    ("cls", "option", "value"),
    [
        (Anderson, "memory", 0),
        (Anderson, "damping", 1.0),
        (Anderson, "ridge", -1.0),
        (Anderson, "lazy", 1.0),
        (Broyden, "memory", 0),
        (Picard, "damping", -0.1),
        (Newton, "halvings", -1),
        (solvers.GMRES, "restart", 0),
        (solvers.BiCGSTAB, "restart", 0),
    ],
)
def test_options_have_ranges(cls, option, value):
    with pytest.raises(ValueError, match=option):
        cls(**{option: value})


def test_foreign_solvers_refuse_what_they_would_ignore():
    with pytest.raises(TypeError, match="no option 'mm'; it has lam, m, tau"):
        solvers.TorchDEQ("anderson", mm=3)
    with pytest.raises(ValueError, match="anderson, broyden, fixed_point_iter"):
        solvers.TorchDEQ("andersen")
    with pytest.raises(TypeError, match="foo"):
        solvers.SciPy("hybr", foo=1)
    with pytest.raises(ValueError, match="hybr"):
        solvers.SciPy("hybrid")
    with pytest.raises(TypeError, match="linear must be a Solver"):
        Newton(linear="gmres")


def test_random_states_of_any_shape(tmp_path):
    """Images, sequences and scalars solve like vectors."""
    for shape in [(3, 1), (2, 3, 4), (2, 1, 3, 3), (1, 2, 0)]:
        x = torch.rand(shape, generator=generator(), dtype=torch.float64)
        found = Anderson().run(lambda z, x=x: 0.5 * z.cos() + x, torch.zeros_like(x))
        assert found.value.shape == x.shape
        assert found.converged.all()
