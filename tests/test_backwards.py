"""Full unrolling, the reversible iteration, and SHINE: each against the naive oracle that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import matrix, normal
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from implicitnets import ConvergenceWarning, Implicit, Solution, Unroll, backward, fixed_point
from implicitnets.backward import Backward, Reversible, Shine
from implicitnets.pytree import leaves
from implicitnets.solvers import GMRES, Anderson, Broyden, Newton, Picard

F64 = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14, "max_steps": 500}
LOOSE = Picard(atol=1e3)  # whose tolerance any point here meets


def tanh(z: Tensor, w: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(z @ w.T + x)


def coupled(z: dict[str, Tensor], w: Tensor, x: Tensor) -> dict[str, Tensor]:
    return {
        "p": torch.tanh(z["p"] @ w.T + z["q"].sum((1, 2))[:, None] + x),
        "q": 0.3 * z["q"] + 0.2 * z["p"][:, :1, None],
    }


def parameters(dtype: torch.dtype = F64, norm: float = 0.9) -> tuple[Tensor, Tensor]:
    return matrix(4, norm, dtype).requires_grad_(), normal(3, 4, dtype=dtype).requires_grad_()


STARTS = {
    tanh: normal(3, 4, dtype=F64, seed=5),
    coupled: {"p": torch.ones(3, 4, dtype=F64), "q": torch.zeros(3, 1, 2, dtype=F64)},
}
each_map = pytest.mark.parametrize("f", STARTS, ids=lambda f: f.__name__)


def naive_unroll(f: Callable[..., Any], z0: Any, *p: Tensor, steps: int, damping: float) -> Any:
    z = z0
    for _ in range(steps):
        z = mixed(z, f(z, *p), damping)
    return z


def naive_reversible(f: Callable[..., Any], z0: Any, *p: Tensor, steps: int, damping: float) -> Any:
    y = z = z0
    for _ in range(steps):
        y = mixed(y, f(z, *p), damping)
        z = mixed(z, f(y, *p), damping)
    return z


def mixed(old: Any, new: Any, damping: float) -> Any:
    if isinstance(old, dict):
        return {k: mixed(old[k], new[k], damping) for k in old}
    return damping * old + (1 - damping) * new


def total(value: Any) -> Tensor:
    return sum(
        (leaf * torch.linspace(1, 2, leaf.numel()).view_as(leaf)).sum() + leaf.pow(3).sum() for leaf in leaves(value)
    )


OWN: list[tuple[Backward, Callable[..., Any]]] = [
    (Unroll(steps=7, damping=0.2, start="z0"), naive_unroll),
    (Unroll(steps=7, damping=0.2, start="z0", checkpoint=True), naive_unroll),
    (Unroll(steps=1, start="z0", checkpoint=True), naive_unroll),
    (Reversible(steps=7, damping=0.5), naive_reversible),
    (Reversible(steps=4, damping=0.2), naive_reversible),
]
each_own = pytest.mark.parametrize(("how", "naive"), OWN, ids=lambda x: repr(x) if isinstance(x, Backward) else "")


# iterations of the backward's own


@each_map
@each_own
def test_value_and_gradient_are_those_of_the_iteration(how, naive, f):
    w, x = parameters()
    z0 = STARTS[f]
    found = fixed_point(f, z0, w, x, solver=LOOSE, backward=how)
    oracle = naive(f, z0, w, x, steps=how.steps, damping=how.damping)
    for ours, theirs in zip(leaves(found.value), leaves(oracle), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-13)
    for ours, theirs in zip(
        torch.autograd.grad(total(found.value), (w, x)), torch.autograd.grad(total(oracle), (w, x)), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@each_own
def test_its_derivatives_of_first_and_second_order_equal_finite_differences(how, naive):
    def solve(w: Tensor, x: Tensor) -> Tensor:
        return fixed_point(tanh, STARTS[tanh], w, x, solver=LOOSE, backward=how).value

    assert gradcheck(solve, parameters())
    assert gradgradcheck(solve, parameters())


@each_own
def test_its_third_derivative_is_the_oracles(how, naive):
    def third(solve: Callable[..., Tensor]) -> list[Tensor]:
        w, x = parameters()
        scalar = total(solve(w, x))
        for _ in range(2):
            scalar = sum(g.pow(2).sum() for g in torch.autograd.grad(scalar, (w, x), create_graph=True))
        return list(torch.autograd.grad(scalar, (w, x)))

    ours = third(lambda *p: fixed_point(tanh, STARTS[tanh], *p, solver=LOOSE, backward=how).value)
    theirs = third(lambda *p: naive(tanh, STARTS[tanh], *p, steps=how.steps, damping=how.damping))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


@each_own
def test_the_record_is_true_and_the_value_the_same_without_gradients(how, naive):
    w, x = parameters()
    calls = 0

    def f(z: Tensor, w: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return tanh(z, w, x)

    found = fixed_point(f, STARTS[tanh], w, x, solver=Anderson(rtol=1.5), backward=how)
    assert found.evaluations == calls
    assert found.steps.tolist() == [how.steps] * 3
    fz = tanh(found.value, w, x)
    assert torch.allclose(found.residual, (fz - found.value).norm(dim=1))
    assert torch.equal(found.converged, found.residual <= 1e-6 + 1.5 * fz.norm(dim=1))
    calls = 0
    with torch.no_grad():
        plain = fixed_point(f, STARTS[tanh], w, x, solver=Anderson(rtol=1.5), backward=how)
    assert plain.evaluations == calls
    assert torch.equal(plain.value, found.value)
    assert not plain.value.requires_grad
    with pytest.warns(ConvergenceWarning, match="3 of 3 samples did not converge"):
        fixed_point(f, STARTS[tanh], w, x, solver=Anderson(**TIGHT), backward=how)


@each_own
def test_an_operand_changed_in_place_before_the_gradient_is_an_error(how, naive):
    w, x = parameters()
    z = fixed_point(tanh, STARTS[tanh], w, x, solver=LOOSE, backward=how).value
    with torch.no_grad():
        w.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@each_own
def test_what_f_closes_over_and_computed_operands_get_their_gradient(how, naive):
    w, x = parameters()

    def solve(route: Callable[..., Tensor]) -> list[Tensor]:
        hidden = torch.sin(x)  # computed from x, which f uses too
        return list(torch.autograd.grad(total(route(lambda z: tanh(z, w, hidden) + 0.1 * x)), (w, x)))

    ours = solve(lambda f: fixed_point(f, STARTS[tanh], solver=LOOSE, backward=how).value)
    theirs = solve(lambda f: naive(f, STARTS[tanh], steps=how.steps, damping=how.damping))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10)


@each_own
def test_an_empty_batch_and_a_constant_map(how, naive):
    w = matrix(3, 0.5, F64).requires_grad_()
    z = fixed_point(lambda z: torch.tanh(z @ w), torch.zeros(0, 3, dtype=F64), solver=LOOSE, backward=how).value
    assert (torch.autograd.grad(z.sum(), w)[0] == 0).all()
    x = normal(2, 3, dtype=F64).requires_grad_()
    z = fixed_point(lambda z: x * 1.0, torch.zeros(2, 3, dtype=F64), solver=LOOSE, backward=how).value
    oracle = naive(lambda z: x * 1.0, torch.zeros(2, 3, dtype=F64), steps=how.steps, damping=how.damping)
    assert torch.allclose(torch.autograd.grad(z.sum(), x)[0], torch.autograd.grad(oracle.sum(), x)[0])


def saved(how: Backward) -> int:
    """How many numbers are kept for the backward pass."""
    w, x = parameters()
    count = 0

    def pack(t: Tensor) -> Tensor:
        nonlocal count
        count += t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        found = fixed_point(tanh, STARTS[tanh], w, x, solver=LOOSE, backward=how)
    del found
    return count


def test_memory_grows_with_the_steps_with_their_root_or_not_at_all():
    few, many = 25, 100  # four times as many
    assert saved(Unroll(steps=many, start="z0")) > 3.5 * saved(Unroll(steps=few, start="z0"))
    rooted = [saved(Unroll(steps=n, start="z0", checkpoint=True)) for n in (few, many)]
    assert rooted[1] <= 2 * rooted[0]
    assert rooted[0] < saved(Unroll(steps=few, start="z0")) / 4
    assert saved(Reversible(steps=2)) == saved(Reversible(steps=40))


def test_no_more_than_the_root_of_the_steps_is_computed_again_at_a_time():
    w, x = parameters()
    events = ""

    def f(z: Tensor) -> Tensor:
        nonlocal events
        events += "f"
        out = tanh(z, w, x)
        if out.requires_grad:
            out.register_hook(note)
        return out

    def note(g: Tensor) -> None:
        nonlocal events
        events += "b"

    how = Unroll(steps=100, start="z0", checkpoint=True)
    z = fixed_point(f, STARTS[tanh], solver=LOOSE, backward=how).value
    events = ""
    z.sum().backward()
    assert events == ("b" + "f" * 10 + "b" * 9) * 10


@given(steps=st.integers(1, 30), damping=st.floats(0, 0.9))
@settings(max_examples=20, deadline=None)
def test_checkpoints_change_nothing(steps, damping):
    w, x = parameters()
    grads = []
    for start in ("z0", "solution"):
        for again in (False, True):
            how = Unroll(steps=steps, damping=damping, start=start, checkpoint=again)
            z = fixed_point(tanh, STARTS[tanh], w, x, solver=LOOSE, backward=how).value
            grads.append(torch.autograd.grad(total(z), (w, x)))
    for (a, b), (c, d) in zip(grads[::2], grads[1::2], strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


# reversible


def test_reversible_finds_the_fixed_point_and_its_gradient_where_the_plain_iteration_spirals_out():
    """On z ↦ λz + x it converges for λ = ±1.5i, not for λ = −1.5: the roots μ of μ² − (2d + (1−d)²λ²) μ + d²."""
    w = torch.tensor([[0.0, -1.5], [1.5, 0.0]], dtype=F64).requires_grad_()
    x, z0 = normal(3, 2, dtype=F64).requires_grad_(), torch.zeros(3, 2, dtype=F64)
    how = Reversible(steps=24, damping=0.5)
    ours = fixed_point(straight, z0, w, x, solver=Picard(rtol=1e-5), backward=how).value
    exact = torch.linalg.solve(torch.eye(2, dtype=F64) - w, x.T).T
    assert torch.allclose(ours, exact, rtol=1e-5)
    for a, b in zip(torch.autograd.grad(total(ours), (w, x)), torch.autograd.grad(total(exact), (w, x)), strict=True):
        assert torch.allclose(a, b, rtol=1e-4)
    for damping in (0.2, 0.5, 0.9):
        with pytest.warns(ConvergenceWarning, match="3 of 3"):
            fixed_point(lambda z, x: -1.5 * z + x, z0, x, backward=Reversible(steps=60, damping=damping))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_low_precision_maps_are_run_back_in_float64(dtype):
    """The error of the way back is that of float64, magnified, and not of the map's own precision."""
    w, x = parameters(dtype)
    z0 = STARTS[tanh].to(dtype)
    how = Reversible(steps=12, damping=0.5)
    z = fixed_point(tanh, z0, w, x, solver=LOOSE, backward=how).value
    assert z.dtype == dtype
    oracle = naive_reversible(tanh, z0, w, x, steps=12, damping=0.5)
    for a, b in zip(torch.autograd.grad(z.sum(), (w, x)), torch.autograd.grad(oracle.sum(), (w, x)), strict=True):
        assert torch.allclose(
            a, b, rtol=1e-5 if dtype == torch.float32 else 1e-10, atol=1e-6 if dtype == torch.float32 else 0
        )


def test_a_way_back_that_misses_the_start_is_found_out():
    w, x = parameters()
    lost = fixed_point(tanh, STARTS[tanh], w, x, solver=LOOSE, backward=Reversible(steps=60, damping=0.3)).value
    with pytest.warns(ConvergenceWarning, match=r"3 of 3 samples the way back of Reversible\(steps=60.*more damping"):
        lost.sum().backward()

    calls = 0

    def restless(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return tanh(z, w, x) + 1e-3 * calls

    z = fixed_point(restless, STARTS[tanh], solver=LOOSE, backward=Reversible(steps=8)).value
    with pytest.warns(ConvergenceWarning, match="f is not the same at each call"):
        z.sum().backward()


# SHINE


def affine(norm: float = 0.9) -> tuple[Tensor, Tensor]:
    return matrix(4, norm, F64, seed=3).requires_grad_(), normal(3, 4, dtype=F64).requires_grad_()


def straight(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return z @ a.T + b


@pytest.mark.parametrize("memory", [1, 3, 20])
def test_the_inverse_that_is_kept_is_that_of_each_sample_alone(memory):
    """However the samples come and go: one that is dropped early, one that lasts, one that never converges."""
    rate = torch.tensor([0.01, 0.9, 1.6, 0.3, 0.02, 0.8], dtype=F64)
    w, x, g = matrix(5, 1.0, F64), normal(6, 5, dtype=F64), normal(6, 5, dtype=F64, seed=9)
    solver = Broyden(memory=memory, rtol=1e-9, max_steps=30)

    class Cells:
        def __init__(self, rows: Tensor) -> None:
            self.rows = rows

        def __call__(self, z: Tensor) -> Tensor:
            return torch.tanh(rate[self.rows, None] * (z @ w.T) + x[self.rows])

        def select(self, rows: Tensor) -> Cells:
            return Cells(self.rows[rows])

    alone = []
    for i in range(6):
        one = solver.keeping_inverse()
        one.run(Cells(torch.tensor([i])), torch.zeros(1, 5, dtype=F64))
        alone.append(one.transposed_inverse_times(g[i : i + 1]))
    for cut in (True, False):
        keeping = solver.keeping_inverse()
        cells = Cells(torch.arange(6))
        found = keeping.run(cells if cut else cells.__call__, torch.zeros(6, 5, dtype=F64))
        plain = solver.run(cells, torch.zeros(6, 5, dtype=F64))
        assert torch.allclose(found.value, plain.value, rtol=1e-12)
        assert len(set(found.steps.tolist())) > 3
        assert torch.allclose(keeping.transposed_inverse_times(g), torch.cat(alone), rtol=1e-7, atol=1e-9)
    with pytest.raises(ValueError, match=r"no run of a batch of shape \(2, 5\)"):
        keeping.transposed_inverse_times(g[:2])


def test_what_shine_reports_is_the_truth_and_bounds_its_error():
    """w − w* = (I − Jᵀ)⁻¹ (w − Jᵀw − g), for w* the solution of the adjoint equation."""
    a, b = affine()
    seen: list[Solution] = []
    z = fixed_point(
        straight, torch.zeros(3, 4, dtype=F64), a, b, solver=Broyden(), backward=Shine(), report=seen.append
    ).value
    g = 1e3 * normal(3, 4, dtype=F64, seed=7)
    (w,) = torch.autograd.grad(z, b, g)
    (record,) = seen
    assert torch.allclose(record.value, w)
    matrix = torch.eye(4, dtype=F64) - a.detach().T
    residual = (w @ matrix.T - g).norm(dim=1)
    assert torch.allclose(record.residual, residual / g.norm(dim=1), rtol=1e-6)
    error = (w - torch.linalg.solve(matrix, g.T).T).norm(dim=1)
    assert (error <= residual / torch.linalg.matrix_norm(matrix, -2)).all()
    assert (residual > 0).all()


def test_shine_comes_closer_than_no_correction_at_all():
    w, x = parameters(norm=1.5)
    seen: list[Solution] = []
    z = fixed_point(
        tanh, STARTS[tanh], w, x, solver=Broyden(rtol=1e-10, max_steps=60), backward=Shine(), report=seen.append
    ).value
    loss = z.pow(2).sum()
    (ours,) = torch.autograd.grad(loss, x)
    exact = fixed_point(
        tanh, STARTS[tanh], w, x, solver=Anderson(**TIGHT), backward=Implicit(solver=GMRES(**TIGHT))
    ).value
    (theirs,) = torch.autograd.grad(exact.pow(2).sum(), x)
    free = fixed_point(tanh, STARTS[tanh], w, x, solver=Anderson(**TIGHT), backward=Unroll(steps=1)).value
    (jfb,) = torch.autograd.grad(free.pow(2).sum(), x)
    assert (ours - theirs).norm() < (jfb - theirs).norm()
    assert seen[0].evaluations == 1
    assert seen[0].steps.tolist() == [0, 0, 0]


def test_a_poor_inverse_is_reported():
    """From a start at the solution Broyden learns nothing: H = I, and w = g has the residual ‖Jᵀg‖ / ‖g‖."""
    a, b = affine(norm=3.0)
    start = torch.linalg.solve(torch.eye(4, dtype=F64) - a.detach(), b.detach().T).T
    z = fixed_point(straight, start, a, b, solver=Broyden(), backward=Shine()).value
    g = torch.linalg.svd(a.detach())[0][:, :1].T.expand(3, 4)  # ‖Jᵀg‖ = 3
    with pytest.warns(
        ConvergenceWarning, match=r"largest residual 3\.00e\+00\) with Shine\(solver=None\).*Shine\(solver=GMRES"
    ):
        (ours,) = torch.autograd.grad(z, b, g)
    assert torch.allclose(ours, g)


@pytest.mark.parametrize("then", [GMRES(**TIGHT), Anderson(**TIGHT)], ids=["gmres", "anderson"])
def test_shine_with_a_solver_is_the_implicit_gradient_to_any_order(then):
    def solve(w: Tensor, x: Tensor) -> Tensor:
        return fixed_point(tanh, STARTS[tanh], w, x, solver=Broyden(**TIGHT), backward=Shine(solver=then)).value

    assert gradcheck(solve, parameters())
    assert gradgradcheck(solve, parameters())


def test_the_inverse_is_a_head_start():
    w, x = parameters(norm=1.2)
    spent = []
    for how in (Shine(solver=Picard(rtol=1e-3, max_steps=200)), Implicit(solver=Picard(rtol=1e-3, max_steps=200))):
        seen: list[Solution] = []
        z = fixed_point(
            tanh, STARTS[tanh], w, x, solver=Broyden(rtol=1e-10, max_steps=60), backward=how, report=seen.append
        ).value
        z.pow(2).sum().backward()
        spent.append(int(seen[0].steps.max()))
    assert spent[0] < spent[1]


def test_shine_has_no_second_derivative_of_its_own():
    w, x = parameters()
    z = fixed_point(tanh, STARTS[tanh], w, x, solver=Broyden(), backward=Shine()).value
    with pytest.raises(RuntimeError, match=r"gradient of Shine\(\) can't be differentiated.*Shine\(solver=GMRES"):
        torch.autograd.grad(z.sum(), w, create_graph=True)


def test_shine_needs_broyden():
    w, x = parameters()
    for solver in (Anderson(), Newton()):
        with pytest.raises(TypeError, match=r"Shine\(solver=None\) uses the inverse that Broyden.*solver=Broyden"):
            fixed_point(tanh, STARTS[tanh], w, x, solver=solver, backward=Shine())


def test_the_new_backwards_are_values_with_a_text_form():
    for how in (
        Unroll(steps=4, start="z0", checkpoint=True),
        Reversible(steps=3, damping=0.25),
        Shine(),
        Shine(solver=GMRES(rtol=1e-2)),
    ):
        assert backward.parse(repr(how)) == how
        assert hash(backward.parse(repr(how))) == hash(how)
    for cls, option, value in (
        (Unroll, "start", "zero"),
        (Reversible, "steps", 0),
        (Reversible, "damping", 0.0),
        (Reversible, "damping", 1.0),
    ):
        with pytest.raises(ValueError, match=rf"{cls.__name__}\({option}={value!r}\): {option} must be"):
            cls(**{option: value})
    with pytest.raises(TypeError, match=r"Shine\(solver=GMRES\): solver must be a Solver or None"):
        Shine(solver=GMRES)


@pytest.mark.parametrize("how", [Unroll(steps=2, start="z0"), Reversible(steps=2)])
def test_the_warning_names_who_was_at_work(how):
    with pytest.warns(ConvergenceWarning, match=rf"with {type(how).__name__}\(steps=2.*Try more steps \(steps=\)"):
        fixed_point(lambda z: 0.9 * z + 1, torch.zeros(2, 1), backward=how)


UNROLLS = [Unroll(steps=1), Unroll(steps=7, damping=0.3), Unroll(steps=9, start="z0")]


def transforms(solve: Callable[[Tensor], Tensor], w: Tensor, v: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The derivative of ``solve`` at w along v, in every mode; and that of the sum, and of two copies."""

    def dual() -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(solve(forward_ad.make_dual(w, v))).tangent

    def reverse() -> Tensor:
        at = w.clone().requires_grad_()
        return (torch.autograd.functional.jacobian(solve, at) * v).sum((-1, -2))

    return {
        "reverse": reverse,
        "dual numbers": dual,
        "jvp": lambda: torch.func.jvp(solve, (w,), (v,))[1],
        "jacrev": lambda: (torch.func.jacrev(solve)(w) * v).sum((-1, -2)),
        "jacfwd": lambda: (torch.func.jacfwd(solve)(w) * v).sum((-1, -2)),
        "vmap of jvp": lambda: torch.vmap(lambda a: torch.func.jvp(solve, (a,), (v,))[1])(torch.stack([w, 2 * w]))[0],
    }


@pytest.mark.parametrize("how", UNROLLS, ids=repr)
@pytest.mark.parametrize("mode", ["dual numbers", "jvp", "jacrev", "jacfwd", "vmap of jvp"])
def test_unrolling_is_differentiated_in_every_mode(how, mode):
    w, x = matrix(3, 0.6, F64), normal(2, 3, dtype=F64)

    def solve(w: Tensor) -> Tensor:
        solver = Picard(rtol=0.5 if how.start == "z0" else 1e-12, max_steps=200)
        return fixed_point(lambda z: torch.tanh(z @ w + x), torch.zeros_like(x), solver=solver, backward=how).value

    modes = transforms(solve, w, w.flip(0))
    assert torch.allclose(modes[mode](), modes["reverse"](), rtol=1e-10)


@pytest.mark.parametrize("how", [Reversible(), Shine(), Shine(solver=GMRES())], ids=repr)
@pytest.mark.parametrize("mode", ["dual numbers", "jvp", "jacrev", "jacfwd", "vmap of jvp"])
def test_the_other_modes_of_reversible_and_shine_are_refused(how, mode):
    w, x = matrix(3, 0.6, F64), normal(2, 3, dtype=F64)

    def solve(w: Tensor) -> Tensor:
        return fixed_point(
            lambda z: torch.tanh(z @ w + x), torch.zeros_like(x), solver=Broyden(rtol=1e-9), backward=how
        ).value

    with pytest.raises((NotImplementedError, RuntimeError)):
        transforms(solve, w, w.flip(0))[mode]()


@pytest.mark.parametrize("how", [Implicit(), *UNROLLS], ids=repr)
def test_where_to_start_has_no_derivative_and_does_not_change_the_record(how):
    records = []

    def solve(z0: Tensor) -> Tensor:
        solver = Picard(rtol=0.1, atol=0.0)
        records.append(fixed_point(lambda z: 0.5 * z + 1, z0, solver=solver, backward=how))
        return records[-1].value.sum()

    start = torch.ones(2, 3, dtype=F64)
    solve(start)
    assert not torch.func.grad(solve)(start).any()
    assert torch.allclose(records[1].residual, records[0].residual)
    assert torch.equal(records[1].status, records[0].status)
