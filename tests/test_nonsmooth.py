"""Derivatives at kinks are those that were chosen; elsewhere, and in value, nothing changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from problems import monotone, normal
from torch import Tensor
from torch.nn import functional

from implicitnets import analysis, nonsmooth
from implicitnets.backward.capture import Substitution
from implicitnets.nonsmooth import Autograd, Left, Midpoint, Random, Right, Slope
from implicitnets.solvers import Anderson, Dense, Fallback, Newton, Picard

# torch itself uses what it deprecates when forward-mode differentiation is first used
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")
DOUBLE = torch.float64
SELECTIONS = [Autograd(), Left(), Right(), Midpoint(), Slope(0.3), Random(1)]
SHARES = {Left(): 0.0, Right(): 1.0, Midpoint(): 0.5, Slope(0.3): 0.3, Slope(1): 1.0}
each_selection = pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
each_share = pytest.mark.parametrize(("selection", "s"), SHARES.items(), ids=repr)


@dataclass
class Kink:
    """A function with a kink at ``at``, where its slopes are ``left`` and ``right``."""

    f: Callable[[Tensor], Tensor]
    at: float
    left: float
    right: float


zero = torch.zeros((), dtype=DOUBLE)
ELEMENTWISE = {
    "torch.relu": Kink(torch.relu, 0, 0, 1),
    "functional.relu": Kink(functional.relu, 0, 0, 1),
    "Tensor.relu": Kink(lambda x: x.relu(), 0, 0, 1),
    "relu_": Kink(lambda x: (x * 1).relu_(), 0, 0, 1),
    "inplace": Kink(lambda x: torch.nn.ReLU(inplace=True)(x * 1), 0, 0, 1),
    "aten": Kink(torch.ops.aten.relu, 0, 0, 1),
    "leaky": Kink(lambda x: functional.leaky_relu(x, 0.2), 0, 0.2, 1),
    "prelu": Kink(lambda x: functional.prelu(x, torch.full((1,), 0.2, dtype=DOUBLE)), 0, 0.2, 1),
    "elu": Kink(lambda x: functional.elu(x, 0.4), 0, 0.4, 1),
    "selu": Kink(functional.selu, 0, 1.0507009873554805 * 1.6732632423543772, 1.0507009873554805),
    "abs": Kink(torch.abs, 0, -1, 1),
    "__abs__": Kink(abs, 0, -1, 1),
    "threshold": Kink(lambda x: functional.threshold(x, 0.5, 0.5), 0.5, 0, 1),
    "clamp low": Kink(lambda x: x.clamp(-0.5, 2), -0.5, 0, 1),
    "clamp high": Kink(lambda x: torch.clamp(x, -0.5, 2), 2, 1, 0),
    "clip": Kink(lambda x: torch.clip(x, max=2), 2, 1, 0),
    "clamp_": Kink(lambda x: (x * 1).clamp_(min=0.5), 0.5, 0, 1),
    "clamp by tensor": Kink(lambda x: x.clamp(zero - 0.5, zero + 2), 2, 1, 0),
    "clamp_min": Kink(lambda x: x.clamp_min(0.5), 0.5, 0, 1),
    "clamp_max": Kink(lambda x: torch.clamp_max(x, 0.5), 0.5, 1, 0),
    "hardtanh low": Kink(functional.hardtanh, -1, 0, 1),
    "hardtanh high": Kink(torch.nn.Hardtanh(), 1, 1, 0),
    "relu6": Kink(functional.relu6, 6, 1, 0),
    "hardsigmoid": Kink(functional.hardsigmoid, -3, 0, 1 / 6),
    "hardsigmoid high": Kink(functional.hardsigmoid, 3, 1 / 6, 0),
    "hardswish": Kink(functional.hardswish, -3, 0, -0.5),
    "hardswish high": Kink(functional.hardswish, 3, 1.5, 1),
    "softshrink low": Kink(functional.softshrink, -0.5, 1, 0),
    "softshrink high": Kink(functional.softshrink, 0.5, 0, 1),
    "soft threshold": Kink(lambda x: x.sign() * torch.relu(x.abs() - 0.5), 0.5, 0, 1),
    "maximum": Kink(lambda x: torch.maximum(x, zero), 0, 0, 1),
    "max": Kink(lambda x: torch.max(x, zero), 0, 0, 1),
    "minimum": Kink(lambda x: torch.minimum(x, zero), 0, 0, 1),  # the share of the first argument
    "max of axis": Kink(lambda x: torch.stack((x, torch.zeros_like(x)), -1).max(-1).values, 0, 0, 1),
    "min of axis": Kink(lambda x: torch.stack((x, torch.zeros_like(x)), 0).min(0)[0], 0, 0, 1),
    "amax": Kink(lambda x: torch.stack((x, torch.zeros_like(x)), -1).amax(-1), 0, 0, 1),
    "amin": Kink(lambda x: torch.stack((x, torch.zeros_like(x)), -1).amin((-1,)), 0, 0, 1),
    "max_pool1d": Kink(
        lambda x: functional.max_pool1d(torch.stack((x, torch.zeros_like(x)), -1)[None], 2)[0, :, 0], 0, 0, 1
    ),
    "sort": Kink(lambda x: torch.stack((x, torch.zeros_like(x)), -1).sort(-1, descending=True).values[..., 0], 0, 0, 1),
    "topk": Kink(lambda x: torch.stack((x, torch.zeros_like(x)), -1).topk(1).values[..., 0], 0, 0, 1),
}
each_kink = pytest.mark.parametrize("name", ELEMENTWISE)


def under(selection, f):
    def chosen(*args):
        with selection.active():
            return f(*args)

    return chosen


def slopes(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


@each_selection
@each_kink
def test_the_value_is_the_same_and_so_is_the_derivative_elsewhere(name, selection):
    kink = ELEMENTWISE[name]
    x = torch.cat((normal(40, dtype=DOUBLE) * 4, torch.tensor([kink.at, 0.0, -0.0, torch.inf], dtype=DOUBLE)))
    chosen = under(selection, kink.f)
    assert torch.equal(chosen(x), kink.f(x))
    assert torch.equal(chosen(x * torch.nan).isnan(), kink.f(x * torch.nan).isnan())
    rtol = 1e-7 if "hardsigmoid" in name else 1e-14  # torch rounds the slope 1/6 of hardsigmoid to float32
    assert torch.allclose(slopes(chosen, x[:40]), slopes(kink.f, x[:40]), rtol=rtol, atol=0)


@each_share
@each_kink
def test_the_derivative_at_the_kink_is_the_chosen_one_under_every_transform(name, selection, s):
    kink = ELEMENTWISE[name]
    x = torch.full((3,), kink.at, dtype=DOUBLE)
    chosen = under(selection, kink.f)
    expected = torch.full_like(x, (1 - s) * kink.left + s * kink.right)
    assert torch.allclose(slopes(chosen, x), expected, atol=1e-12)
    assert torch.allclose(torch.func.jacrev(chosen)(x), expected.diag(), atol=1e-12)
    assert torch.allclose(torch.func.jvp(chosen, (x,), (torch.ones_like(x),))[1], expected, atol=1e-12)
    if name != "prelu":
        assert torch.allclose(torch.func.jacfwd(chosen)(x), expected.diag(), atol=1e-12)
    with torch.autograd.forward_ad.dual_level():
        dual = chosen(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        assert torch.allclose(torch.autograd.forward_ad.unpack_dual(dual).tangent, expected, atol=1e-12)
    if "pool" not in name and name != "prelu":
        each = torch.func.vmap(torch.func.grad(lambda t: chosen(t[None])[0]))(x)
        assert torch.allclose(each, expected, atol=1e-12)


@pytest.mark.parametrize("name", ["torch.relu", "clamp high", "softshrink low", "amax", "max_pool1d", "sort"])
@each_selection
def test_derivatives_of_second_order_see_the_same_element(name, selection):
    kink = ELEMENTWISE[name]
    x = torch.tensor([kink.at, kink.at + 0.3, kink.at - 0.3], dtype=DOUBLE)
    chosen = under(selection, kink.f)
    first = slopes(chosen, x)
    hessian = torch.func.hessian(lambda t: (chosen(t) ** 2).sum() / 2)(x)  # f is linear on each side
    assert torch.allclose(hessian, first.square().diag(), atol=1e-12)
    away = x[1:].clone().requires_grad_()
    assert torch.autograd.gradcheck(chosen, away)
    assert torch.autograd.gradgradcheck(chosen, away)


@each_selection
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_max_pooling_with_all_options(dims, selection):
    pool = getattr(functional, f"max_pool{dims}d")
    x = normal(2, 3, *[9] * dims, dtype=DOUBLE)
    for stride, padding, dilation, ceil in itertools.product((None, 2), (0, 1), (1, 2), (False, True)):

        def f(x, options=(stride, padding, dilation, ceil)):
            return pool(x, 3, *options)

        assert torch.equal(under(selection, f)(x), f(x))
        assert torch.allclose(slopes(under(selection, f), x), slopes(f, x))
    tied = slopes(under(selection, lambda x: pool(x, 3)), torch.zeros(1, 1, *[3] * dims, dtype=DOUBLE)).flatten()
    assert abs(float(tied.sum()) - 1) < 1e-12
    if selection == Midpoint():
        assert torch.allclose(tied, torch.full_like(tied, 1 / 3**dims))
    elif selection != Autograd() and selection != Random(1):
        s = SHARES[selection]
        assert (float(tied[0]), float(tied[-1])) == (s, 1 - s)


def test_ties_of_three_and_infinite_ones():
    x = torch.tensor([[1.0, 3, 0, 3, 3], [-torch.inf] * 5, [torch.inf, 0, 0, torch.inf, 0]], dtype=DOUBLE)
    for selection in SELECTIONS:
        for f in (lambda x: x.amax(1), lambda x: x.max(1).values, lambda x: x.sort(1).values, lambda x: x.topk(2)[0]):
            assert torch.equal(under(selection, f)(x), f(x))
            assert slopes(under(selection, f), x).isfinite().all()
    slope = slopes(under(Slope(0.3), lambda x: x.max(1).values), x)[0]
    assert torch.allclose(slope, torch.tensor([0, 0.3, 0, 0, 0.7], dtype=DOUBLE))
    assert torch.allclose(slopes(under(Midpoint(), torch.max), x[0]), torch.tensor([0, 1, 0, 1, 1], dtype=DOUBLE) / 3)


def test_random_is_one_element_for_a_sample_alone_in_a_batch_and_under_vmap():
    x = torch.zeros(4, 6, dtype=DOUBLE)
    f = under(Random(7), lambda x: torch.relu(x).sum(-1))
    batch = slopes(f, x)
    assert torch.equal(batch, slopes(f, x))
    assert torch.equal(batch[2:3], slopes(f, x[2:3]))
    assert torch.equal(batch, torch.func.vmap(torch.func.grad(f))(x))
    assert len(batch[0].unique()) == 6
    assert ((batch >= 0) & (batch <= 1)).all()
    assert not torch.equal(batch, slopes(under(Random(8), lambda x: torch.relu(x).sum(-1)), x))


def test_the_inside_of_other_modes_is_seen_in_either_order():
    old, new = normal(3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    with Right().active(), Substitution([old], [new]):
        out = torch.relu(old)
    assert torch.equal(torch.autograd.grad(out.sum(), new)[0], torch.ones_like(new))
    with Substitution([old], [new]), Right().active():
        out = torch.relu(old)
    assert torch.equal(torch.autograd.grad(out.sum(), new)[0], torch.ones_like(new))


def test_integers_pass_and_autocast_works():
    with Right().active():
        assert torch.equal(torch.relu(torch.arange(-2, 3)), torch.tensor([0, 0, 0, 1, 2]))
        assert torch.arange(5).max() == 4
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.relu(torch.zeros(2, 2) @ torch.zeros(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("median", torch.median),
        ("hardshrink", functional.hardshrink),
        ("threshold", lambda x: functional.threshold(x, 0.0, 1.0)),
        ("linalg_vector_norm|vector_norm", lambda x: torch.linalg.vector_norm(x, 1)),
        ("rnn_relu_cell", torch.nn.RNNCell(3, 3, nonlinearity="relu", dtype=DOUBLE)),
        ("scatter_reduce", lambda x: x.scatter_reduce(0, torch.zeros_like(x, dtype=torch.int64), x, "amax")),
        ("relu", lambda x: torch.clamp(x, 0, 1, out=torch.empty_like(x))),
    ],
)
def test_what_cannot_be_chosen_is_refused(name, f):
    x = normal(3, 3, dtype=DOUBLE)
    f(x)
    with Left().active(), pytest.raises(NotImplementedError, match=name if name != "relu" else "clamp"):
        f(x)
    with Autograd().active():
        f(x)


def test_smooth_operations_and_euclidean_norms_pass():
    x = normal(3, 3, dtype=DOUBLE).requires_grad_()
    for f in (torch.tanh, torch.linalg.vector_norm, lambda x: x.norm(dim=1), lambda x: x.std(), functional.normalize):
        assert torch.equal(under(Left(), f)(x), f(x))


def test_misuse():
    with pytest.raises(ValueError, match=r"value must be in \[0, 1\]"):
        Slope(1.5)
    with pytest.raises(ValueError, match="seed"):
        Random(-1)
    with pytest.raises(TypeError, match=r"selection must be a Selection, e\.g\. nonsmooth\.Right"):
        Newton(selection="right")


# Newton's method


@each_selection
@pytest.mark.parametrize("n", [10, 50, 200])
@pytest.mark.parametrize("m", [1.0, 0.05])
def test_semismooth_newton_ends_after_finitely_many_steps(n, m, selection):
    w, x = monotone(n, 1.5, DOUBLE, m=m), normal(4, n, dtype=DOUBLE)

    def f(z):
        return torch.relu(z @ w.T + x)

    exact = Newton(linear=Dense(), selection=selection, rtol=1e-13, atol=1e-14, max_steps=20)
    if n == 200:
        exact = Newton(selection=selection, rtol=1e-12, atol=1e-13, max_steps=20)
    found = exact.run(f, torch.zeros_like(x))
    assert found.converged.all()
    assert int(found.steps.max()) <= 10
    splitting = Picard(damping=0.9, rtol=1e-12, atol=1e-13, max_steps=100).run(f, torch.zeros_like(x))
    assert not splitting.converged.any()


def test_full_newton_steps_can_cycle_although_there_is_one_solution_and_then_others_take_over():
    """I − W is a P-matrix; the pieces 1 -> 2 -> 1 -> ... of some samples repeat without end."""
    generator = torch.Generator().manual_seed(234)
    w = torch.randn(3, 3, generator=generator, dtype=DOUBLE) * 1.2
    x = torch.randn(64, 3, generator=generator, dtype=DOUBLE) * 3
    assert analysis.invertibility(w).verdict == "proved"

    def f(z):
        return torch.relu(z @ w.T + x)

    z0, tight = torch.zeros_like(x), {"rtol": 1e-10, "atol": 1e-12}
    full = Newton(linear=Dense(), halvings=0, max_steps=30, **tight)
    cycling = ~full.run(f, z0).converged
    assert 0 < int(cycling.sum()) < 10
    for safe in (
        Newton(linear=Dense(), max_steps=30, **tight),
        Fallback(full, Anderson(**tight), max_steps=500),
        Fallback(full, Picard(damping=0.9, **tight), max_steps=2000),
    ):
        found = safe.run(f, z0)
        assert found.converged.all()
        assert torch.allclose(found.value, f(found.value), atol=1e-8)


def test_newtons_selection_decides_the_step_at_a_kink():
    # z = max(−2z, 4z) + 1... has at 0 the slopes −2 and 4: the step leads to 1 / (1 − slope)
    def f(z):
        return 3 * z.abs() + z + 1

    for selection, slope in ((Left(), -2), (Right(), 4), (Midpoint(), 1.5 - 0.5)):
        if slope != 1:
            step = Newton(selection=selection, linear=Dense(), max_steps=1, halvings=0)
            value = step.run(f, torch.zeros(1, 1, dtype=DOUBLE)).value
            target = 1 / (1 - slope)
            # f is evaluated there; the better of both points is returned
            residual = abs(3 * abs(target) + 1)
            assert abs(float(value) - (target if residual < 1 else 0)) < 1e-12


# What there is to choose from


def test_kinks_of_each_sample():
    z = torch.tensor([[1.0, -0.25], [3, 0]], dtype=DOUBLE)
    seen = nonsmooth.kinks(lambda z: torch.relu(z).amax(1, keepdim=True) * z.clamp(-1, 2.5), z)
    assert seen.operations == ("relu", "amax", "clamp", "clamp")
    assert torch.equal(seen.distance, torch.tensor([0.25, 0.0], dtype=DOUBLE))
    assert torch.equal(seen.pieces[0], torch.tensor([[1, -1], [1, 0]], dtype=torch.int8))
    assert torch.equal(seen.pieces[1], torch.tensor([0, 0]))
    assert torch.equal(seen.gaps[3], torch.tensor([[-1.5, -2.75], [0.5, -2.5]], dtype=DOUBLE))
    assert nonsmooth.kinks(torch.tanh, z).distance.isinf().all()


def distinct(matrices):
    return sorted(tuple(torch.as_tensor(matrix).double().flatten().tolist()) for matrix in matrices)


def test_b_subdifferential_of_a_relu_layer():
    w = normal(3, 3, dtype=DOUBLE)
    z = torch.tensor([1.0, -2, 0.5], dtype=DOUBLE)
    x = torch.tensor([0.0, 1, 0], dtype=DOUBLE) - w @ z  # units 0 and 2 at their kinks, unit 1 active
    found = nonsmooth.b_subdifferential(lambda z: torch.relu(w @ z + x), z, tol=1e-12)
    expected = [torch.tensor([a, 1.0, b], dtype=DOUBLE).diag() @ w for a in (0, 1) for b in (0, 1)]
    assert torch.allclose(torch.tensor(distinct(found)), torch.tensor(distinct(expected)))


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda z: torch.relu(z) - torch.relu(-z), [[[1, 0], [0, 1]]]),  # the identity, whatever the chain rule says
        (lambda z: torch.relu(torch.relu(z[:1]) - z[1:]), [[[0, 0]], [[0, -1]], [[1, -1]]]),
        (lambda z: z.amax(0, keepdim=True), [[[1, 0]], [[0, 1]]]),
        (lambda z: z.amin(0, keepdim=True), [[[1, 0]], [[0, 1]]]),
        (lambda z: torch.cat((z, z[:1])).amax(0, keepdim=True), [[[1, 0]], [[0, 1]]]),
        (lambda z: torch.relu(0 * z), [[[0, 0], [0, 0]]]),
        (lambda z: (z.sum() + z * 0).abs(), [[[1, 1], [1, 1]], [[-1, -1], [-1, -1]]]),  # duplicates move together
        (lambda z: torch.relu(torch.stack((z[0], z[1], z[0] + z[1]))).sum()[None], 
         [[[0, 0]], [[1, 0]], [[2, 1]], [[0, 1]], [[1, 2]], [[2, 2]]]),
    ],
)  # fmt: skip
def test_b_subdifferential_has_regions_with_an_interior_only(f, expected):
    found = nonsmooth.b_subdifferential(f, torch.zeros(2, dtype=DOUBLE))
    assert distinct(found) == distinct(expected)


def test_b_subdifferential_refuses_what_is_too_much_or_unknown():
    with pytest.raises(ValueError, match="max_kinks=12"):
        nonsmooth.b_subdifferential(torch.relu, torch.zeros(13))
    with pytest.raises(NotImplementedError, match="a tie of sort"):
        nonsmooth.b_subdifferential(lambda z: z.sort().values, torch.zeros(2))
    with pytest.raises(NotImplementedError, match="the zero of norm"):
        nonsmooth.b_subdifferential(lambda z: z.norm()[None], torch.zeros(2))
    assert nonsmooth.b_subdifferential(torch.tanh, torch.zeros(2)).shape == (1, 2, 2)


class WrongRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x > 0) * 1.01


@pytest.mark.parametrize("name", [name for name in ELEMENTWISE if name != "prelu"])
def test_directional_check_passes_at_kinks_and_away(name):
    kink = ELEMENTWISE[name]
    z = torch.cat((torch.full((4,), kink.at, dtype=DOUBLE), normal(6, dtype=DOUBLE) * 3))
    assert nonsmooth.directional_check(kink.f, z, normal(10, dtype=DOUBLE, seed=3)).passed.all()


def test_directional_check_passes_for_a_layer_whose_kinks_are_crossed():
    w, z, v = (normal(5, 5, dtype=DOUBLE, seed=i) for i in range(3))
    z[0], z[1, 2] = 0, 1e-9  # at all kinks of the first, within the step of one of the second
    found = nonsmooth.directional_check(lambda z: torch.relu(torch.relu(z) @ w).sort(1).values, z, v)
    assert found.passed.all()
    assert torch.allclose(found.left[2:], found.right[2:], atol=1e-6)
    assert not torch.allclose(found.left[0], found.right[0], atol=1e-2)


def test_directional_check_catches_a_wrong_derivative():
    z = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE)
    found = nonsmooth.directional_check(WrongRelu.apply, z, torch.ones_like(z))
    assert found.passed.tolist() == [False, True]
    with pytest.raises(ValueError, match="shaped like z"):
        nonsmooth.directional_check(torch.relu, z, torch.ones(3))
