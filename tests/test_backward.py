"""Gradients: every backward and adjoint solver against finite differences, closed forms and long unrolling."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import matrix, monotone, normal
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from implicitnets import ConvergenceWarning, Implicit, Solution, Unroll, backward, fixed_point
from implicitnets.solvers import (
    GMRES,
    Anderson,
    BiCGSTAB,
    Broyden,
    Dense,
    Newton,
    Picard,
    SciPy,
    Solver,
    TorchDEQ,
)

F64 = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14, "max_steps": 500}


@dataclass
class Layer:
    """A map of a state and parameters, its parameters, and a start."""

    f: Callable[..., Any]
    parameters: tuple[Tensor, ...]
    z0: Any
    contraction: bool = True


def tanh() -> Layer:
    return Layer(
        lambda z, w, x: torch.tanh(z @ w.T + x),
        (matrix(4, 0.8, F64), normal(3, 4, dtype=F64)),
        torch.zeros(3, 4, dtype=F64),
    )


def relu() -> Layer:
    return Layer(
        lambda z, w, x: torch.relu(z @ w.T + x),
        (matrix(4, 0.7, F64), normal(3, 4, dtype=F64)),
        torch.zeros(3, 4, dtype=F64),
    )


def monotone_relu() -> Layer:
    w, pre = monotone(4, 1.2, F64), normal(3, 4, dtype=F64)
    assert torch.linalg.matrix_norm(w, 2) > 2
    x = pre - pre.relu() @ w.T
    return Layer(lambda z, w, x: torch.relu(z @ w.T + x), (w, x), torch.zeros(3, 4, dtype=F64), contraction=False)


def convolution() -> Layer:
    kernel, x = 0.1 * normal(1, 1, 3, 3, dtype=F64), normal(2, 1, 2, 3, dtype=F64)
    return Layer(
        lambda z, k, x: functional.softplus(functional.conv2d(z, k, padding=1) + x) / 2,
        (kernel, x),
        torch.zeros(2, 1, 2, 3, dtype=F64),
    )


def tree() -> Layer:
    def f(z: dict[str, Tensor], a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {
            "p": torch.tanh(z["p"] @ a + z["q"].mean((1, 2))[:, None]),
            "q": 0.3 * z["q"] + 0.2 * z["p"][:, :1, None] * b,
        }

    z0 = {"p": torch.zeros(2, 2, dtype=F64), "q": torch.zeros(2, 1, 2, dtype=F64)}
    return Layer(f, (matrix(2, 0.5, F64), normal(2, 1, 2, dtype=F64) + 2), z0)


LAYERS = {f.__name__: f for f in (tanh, relu, monotone_relu, convolution, tree)}
ADJOINTS: dict[str, Solver] = {
    "gmres": GMRES(**TIGHT),
    "gmres-short": GMRES(restart=3, **TIGHT),
    "bicgstab": BiCGSTAB(**TIGHT),
    "dense": Dense(**TIGHT),
    "picard": Picard(**TIGHT),
    "picard-damped": Picard(damping=0.3, **TIGHT),
    "anderson": Anderson(**TIGHT),
    "broyden": Broyden(**TIGHT),
    "newton": Newton(**TIGHT),
    "scipy": SciPy("hybr", **TIGHT),
    "torchdeq": TorchDEQ("fixed_point_iter", **TIGHT),
}
FORWARDS: dict[str, Solver] = {
    "picard": Picard(**TIGHT),
    "anderson": Anderson(**TIGHT),
    "broyden": Broyden(**TIGHT),
    "newton": Newton(**TIGHT),
    "torchdeq": TorchDEQ("fixed_point_iter", **TIGHT),
}
PLAIN = ("picard", "picard-damped", "torchdeq")  # need a contraction


def pairs(adjoints: Any) -> list[tuple[str, str]]:
    return [(n, a) for n in LAYERS for a in adjoints if LAYERS[n]().contraction or a not in PLAIN]


def equilibrium(layer: Layer, *parameters: Tensor, solver: Solver, how: Any) -> Any:
    value = fixed_point(layer.f, layer.z0, *parameters, solver=solver, backward=how).value
    return tuple(value.values()) if isinstance(value, dict) else value


def leaf(layer: Layer) -> list[Tensor]:
    return [p.clone().requires_grad_() for p in layer.parameters]


def unrolled(layer: Layer, *parameters: Tensor, steps: int = 400, damping: float = 0.0) -> Any:
    """The naive oracle: backpropagate through the iteration."""
    z = layer.z0
    for _ in range(steps):
        new = layer.f(z, *parameters)
        if isinstance(z, dict):
            z = {k: damping * z[k] + (1 - damping) * new[k] for k in z}
        else:
            z = damping * z + (1 - damping) * new
    return tuple(z.values()) if isinstance(z, dict) else z


def total(value: Any) -> Tensor:
    """A scalar of a state that is not symmetric in its entries."""
    parts = value if isinstance(value, tuple) else (value,)
    return sum((p * torch.linspace(1, 2, p.numel(), dtype=F64).view_as(p)).sum() + p.pow(3).sum() for p in parts)


@pytest.mark.parametrize(("name", "adjoint"), pairs(ADJOINTS))
def test_gradients_equal_finite_differences(name, adjoint):
    layer = LAYERS[name]()
    how = Implicit(solver=ADJOINTS[adjoint])
    assert gradcheck(lambda *p: equilibrium(layer, *p, solver=Anderson(**TIGHT), how=how), leaf(layer))


@pytest.mark.parametrize(("name", "forward"), pairs(FORWARDS))
def test_gradients_do_not_depend_on_the_forward_solver(name, forward):
    layer = LAYERS[name]()
    how = Implicit(solver=Dense(**TIGHT))
    assert gradcheck(lambda *p: equilibrium(layer, *p, solver=FORWARDS[forward], how=how), leaf(layer))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("adjoint", ["gmres", "dense", "anderson"])
def test_second_derivatives_equal_finite_differences(name, adjoint):
    layer = LAYERS[name]()
    how = Implicit(solver=ADJOINTS[adjoint])
    assert gradgradcheck(lambda *p: equilibrium(layer, *p, solver=Anderson(**TIGHT), how=how), leaf(layer))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_derivatives_equal_those_of_long_unrolling(name, order):
    layer = LAYERS[name]()

    def derivative(solve: Callable[..., Any]) -> list[Tensor]:
        parameters = leaf(layer)
        scalar = total(solve(*parameters))
        for _ in range(order - 1):
            scalar = sum(
                g.pow(2).sum()
                for g in torch.autograd.grad(scalar, parameters, create_graph=True, materialize_grads=True)
            )
        return list(torch.autograd.grad(scalar, parameters, materialize_grads=True))

    ours = derivative(lambda *p: equilibrium(layer, *p, solver=Anderson(**TIGHT), how=Implicit(solver=GMRES(**TIGHT))))
    steps, damping = (200, 0.0) if layer.contraction else (600, 0.8)
    naive = derivative(lambda *p: unrolled(layer, *p, steps=steps, damping=damping))
    for a, b in zip(ours, naive, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-8 * (1 + float(b.abs().max())))


@pytest.mark.parametrize(
    "how", [Implicit(), Implicit(solver=Anderson()), Implicit(solver=Picard()), Unroll(steps=3)], ids=repr
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(exponent=st.integers(-8, 6))
@settings(max_examples=15, deadline=None)
def test_the_gradient_of_a_multiple_is_the_multiple_of_the_gradient(how, dtype, exponent):
    w, x = matrix(6, 0.9, dtype).requires_grad_(), normal(5, 6, dtype=dtype)
    z = fixed_point(lambda z, x: torch.tanh(z @ w.T + x), torch.zeros_like(x), x, backward=how).value
    loss = z.pow(2).mean()
    (one,) = torch.autograd.grad(loss, w, retain_graph=True)
    c = 10.0**exponent
    (many,) = torch.autograd.grad(c * loss, w)
    assert torch.allclose(
        many / c, one, rtol=1e-3 if dtype == torch.float32 else 1e-7, atol=float(one.abs().max()) * 1e-5
    )


def test_the_solution_of_an_affine_map_has_its_closed_form_gradient():
    a, b = matrix(5, 0.9, F64).requires_grad_(), normal(3, 5, dtype=F64).requires_grad_()
    z = fixed_point(
        lambda z: z @ a.T + b, torch.zeros_like(b), solver=Anderson(**TIGHT), backward=Implicit(solver=GMRES(**TIGHT))
    ).value
    inverse = torch.linalg.inv(torch.eye(5, dtype=F64) - a)
    closed = b @ inverse.T
    g = normal(3, 5, dtype=F64, seed=4)
    for ours, theirs in zip(torch.autograd.grad(z, (a, b), g), torch.autograd.grad(closed, (a, b), g), strict=True):
        assert torch.allclose(ours, theirs)


# Unroll


@pytest.mark.parametrize("k", [1, 2, 5, 60])
def test_unroll_without_damping_is_the_neumann_series(k):
    layer = tanh()
    w, x = leaf(layer)
    z = fixed_point(layer.f, layer.z0, w, x, solver=Anderson(**TIGHT), backward=Unroll(steps=k)).value
    g = normal(3, 4, dtype=F64, seed=7)
    jacobian = (1 - z.detach() ** 2)[:, :, None] * w.detach()
    u, cotangent = g.clone(), g
    for _ in range(k - 1):
        cotangent = torch.einsum("bij,bi->bj", jacobian, cotangent)
        u = u + cotangent
    expected = u * (1 - z.detach() ** 2)  # (∂f/∂x)ᵀ u
    assert torch.allclose(torch.autograd.grad(z, x, g)[0], expected, rtol=1e-8)


def test_unroll_keeps_the_value_of_the_solver_and_counts_its_steps():
    layer = tanh()
    calls = 0

    def f(z: Tensor, w: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return layer.f(z, w, x)

    w, x = leaf(layer)
    for how in (Unroll(steps=3, damping=0.5), Unroll(), Implicit()):
        calls = 0
        found = fixed_point(f, layer.z0, w, x, backward=how)
        assert found.evaluations == calls
        plain = Anderson().run(lambda z: layer.f(z, *layer.parameters), layer.z0)
        assert torch.equal(found.value, plain.value)
        assert torch.allclose(found.residual, (layer.f(found.value, w, x) - found.value).norm(dim=1))


def test_the_damped_unroll_is_the_phantom_gradient():
    layer = tanh()
    w, x = leaf(layer)
    z = fixed_point(layer.f, layer.z0, w, x, solver=Anderson(**TIGHT), backward=Unroll(steps=4, damping=0.25)).value
    path = z.detach()
    for _ in range(4):
        path = 0.25 * path + 0.75 * layer.f(path, w, x)
    g = normal(3, 4, dtype=F64, seed=7)
    for ours, naive in zip(torch.autograd.grad(z, (w, x), g), torch.autograd.grad(path, (w, x), g), strict=True):
        assert torch.allclose(ours, naive)


# what is reached


EITHER = pytest.mark.parametrize("how", [Implicit(solver=GMRES(**TIGHT)), Unroll(steps=80)], ids=["implicit", "unroll"])


@EITHER
def test_everything_that_f_closes_over_gets_its_gradient(how):
    """A leaf, what was computed from it, a buffer that requires grad, parameters, a list, and one used twice."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3, dtype=F64)
            self.register_buffer("scale", torch.tensor(0.3, dtype=F64, requires_grad=True))
            self.plain = [torch.rand(3, dtype=F64, requires_grad=True)]

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return self.scale * torch.tanh(self.linear(z) + x) + self.plain[0] * 0.1

    cell, w = Cell(), matrix(3, 0.5, F64).requires_grad_()
    x = normal(2, 3, dtype=F64).requires_grad_()
    encoded = torch.sin(x @ w)  # depends on w, which f uses too
    tensors = [w, x, cell.scale, cell.plain[0], *cell.parameters()]

    def f(z: Tensor) -> Tensor:
        return 0.5 * cell(z, encoded + x) + 0.3 * torch.cat([z[:, :1], z[:, 1:]], 1) @ w

    z0 = torch.zeros(2, 3, dtype=F64)
    ours = torch.autograd.grad(
        total(fixed_point(f, z0, solver=Anderson(**TIGHT), backward=how).value), tensors, retain_graph=True
    )
    z = z0
    for _ in range(150):
        z = f(z)
    for a, b in zip(ours, torch.autograd.grad(total(z), tensors), strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)


class Identity(torch.autograd.Function):
    """Hides its input from operations, as distributed wrappers do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def test_a_tensor_that_cannot_be_followed_is_refused_with_the_way_out():
    w = matrix(3, 0.5, F64).requires_grad_()
    hidden, z0 = w * 1.0, torch.zeros(2, 3, dtype=F64)
    z = fixed_point(lambda z: torch.tanh(z @ Identity.apply(hidden) + 1), z0).value
    with pytest.raises(RuntimeError, match=r"pass that tensor as an input, fixed_point\(f, z0, tensor\)"):
        z.sum().backward()
    tight = {"solver": Anderson(**TIGHT), "backward": Implicit(solver=GMRES(**TIGHT))}
    z = fixed_point(lambda z, h: torch.tanh(z @ Identity.apply(h) + 1), z0, hidden, **tight).value
    plain = fixed_point(lambda z: torch.tanh(z @ w + 1), z0, **tight).value
    assert torch.allclose(torch.autograd.grad(total(z), w)[0], torch.autograd.grad(total(plain), w)[0])


def test_a_leaf_behind_an_opaque_function_is_found_all_the_same():
    w, z0 = matrix(3, 0.5, F64).requires_grad_(), torch.zeros(2, 3, dtype=F64)
    z = fixed_point(lambda z: torch.tanh(z @ Identity.apply(w) + 1), z0).value
    assert torch.autograd.grad(z.sum(), w)[0].abs().sum() > 0


def test_the_start_gets_no_gradient_and_a_constant_map_is_no_trouble():
    z0 = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    x = normal(2, 3, dtype=F64).requires_grad_()
    z = fixed_point(lambda z: 0.5 * torch.tanh(z) + x, z0).value
    z.sum().backward()
    assert z0.grad is None
    assert x.grad is not None
    z = fixed_point(lambda z: x * 1.0, torch.zeros(2, 3, dtype=F64)).value
    assert torch.allclose(torch.autograd.grad(z.sum(), x)[0], torch.ones_like(x))


def test_without_a_reason_nothing_requires_grad():
    x = normal(2, 3, dtype=F64)
    assert not fixed_point(lambda z: torch.cos(z + x), torch.zeros_like(x)).value.requires_grad
    x.requires_grad_()
    with torch.no_grad():
        assert not fixed_point(lambda z: torch.cos(z + x), torch.zeros_like(x)).value.requires_grad
    with torch.inference_mode():
        assert fixed_point(lambda z: torch.cos(0.5 * z + x), torch.zeros(2, 3, dtype=F64)).converged.all()


@EITHER
def test_an_empty_batch_has_zero_gradients(how):
    w = matrix(3, 0.5, F64).requires_grad_()
    z = fixed_point(lambda z: torch.tanh(z @ w), torch.zeros(0, 3, dtype=F64), backward=how).value
    z.sum().backward()
    assert w.grad is not None
    assert (w.grad == 0).all()


# honesty


def test_a_weight_changed_in_place_between_forward_and_backward_is_an_error():
    for requires_grad in (True, False):
        cell = nn.Linear(3, 3, dtype=F64)
        cell.weight.requires_grad_(requires_grad)
        z = fixed_point(cell, torch.zeros(2, 3, dtype=F64)).value
        with torch.no_grad():
            cell.weight.mul_(0.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()


def test_an_input_changed_in_place_is_an_error_too():
    w, x = matrix(3, 0.5, F64).requires_grad_(), normal(2, 3, dtype=F64)
    z = fixed_point(lambda z, x: torch.tanh(z @ w + x), torch.zeros_like(x), x).value
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_an_adjoint_that_does_not_converge_says_so_and_is_on_record():
    w, x = matrix(4, 0.9, F64).requires_grad_(), normal(3, 4, dtype=F64)
    seen: list[Solution] = []
    z = fixed_point(
        lambda z: torch.tanh(z @ w + x),
        torch.zeros_like(x),
        solver=Anderson(**TIGHT),
        backward=Implicit(solver=Picard(max_steps=2)),
        report=seen.append,
    ).value
    with pytest.warns(ConvergenceWarning, match=r"gradient of a fixed point.*3 of 3 samples did not converge"):
        z.sum().backward()
    (record,) = seen
    assert record.value.shape == z.shape
    assert not record.value.requires_grad
    assert record.steps.tolist() == [2, 2, 2]
    assert record.evaluations == 2
    jacobian = (1 - z.detach() ** 2)[:, None] * w.detach()[None]  # z -> z @ w
    true = record.value - torch.einsum("bji,bi->bj", jacobian, record.value) - 1
    assert torch.allclose(record.residual, true.norm(dim=1) / 2, rtol=1e-6)  # ‖g‖ = ‖(1, 1, 1, 1)‖ = 2


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch.func itself uses it
def test_newton_solves_the_adjoint_equation_in_one_step():
    seen: list[Solution] = []
    w = matrix(6, 0.95, F64).requires_grad_()
    how = Implicit(solver=Newton(linear=GMRES(**TIGHT), rtol=1e-8))
    fixed_point(
        lambda z: torch.tanh(z @ w + 1), torch.zeros(3, 6, dtype=F64), solver=Anderson(**TIGHT), backward=how,
        report=seen.append,
    ).value.sum().backward()  # fmt: skip
    assert seen[0].steps.tolist() == [1, 1, 1]


# use


@EITHER
def test_two_calls_before_one_backward_and_one_call_twice(how):
    w = matrix(3, 0.5, F64).requires_grad_()

    def solve(x: Tensor) -> Tensor:
        return fixed_point(
            lambda z: torch.tanh(z @ w + x), torch.zeros_like(x), solver=Anderson(**TIGHT), backward=how
        ).value

    first, second = normal(2, 3, dtype=F64, seed=1), normal(2, 3, dtype=F64, seed=2)
    a, b = solve(first), solve(second)
    (both,) = torch.autograd.grad(total(a) + total(b), w, retain_graph=True)
    (again,) = torch.autograd.grad(total(a) + total(b), w)
    apart = torch.autograd.grad(total(solve(first)), w)[0] + torch.autograd.grad(total(solve(second)), w)[0]
    assert torch.equal(both, again)
    assert torch.allclose(both, apart)


def test_a_fixed_point_inside_a_fixed_point():
    w = matrix(2, 0.4, F64)
    x = normal(2, 2, dtype=F64)
    how: dict[str, Any] = {"solver": Anderson(**TIGHT), "backward": Implicit(solver=GMRES(**TIGHT))}

    def solve(w: Tensor, x: Tensor) -> Tensor:
        def outer(z: Tensor) -> Tensor:
            return 0.5 * fixed_point(lambda y: torch.tanh(y @ w + z + x), torch.zeros_like(x), **how).value

        return fixed_point(outer, torch.zeros_like(x), **how).value

    assert gradcheck(solve, (w.requires_grad_(), x.requires_grad_()))


def test_nothing_is_kept_alive():
    """No cycle: the graph goes when its last user goes, without the garbage collector."""
    gc.disable()
    try:
        x = normal(2, 3, dtype=F64).requires_grad_()
        solution = fixed_point(lambda z: 0.5 * torch.tanh(z) + x, torch.zeros(2, 3, dtype=F64))
        loss = solution.value.sum()
        node = weakref.ref(solution.value.grad_fn)
        loss.backward()
        del solution, loss
        assert node() is None
    finally:
        gc.enable()


def test_memory_does_not_grow_with_the_steps():
    """What is saved for the backward is the solution and the operands, however long the solve was."""
    w, x = matrix(3, 0.99, F64).requires_grad_(), normal(2, 3, dtype=F64)

    def saved(rtol: float) -> int:
        count = 0

        def pack(t: Tensor) -> Tensor:
            nonlocal count
            count += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            found = fixed_point(
                lambda z, x: z @ w + x, torch.zeros_like(x), x, solver=Picard(rtol=rtol, max_steps=3000)
            )
        assert found.converged.all()
        del found
        return count

    assert saved(1e-1) == saved(1e-9)


def test_backwards_are_values_with_a_text_form():
    for how in (Implicit(), Implicit(solver=Anderson(memory=3)), Unroll(), Unroll(steps=4, damping=0.25)):
        assert backward.parse(repr(how)) == how
    assert backward.parse("unroll") == Unroll()
    with pytest.raises(TypeError, match=r"is a solver, not a backward: write Implicit\(solver=Anderson"):
        backward.parse("anderson")
    with pytest.raises(ValueError, match="steps"):
        Unroll(steps=0)
    with pytest.raises(ValueError, match="damping"):
        Unroll(damping=1.0)
    with pytest.raises(TypeError, match="solver must be a Solver"):
        Implicit(solver=Anderson)
    with pytest.raises(TypeError, match="step"):
        Unroll(step=1)
