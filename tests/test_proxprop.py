"""ProxProp: the direction in .grad is the proximal step, on every path that leads to it."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations, parametrize

import implicitnets as inn
from implicitnets import training
from implicitnets.models import (
    DEQ,
    ConvDEQ,
    ImplicitModel,
    IntervalMonotoneDEQ,
    MonotoneDEQ,
    NonEuclideanDEQ,
    structures,
)
from implicitnets.solvers import Anderson, Dense, Picard
from implicitnets.training import ProxProp, Unsupported, proxprop
from implicitnets.training.proximal.gauss_newton import gauss_newton
from implicitnets.training.proximal.layers import ConvLayer
from implicitnets.training.proximal.metric import Metric, cheaper

TIGHT = Anderson(rtol=1e-12, atol=1e-13, max_steps=300)
EXACT = inn.Implicit(solver=Dense(rtol=1e-12, atol=1e-13))


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Cell(nn.Module):
    def __init__(self, inputs: int = 4, states: int = 6, scale: float = 0.5) -> None:
        super().__init__()
        self.recur, self.inject, self.scale = nn.Linear(states, states), nn.Linear(inputs, states), scale

    def forward(self, z, x):
        return torch.tanh(self.scale * self.recur(z) + self.inject(x))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))


def deq(backward=EXACT) -> nn.Sequential:
    return nn.Sequential(DEQ(Cell(), state_shape=(6,), solver=TIGHT, backward=backward), nn.Linear(6, 3))


def implicit(constraint=None, backward=EXACT, **options) -> ImplicitModel:
    return ImplicitModel(4, 6, 3, constraint=constraint, solver=TIGHT, backward=backward, activation="tanh", **options)


def data(n: int = 9, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator) * 2 + 1, torch.randint(3, (n,), generator=generator)


def grads(model: nn.Module, x: Tensor, y: Tensor, loss=cross_entropy) -> dict[str, Tensor]:
    model.zero_grad()
    loss(model(x), y).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def directions(model: nn.Module, x: Tensor, y: Tensor, loss=cross_entropy, **options) -> dict[str, Tensor]:
    with proxprop(model, **options):
        return grads(model, x, y, loss)


def stacked(s: Tensor, g: Tensor, tau: float) -> Tensor:
    """argmin over V of ½ ‖V‖² + (τ/2n) ‖SVᵀ‖² − ⟨G, V⟩ by least squares, without any normal equations of τ."""
    n, q = s.shape
    u = torch.linalg.pinv(s.T, rtol=1e-13) @ g.T  # G = (delta)ᵀS has such a delta
    a = torch.cat([s * (tau / n) ** 0.5, torch.eye(q)])
    b = torch.cat([u * (n / tau) ** 0.5, torch.zeros(q, g.shape[0])])
    return torch.linalg.lstsq(a, b).solution.T


def ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1)], 1)


@pytest.mark.parametrize("tau", [1e-3, 1.0, 50.0, 1e4])
@pytest.mark.parametrize(("n", "form"), [(3, "dual"), (4, "primal"), (60, "dual"), (60, "primal")])
def test_it_is_the_stacked_least_squares_problem(tau, n, form):
    net, (x, y) = mlp(), data(n)
    g = grads(net, x, y)
    s = {"0": ones(x), "2": ones(net[:2](x)).detach()}
    v = directions(net, x, y, tau=tau, method=form)
    for name, rows in s.items():
        joint = torch.cat([g[f"{name}.weight"], g[f"{name}.bias"][:, None]], 1)
        found = torch.cat([v[f"{name}.weight"], v[f"{name}.bias"][:, None]], 1)
        torch.testing.assert_close(found, stacked(rows, joint, tau), rtol=1e-9, atol=1e-12)
        assert not torch.allclose(found, joint, rtol=1e-6)
    for name in ("4.weight", "4.bias"):
        assert torch.equal(v[name], g[name])  # the head is explicit


@pytest.mark.parametrize("make", [mlp, deq, implicit])
@pytest.mark.parametrize("n", [4, 60])
def test_all_forms_agree(make, n):
    model, (x, y) = make(), data(n)
    dual = directions(model, x, y, tau=20.0, method="dual", head="prox")
    for options in ({"method": "primal"}, {"method": "cg", "cg_steps": 60}, {"method": "auto"}):
        other = directions(model, x, y, tau=20.0, head="prox", **options)
        for name, value in dual.items():
            torch.testing.assert_close(other[name], value, rtol=1e-8, atol=1e-12)


def test_the_cheaper_form_is_taken():
    assert cheaper(100, 3000, 500) == "dual"
    assert cheaper(5000, 500, 500) == "primal"
    metric = Metric(1.0, rows=torch.randn(5, 40))
    metric.solve(torch.randn(3, 40))
    assert list(metric._factors) == ["dual"]


def test_no_tau_is_the_gradient_and_a_large_one_takes_the_second_moments_out():
    net, (x, y) = mlp(), data(60)
    g, s = grads(net, x, y), ones(data(60)[0])
    plain = directions(net, x, y, tau=0.0)
    for name, value in g.items():
        torch.testing.assert_close(plain[name], value)
    v = directions(net, x, y, tau=1e9)
    joint = torch.cat([g["0.weight"], g["0.bias"][:, None]], 1)
    whitened = torch.linalg.solve(s.T @ s / 60, joint.T).T
    torch.testing.assert_close(1e9 * v["0.weight"], whitened[:, :4], rtol=1e-5, atol=1e-8)


def test_it_does_not_depend_on_the_size_of_the_batch():
    x, y = data(5)
    for model in (mlp(), deq(), implicit()):
        once, twice = directions(model, x, y), directions(model, x.repeat(4, 1), y.repeat(4))
        for name, value in once.items():
            torch.testing.assert_close(twice[name], value, rtol=1e-7, atol=1e-10)


def test_a_batch_of_sequences_has_a_row_for_each_position():
    x, y = data(12)
    flat, net = mlp(), None
    net = copy.deepcopy(flat)

    def loss(outputs, targets):
        return cross_entropy(outputs.flatten(0, -2), targets)

    expected = directions(flat, x, y)
    for name, value in directions(net, x.reshape(3, 4, 4), y, loss).items():
        torch.testing.assert_close(value, expected[name])


# Convolutions.


class Patches(nn.Module):
    """A convolution as a linear layer of patches that are cut out one by one."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.linear = nn.Linear(conv.weight[0].numel(), conv.out_channels)
        with torch.no_grad():
            self.linear.weight.copy_(conv.weight.flatten(1))
            self.linear.bias.copy_(conv.bias)
        self.size, self.stride, self.padding, self.dilation = conv.kernel_size, conv.stride, conv.padding, conv.dilation

    def forward(self, x):
        x = nn.functional.pad(x, (self.padding[1], self.padding[1], self.padding[0], self.padding[0]))
        (kh, kw), (dh, dw), (sh, sw) = self.size, self.dilation, self.stride
        rows = range(0, x.shape[2] - dh * (kh - 1), sh)
        columns = range(0, x.shape[3] - dw * (kw - 1), sw)
        cut = [[x[:, :, i : i + dh * kh : dh, j : j + dw * kw : dw].flatten(1) for j in columns] for i in rows]
        return self.linear(torch.stack([torch.stack(row, 1) for row in cut], 1)).movedim(-1, 1)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": (1, 2), "padding": (2, 1)}], ids=str)
def test_a_convolution_is_a_linear_layer_of_patches(options):
    conv = nn.Conv2d(2, 3, (3, 2), **options)
    x, tau = torch.randn(4, 2, 6, 7) + 1, 40.0
    patches = Patches(conv)
    torch.testing.assert_close(patches(x), conv(x))
    weight = torch.randn_like(conv(x))
    v, w = (directions(m, x, weight, lambda a, b: (a * b).mean(), tau=tau, head="prox") for m in (conv, patches))
    torch.testing.assert_close(v["weight"].flatten(1), w["linear.weight"])
    torch.testing.assert_close(v["bias"], w["linear.bias"])


def test_a_convolution_in_one_dimension_is_one_in_two():
    one, two = nn.Conv1d(3, 5, 4, padding=2, stride=2, dilation=2), nn.Conv2d(3, 5, (1, 4), padding=(0, 2), stride=2)
    two = nn.Conv2d(3, 5, (1, 4), padding=(0, 2), stride=(1, 2), dilation=(1, 2))
    with torch.no_grad():
        two.weight.copy_(one.weight[:, :, None])
        two.bias.copy_(one.bias)
    x = torch.randn(6, 3, 11) + 1
    v = directions(one, x, None, lambda a, _: a.sin().mean(), head="prox")
    w = directions(two, x[:, :, None], None, lambda a, _: a.sin().mean(), head="prox")
    torch.testing.assert_close(v["weight"], w["weight"][:, :, 0])
    torch.testing.assert_close(v["bias"], w["bias"])


def test_groups_are_convolutions_of_their_own():
    both = nn.Conv2d(4, 6, 3, groups=2)
    parts = [nn.Conv2d(2, 3, 3) for _ in range(2)]
    x = torch.randn(3, 4, 5, 5) + 1
    with proxprop(both, head="prox") as handle:
        v = grads(both, x, None, lambda a, _: a.sin().sum())
    assert handle.solves == 2
    for i, part in enumerate(parts):
        with torch.no_grad():
            part.weight.copy_(both.weight[3 * i : 3 * i + 3])
            part.bias.copy_(both.bias[3 * i : 3 * i + 3])
        w = directions(part, x[:, 2 * i : 2 * i + 2], None, lambda a, _: a.sin().sum(), head="prox")
        torch.testing.assert_close(v["weight"][3 * i : 3 * i + 3], w["weight"])


@pytest.mark.parametrize("mode", ["circular", "reflect", "same"])
def test_padding_is_that_of_the_layer(mode):
    conv = nn.Conv2d(2, 3, 3, padding="same") if mode == "same" else nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode)
    x, loss = torch.randn(4, 2, 5, 5) + 1, lambda a, _: a.sin().mean()
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="constant" if mode == "same" else mode)
    inner = nn.Conv2d(2, 3, 3)
    inner.load_state_dict(conv.state_dict())
    v, w = directions(conv, x, None, loss, head="prox"), directions(inner, padded, None, loss, head="prox")
    torch.testing.assert_close(v["weight"], w["weight"])


def test_many_patches_are_summed_up_in_portions(monkeypatch):
    conv, x = nn.Conv2d(2, 3, 3), torch.randn(7, 2, 9, 9) + 1
    expected = directions(conv, x, None, lambda a, _: a.sin().mean(), head="prox")
    monkeypatch.setattr("implicitnets.training.proximal.layers.LARGE", 2**11)
    unfold, calls = nn.functional.unfold, []
    monkeypatch.setattr(nn.functional, "unfold", lambda x, *a, **k: calls.append(len(x)) or unfold(x, *a, **k))
    found = directions(conv, x, None, lambda a, _: a.sin().mean(), head="prox")
    assert sum(calls) == 7
    assert len(calls) > 2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


# Implicit models.


def test_an_implicit_model_has_one_system_of_state_input_and_one():
    model, (x, y) = implicit(), data()
    g, v = grads(model, x, y), directions(model, x, y, tau=7.0, head="prox")
    state = model.state(x).detach()
    s = torch.cat([state, x, torch.ones(9, 1)], 1)
    p = torch.linalg.inv(torch.eye(11) + 7.0 * s.T @ s / 9)
    for names in (("A", "B", "b"), ("C", "D", "c")):
        joint, found = (torch.cat([t[k].reshape(len(t[k]), -1) for k in names], 1) for t in (g, v))
        torch.testing.assert_close(found, joint @ p, rtol=1e-8, atol=1e-11)


BACKWARDS = [EXACT, inn.Implicit(), inn.Unroll(steps=1), inn.Unroll(steps=3), inn.Unroll(steps=60, start="z0")]


@pytest.mark.parametrize("backward", BACKWARDS, ids=str)
def test_the_rows_of_a_deq_are_those_at_the_equilibrium(backward):
    model, (x, y) = deq(backward), data()
    g, v = grads(model, x, y), directions(model, x, y, tau=7.0)
    z = model[0](x).detach()
    for name, rows in (("recur", z), ("inject", x)):
        s = ones(rows)
        p = torch.linalg.inv(torch.eye(s.shape[1]) + 7.0 * s.T @ s / 9)
        joint, found = (torch.cat([t[f"0.cell.{name}.weight"], t[f"0.cell.{name}.bias"][:, None]], 1) for t in (g, v))
        torch.testing.assert_close(found, joint @ p, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("backward", BACKWARDS, ids=str)
@pytest.mark.parametrize("make", [deq, implicit])
def test_one_system_is_solved_for_each_layer_and_pass_whatever_the_backward(make, backward, monkeypatch):
    model, (x, y) = make(backward=backward), data()
    solved = []
    original = Metric.solve
    monkeypatch.setattr(Metric, "solve", lambda self, *args: solved.append(1) or original(self, *args))
    layers = 2 if make is deq else 1
    with proxprop(model) as handle:
        for passes in (1, 2):
            grads(model, x, y)
            assert len(solved) == handle.solves == layers * passes


def test_the_adjoint_equation_is_left_alone():
    model, (x, y) = deq(inn.Implicit(solver=Picard(rtol=1e-10, max_steps=500))), data()
    counts = []
    for attach in (False, True):
        if attach:
            proxprop(model)
        x.requires_grad_().grad = None
        cross_entropy(model(x), y).backward()
        counts.append((model[0].backward_solution.evaluations, model[0].backward_solution.steps, x.grad.clone()))
    assert counts[0][0] == counts[1][0] > 5
    assert torch.equal(counts[0][1], counts[1][1])
    torch.testing.assert_close(counts[0][2], counts[1][2], rtol=1e-12, atol=0)


@pytest.mark.parametrize("backward", [inn.Implicit(), inn.Unroll(steps=2)], ids=str)
def test_models_with_an_equilibrium_of_their_own_are_taken(backward):
    """Layers around the cell have their own inputs, those in it the ones at the equilibrium, and one system each."""
    model = ConvDEQ(2, 4, groups=2, solver=Anderson(rtol=1e-10, atol=1e-12), backward=backward)
    x = torch.randn(3, 2, 5, 5)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    seen = {m: [] for m in convolutions}
    with proxprop(model) as handle:
        model(x).sin().mean().backward()
    assert handle.solves == len(convolutions) > 2
    v = {name: p.grad.clone() for name, p in model.named_parameters()}
    hooks = [m.register_forward_pre_hook(lambda m, args: seen[m].append(args[0].detach())) for m in convolutions]
    with torch.no_grad():
        model.cell(model(x), model.inject(x))  # the last calls are those at the equilibrium
    for hook in hooks:
        hook.remove()
    layers = {m: ConvLayer(m) for m in convolutions}
    model.zero_grad()
    model(x).sin().mean().backward()
    for m, layer in layers.items():
        gradient = [p.grad for p in layer.leaves]
        expected = gauss_newton(layer, layer.metrics([(seen[m][-1],)], 10.0), gradient, 3)
        for p, value in zip(layer.leaves, expected, strict=True):
            name = next(n for n, q in model.named_parameters() if q is p)
            torch.testing.assert_close(v[name], value, rtol=1e-5, atol=1e-9)


def test_an_equilibrium_inside_another_is_refused():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.inner = nn.Linear(6, 6), DEQ(Cell(6), solver=TIGHT)

        def forward(self, z, x):
            return torch.tanh(0.3 * self.linear(z)) + 0.1 * self.inner(x)

    model = nn.Sequential(DEQ(Nested()), nn.Linear(6, 2))
    with proxprop(model), pytest.raises(RuntimeError, match="inside the map of another"):
        model(torch.randn(3, 6)).sum().backward()


class Noisy(Cell):
    """A cell with a buffer that moves, and with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, z, x):
        self.calls.add_(1)
        return super().forward(nn.functional.dropout(z, 0.3), x)


def test_neither_buffers_nor_random_numbers_are_touched():
    states = []
    for attach in (False, True):
        torch.manual_seed(5)
        model = nn.Sequential(DEQ(Noisy(), state_shape=(6,), solver=Picard(max_steps=300)), nn.Linear(6, 3))
        x, y = data()
        if attach:
            proxprop(model)
        g = grads(model, x, y)
        states.append((model[0].cell.calls.clone(), torch.get_rng_state(), g["1.weight"]))
    for a, b in zip(*states, strict=True):
        assert torch.equal(a, b)


def test_sweeps_are_neumann_sums_and_converge_to_the_adjoint():
    """The backward sweep of the penalty energy, looped on the cell: z ← z* − g − Wᵀ(h* − h), h ← h* − D(z* − z)."""
    model, (x, y) = implicit(), data()
    with torch.no_grad():
        z, out = model.state(x), model(x)
    g = (torch.softmax(out, 1) - torch.eye(3)[y]) / 9 @ model.C.detach()
    d, w = 1 - z**2, model.A.detach()  # of tanh
    start = torch.atanh(z)
    h, s = start, torch.cat([z, x, torch.ones(9, 1)], 1)
    p = torch.linalg.inv(torch.eye(11) + 7.0 * s.T @ s / 9)
    for sweeps in range(1, 121):
        h = start - d * (g + (start - h) @ w)
        if sweeps in (1, 2, 5, 120):
            direction = (start - h).T @ s @ p
            for backward in [inn.Unroll(steps=sweeps)] + [EXACT] * (sweeps == 120):
                model.backward = backward
                v = directions(model, x, y, tau=7.0)
                found = torch.cat([v["A"], v["B"], v["b"][:, None]], 1)
                torch.testing.assert_close(found, direction, rtol=1e-7, atol=1e-10)


# Parametrized weights.


class Monotone(nn.Module):
    """W = (1 − m) I − AᵀA + B − Bᵀ with B = A²."""

    def forward(self, a):
        return 0.5 * torch.eye(len(a)) - a.T @ a + (a @ a - (a @ a).T)


class LowRank(nn.Module):
    def forward(self, left, right):
        return left @ right

    def right_inverse(self, w):
        return w[:, :2].clone(), w[:2].clone()


def parametrized(kind: str) -> nn.Module:
    cell = Cell(scale=0.3)
    if kind == "inf_norm":
        inn.constraints.inf_norm(cell.recur, "weight", 0.9)
        with torch.no_grad():
            cell.recur.parametrizations.weight.original.mul_(3)
    elif kind == "rescale":
        inn.constraints.inf_norm(cell.recur, "weight", 0.5, method="rescale")
    elif kind == "spectral":
        parametrizations.spectral_norm(cell.recur)
    elif kind == "weight_norm":
        parametrizations.weight_norm(cell.inject)
    else:
        form = Monotone() if kind == "monotone" else LowRank()
        parametrize.register_parametrization(cell.recur, "weight", form, unsafe=True)
    return nn.Sequential(DEQ(cell, state_shape=(6,), solver=TIGHT, backward=EXACT), nn.Linear(6, 3))


KINDS = ["inf_norm", "rescale", "monotone", "low_rank", "spectral", "weight_norm"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_parametrized_weight_gets_its_gauss_newton_step(kind):
    model, (x, y) = parametrized(kind).eval(), data()
    g = grads(model, x, y)
    v = directions(model, x, y, tau=7.0, cg_steps=200)
    name = "inject" if kind == "weight_norm" else "recur"
    layer = getattr(model[0].cell, name)
    rows = ones((x if kind == "weight_norm" else model[0](x)).detach())
    chain = layer.parametrizations.weight
    leaves = {k: p.detach() for k, p in chain.named_parameters()}

    def theta(flat):
        parts = dict(zip(leaves, flat.split([p.numel() for p in leaves.values()]), strict=True))
        return torch.func.functional_call(chain, {k: parts[k].reshape(p.shape) for k, p in leaves.items()}, ())

    flat = torch.cat([p.flatten() for p in leaves.values()])
    jacobian = torch.autograd.functional.jacobian(theta, flat).flatten(0, 1)
    m, bias = layer.weight.shape[0], torch.eye(layer.weight.shape[0])
    full = torch.zeros(m, rows.shape[1], len(flat) + m)  # d[W b] / d(leaves, b)
    full[:, :-1, : len(flat)] = jacobian.reshape(m, -1, len(flat))
    full[:, -1, len(flat) :] = bias
    sigma = 7.0 * rows.T @ rows / 9
    system = torch.eye(len(flat) + m) + torch.einsum("mqk,qr,mrl->kl", full, sigma, full)
    order = [f"0.cell.{name}.parametrizations.weight.{k}" for k in leaves] + [f"0.cell.{name}.bias"]
    right, found = (torch.cat([t[k].flatten() for k in order]) for t in (g, v))
    torch.testing.assert_close(found, torch.linalg.solve(system, right), rtol=1e-6, atol=1e-10)
    other = "recur" if kind == "weight_norm" else "inject"
    assert not torch.allclose(v[f"0.cell.{other}.weight"], g[f"0.cell.{other}.weight"])


def test_the_default_implicit_model_is_parametrized_and_taken():
    model = implicit(inn.constraints.InfNorm(kappa=0.4))
    with proxprop(model) as handle:
        v = grads(model, *data())
    g = grads(model, *data())
    assert handle.weights == ["A", "B", "b"]
    assert handle.solves == 1
    assert not torch.allclose(v["parametrizations.A.original"], g["parametrizations.A.original"])
    with pytest.raises(ValueError, match="parametrized"):
        proxprop(model, method="dual")


class Affine(nn.Module):
    """Ax + Bu + b of an implicit model."""

    def __init__(self, m: ImplicitModel) -> None:
        super().__init__()
        self.m = m

    def forward(self, x, u):
        return self.m._parts("A").affine()(x[None], self.m._linear("B", u[None], self.m.b))[0]


@pytest.mark.parametrize("model", [MonotoneDEQ, IntervalMonotoneDEQ, NonEuclideanDEQ], ids=lambda m: m.__name__)
def test_the_parameters_behind_a_monotone_w_get_their_gauss_newton_step(model):
    model, (x, y) = model(4, 6, backward=EXACT), data()
    model.solver = type(model.solver)(rtol=1e-12, atol=1e-13, max_steps=3000)
    g = grads(model, x, y)
    with proxprop(model, tau=7.0, cg_steps=400) as handle:
        v = grads(model, x, y)
    assert handle.solves == 1
    leaves = {name: p.detach() for name, p in model.named_parameters()}

    def theta(*parts):
        swapped = dict(zip(leaves, parts, strict=True))
        with torch.nn.utils.stateless._reparametrize_module(model, swapped):
            return torch.cat([model.W, model.U, model.b[:, None]], 1)

    jacobian = torch.autograd.functional.jacobian(theta, tuple(leaves.values()))
    flat = torch.cat([j.flatten(2) for j in jacobian], 2)
    s = torch.cat([model(x).detach(), x, torch.ones(9, 1)], 1)
    system = torch.eye(flat.shape[2]) + torch.einsum("mqk,qr,mrl->kl", flat, 7.0 * s.T @ s / 9, flat)
    right, found = (torch.cat([t[k].flatten() for k in leaves]) for t in (g, v))
    torch.testing.assert_close(found, torch.linalg.solve(system, right), rtol=1e-5, atol=1e-9)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g.detach()


def test_a_parametrization_that_can_not_be_differentiated_twice_is_refused():
    class Twice(nn.Module):
        def forward(self, w):
            return Once.apply(w)

    layer, (x, y) = nn.Linear(4, 3), data()
    parametrize.register_parametrization(layer, "weight", Twice(), unsafe=True)
    with proxprop(layer, head="prox"), pytest.raises(RuntimeError, match="no derivative of its own"):
        cross_entropy(layer(x), y).backward()


STRUCTURES = [
    structures.LowRank(rank=2),
    structures.BlockDiagonal(sizes=(2, 4)),
    structures.Sparse(nonzeros=14),
    structures.Triangular(sizes=(2, 4)),
]


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_a_structured_matrix_gets_its_gauss_newton_step(structure):
    free = {"constraint": None} if structure.direct else {"solver": TIGHT, "backward": EXACT}
    model, (x, y) = ImplicitModel(4, 6, 3, structure=structure, activation="tanh", nonzeros={"B": 9}, **free), data()
    g = grads(model, x, y)
    v = directions(model, x, y, tau=7.0, cg_steps=300)
    leaves = {name: p.detach() for name, p in model.named_parameters() if name not in ("C", "D", "c")}

    def theta(flat):
        parts = flat.split([p.numel() for p in leaves.values()])
        swapped = {name: part.reshape(p.shape) for part, (name, p) in zip(parts, leaves.items(), strict=True)}
        # What the model makes of these numbers is seen at unit vectors.
        swapped, unit = {f"m.{name}": t for name, t in swapped.items()}, torch.eye(11)
        pairs = zip(unit[:, :6], unit[:, 6:10], strict=True)
        columns = torch.stack([torch.func.functional_call(Affine(model), swapped, pair) for pair in pairs], 1)
        return columns - torch.cat([columns[:, -1:].expand(-1, 10), torch.zeros(6, 1)], 1)

    flat = torch.cat([p.flatten() for p in leaves.values()])
    jacobian = torch.autograd.functional.jacobian(theta, flat)
    s = torch.cat([model.state(x).detach(), x, torch.ones(9, 1)], 1)
    system = torch.eye(len(flat)) + torch.einsum("mqk,qr,mrl->kl", jacobian, 7.0 * s.T @ s / 9, jacobian)
    right, found = (torch.cat([t[k].flatten() for k in leaves]) for t in (g, v))
    torch.testing.assert_close(found, torch.linalg.solve(system, right), rtol=1e-6, atol=1e-10)


# Descent.


@pytest.mark.parametrize("seed", range(10))
def test_it_is_a_direction_of_descent_in_a_hundred_cases(seed):
    """With the other nine seeds, a thousand: parametrized and constrained models among them."""
    torch.manual_seed(seed)
    generator, worst = torch.Generator().manual_seed(seed), 1.0

    def pick(options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    for case in range(100):
        kind = pick(["mlp", "deq", "implicit", "conv", "bounded", "projected", *KINDS])
        n, condition = pick([1, 3, 9, 40]), pick([1.0, 1e2, 1e4])
        x = torch.randn(n, 4, generator=generator) * condition ** -torch.linspace(0, 1, 4) + pick([0.0, 3.0])
        y = torch.randint(3, (n,), generator=generator)
        if kind in ("mlp", "deq", "implicit"):
            model = {"mlp": mlp, "deq": deq, "implicit": implicit}[kind]()
        elif kind == "conv":
            convolution = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.Tanh())
            model = nn.Sequential(*convolution, nn.Flatten(), nn.Linear(27, 3))
        elif kind == "projected":
            model = implicit()
            with torch.no_grad():
                model.A.copy_(inn.constraints.InfNorm(kappa=0.4)(2 * model.A))
        elif kind == "bounded":
            model = implicit(inn.constraints.InfNorm(kappa=pick([0.1, 0.5, 0.9])))
        else:
            model = parametrized(kind).eval()
        free = kind in ("mlp", "deq", "implicit", "conv")
        g = grads(model, x, y)
        options = {"tau": pick([0.1, 10.0, 1e3, 1e5]), "cg_steps": pick([1, 2, 3, 7])}
        options |= {"head": pick(["prox", "explicit"]), "method": pick(["auto", "cg"] + ["dual", "primal"] * free)}
        v = constrained(model, x, y, options["tau"]) if kind == "projected" else directions(model, x, y, **options)
        a, b = (torch.cat([tensors[name].flatten() for name in v]) for tensors in (g, v))
        cosine = float(a @ b / (a.norm() * b.norm()))
        assert cosine > 0, (case, kind, n, condition, options)
        worst = min(worst, cosine)
    assert worst < 0.1  # the cases do turn the gradient


def constrained(model: ImplicitModel, x: Tensor, y: Tensor, tau: float) -> dict[str, Tensor]:
    """Minus the change of A, B and b by a step of size 1 from a feasible point and the projection after it."""
    names = ("A", "B", "b")
    before = {name: getattr(model, name).detach().clone() for name in names}
    with proxprop(model, tau=tau) as handle:
        v = grads(model, x, y)
        with torch.no_grad():
            for name in names:
                getattr(model, name).sub_(v[name])
        handle.project("A", 0.4, rtol=1e-9, max_steps=20_000)
    return {name: before[name] - getattr(model, name).detach() for name in names}


def test_pulling_a_direction_back_through_a_parametrization_can_ascend():
    """Why a parametrized weight is not given J*(G P): a case where that goes up and the Gauss-Newton step down."""
    generator, naive, ours = torch.Generator().manual_seed(0), [], []
    for _ in range(60):
        a = torch.randn(4, 4, generator=generator) * torch.logspace(0.5, -0.5, 4)
        s = torch.randn(6, 4, generator=generator) * torch.logspace(1, -2, 4)
        p = torch.linalg.inv(torch.eye(4) + 1e3 * s.T @ s / 6)
        layer = nn.Linear(4, 4, bias=False)
        parametrize.register_parametrization(layer, "weight", Monotone(), unsafe=True)
        leaf = layer.parametrizations.weight.original
        with torch.no_grad():
            leaf.copy_(a)
        delta = torch.randn(6, 4, generator=generator)
        g = grads(layer, s, delta, lambda out, d: (out * d).sum())["parametrizations.weight.original"]
        (pulled,) = torch.autograd.grad(Monotone()(leaf), leaf, delta.T @ s @ p)
        v = directions(layer, s, delta, lambda out, d: (out * d).sum(), tau=1e3, cg_steps=5, head="prox")
        naive.append(float((g * pulled).sum()))
        ours.append(float((g * v["parametrizations.weight.original"]).sum()))
    assert min(naive) < 0
    assert min(ours) > 0


def test_fixed_points_are_stationary():
    """The direction is zero exactly where the gradient is (proposition 3): ‖V‖ ≥ ‖G‖ / (1 + τ λ), λ of SᵀS/n."""
    net, (x, _), tau = mlp(), data(6), 5.0
    y = net(x).detach()

    def loss(out, y):
        return (out - y).square().mean()

    assert all(v.abs().max() == 0 for v in directions(net, x, y, loss).values())
    for scale in (1e-6, 1.0):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(scale * torch.randn_like(p))
        largest = torch.linalg.matrix_norm(ones(x), 2) ** 2 / 6
        g, v = grads(net, x, y, loss), directions(net, x, y, loss, tau=tau)
        size, turned = (sum(t[k].square().sum() for k in ("0.weight", "0.bias")).sqrt() for t in (g, v))
        assert 0 < size / (1 + tau * largest) * (1 - 1e-9) <= turned < size


def test_one_sweep_is_safe_in_the_metric_where_it_is_not_without():
    """Unroll(steps=1) finds the cotangent d, and the exact gradient is that of (I − B)⁻¹ d, B = blockdiag(Dᵢ Wᵀ).

    The product of the gradient with the direction dᵀS, or dᵀ (I + τ SSᵀ/n)⁻¹ S, is a quadratic form in d. With
    ‖W‖₂ < 1, S of full row rank and a large τ it has no negative value: here are the losses with its lowest ones.
    """
    model, n, m, ascents = ImplicitModel(4, 6, 6, constraint=None, solver=TIGHT, activation="tanh"), 4, 6, 0
    for seed in range(20):
        x = data(n, seed)[0] * torch.logspace(0, -1.5, 4)
        with torch.no_grad():
            model.A.copy_(torch.randn(m, m))
            model.A.mul_(0.95 / torch.linalg.matrix_norm(model.A, 2))
            model.C.copy_(torch.eye(m))
            z = model.state(x)
        slopes, s = 1 - z**2, torch.cat([z, x, torch.ones(n, 1)], 1)
        b = torch.block_diag(*(slope[:, None] * model.A.detach().T for slope in slopes))
        kernel, products = s @ s.T, {}
        for turned in (False, True):
            inner = torch.linalg.solve(torch.eye(n) + 1e5 * kernel / n, kernel) if turned else kernel
            form = torch.kron(inner.contiguous(), torch.eye(m)) @ torch.linalg.inv(torch.eye(n * m) - b)
            d = torch.linalg.eigh(form + form.T).eigenvectors[:, 0].reshape(n, m)
            model.backward = EXACT
            exact = grads(model, x, d / slopes, lambda out, g: (out * g).sum())
            model.backward = inn.Unroll(steps=1)
            v = directions(model, x, d / slopes, lambda out, g: (out * g).sum(), tau=1e5 * turned)
            products[turned] = sum(float((exact[k] * v[k]).sum()) for k in ("A", "B", "b"))
        ascents += products[False] < 0
        assert products[True] > 0
    assert ascents > 5


def test_one_sweep_is_not_safe_under_the_infinity_norm():
    """A = 0.9 · 1 e₁ᵀ, all units active: one sample and the cotangent (−10, 1, ..., 1) will do, with the metric too."""
    m = 30
    model = ImplicitModel(4, m, m, constraint=None, solver=TIGHT)
    with torch.no_grad():
        model.A.zero_()[:, 0] = 0.9
        model.B.zero_()
        model.b.fill_(1.0)
        model.C.copy_(torch.eye(m))
    x, d = data(1)[0], torch.ones(1, m)
    d[0, 0] = -10
    assert (model.state(x) > 0).all()
    model.backward = EXACT
    g = grads(model, x, d, lambda out, g: (out * g).sum())
    products = []
    for backward in (EXACT, inn.Unroll(steps=1)):
        model.backward = backward
        v = directions(model, x, d, lambda out, g: (out * g).sum(), tau=100.0)
        products.append(sum(float((g[k] * v[k]).sum()) for k in ("A", "B", "b")))
    assert products[0] > 0
    assert products[1] < 0


# Use.


@pytest.mark.parametrize("method", ["dual", "primal", "cg"])
@pytest.mark.parametrize("scale", [1e-8, 1e6])
def test_it_is_linear_in_the_loss(method, scale):
    model, (x, y) = mlp(), data()
    v = directions(model, x, y, method=method)
    scaled = directions(model, x, y, lambda a, b: scale * cross_entropy(a, b), method=method)
    for name, value in v.items():
        torch.testing.assert_close(scaled[name] / scale, value)


def test_conjugate_gradients_stop_where_they_are_done():
    s, g, calls = torch.randn(9, 3), torch.randn(4, 3), []
    for dtype in (torch.float32, torch.float64):
        metric = Metric(5.0, rows=s.to(dtype))
        multiply = metric.multiply
        metric.multiply = lambda v, multiply=multiply: calls.append(1) or multiply(v)
        expected = torch.linalg.solve(torch.eye(3) + 5.0 * s.T @ s / 9, g.T).T
        found = metric.solve(g.to(dtype), "cg", 3000).double()
        torch.testing.assert_close(found, expected, rtol=1e3 * torch.finfo(dtype).eps, atol=1e-5)
    assert len(calls) < 20


def test_tiny_gradients_in_single_precision_are_turned_too():
    torch.set_default_dtype(torch.float32)
    model, (x, y) = mlp(), data()
    for method in ("cg", "auto"):
        v = directions(model, x, y, method=method)
        tiny = directions(model, x, y, lambda a, b: 1e-30 * cross_entropy(a, b), method=method)
        torch.testing.assert_close(tiny["0.weight"] / 1e-30, v["0.weight"], rtol=1e-3, atol=1e-5)


def test_single_precision_keeps_four_digits_even_for_an_ill_conditioned_layer():
    x, y = data(40)
    x = x * torch.logspace(0, -2, 4) + 5
    for form in ("dual", "primal"):
        torch.set_default_dtype(torch.float64)
        model = mlp()
        exact = directions(model, x, y, tau=100.0, method=form)
        torch.set_default_dtype(torch.float32)
        single = directions(model.float(), x.float(), y, tau=100.0, method=form)
        error = (single["0.weight"].double() - exact["0.weight"]).norm() / exact["0.weight"].norm()
        assert error < 1e-4


def test_accumulated_passes_add_their_directions():
    model, (x, y), (x2, y2) = deq(), data(), data(seed=7)
    first, second = directions(model, x, y), directions(model, x2, y2)
    with proxprop(model):
        model.zero_grad()
        for inputs, targets in ((x, y), (x2, y2)):
            cross_entropy(model(inputs), targets).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, first[name] + second[name])


def test_two_calls_in_one_loss_have_the_rows_of_both():
    model, (x, y), (x2, y2) = implicit(), data(), data(seed=7)
    both = directions(model, torch.cat([x, x2]), torch.cat([y, y2]))
    with proxprop(model):
        model.zero_grad()
        (cross_entropy(model(x), y) / 2 + cross_entropy(model(x2), y2) / 2).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, both[name], rtol=1e-8, atol=1e-11)


def test_forward_passes_that_are_not_differentiated_leave_no_trace():
    model, (x, y) = mlp(), data()
    expected = directions(model, x, y)
    with proxprop(model):
        model(data(50, seed=3)[0])
        torch.autograd.grad(model(data(50, seed=4)[0]).sum(), model[0].weight)
        found = grads(model, x, y)
    for name, value in expected.items():
        assert torch.equal(found[name], value)


def test_autograd_grad_returns_gradients():
    model, (x, y) = deq(), data()
    expected = grads(model, x, y)
    model.zero_grad()
    with proxprop(model):
        found = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    for value, name in zip(found, expected, strict=True):
        torch.testing.assert_close(value, expected[name])
    assert all(p.grad is None for p in model.parameters())


def test_it_goes_away():
    model, (x, y) = deq(), data()
    expected = grads(model, x, y)
    handle = proxprop(model)
    assert not torch.allclose(grads(model, x, y)["0.cell.recur.weight"], expected["0.cell.recur.weight"])
    handle.remove()
    assert all(torch.equal(value, expected[name]) for name, value in grads(model, x, y).items())
    with handle:
        assert handle.attach() is handle  # once is enough
        assert not torch.allclose(grads(model, x, y)["0.cell.recur.weight"], expected["0.cell.recur.weight"])
    assert all(torch.equal(value, expected[name]) for name, value in grads(model, x, y).items())


@pytest.mark.parametrize("make", [mlp, deq, implicit])
def test_it_composes_with_adam_clipping_and_a_schedule(make):
    """Training with the hooks equals training where the directions are put into .grad by hand."""
    torch.manual_seed(3)
    ours, (x, y) = make(), data(30)
    by_hand = copy.deepcopy(ours)
    runs = []
    for model, hooked in ((ours, True), (by_hand, False)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        handle = proxprop(model, tau=30.0) if hooked else None
        for _ in range(6):
            if hooked:
                optimizer.zero_grad()
                cross_entropy(model(x), y).backward()
            else:
                for (_, value), p in zip(directions(model, x, y, tau=30.0).items(), model.parameters(), strict=True):
                    p.grad = value
            nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
            optimizer.step()
            schedule.step()
        runs.append([p.detach() for p in model.parameters()])
        if handle is not None:
            assert handle.solves == 6 * (2 if make in (mlp, deq) else 1)
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_running_average_is_that_of_the_second_moments():
    model, tau, ema = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), 5.0, 0.7
    sigma, weight = torch.zeros(5, 5), 0.0
    handle = proxprop(model, tau=tau, ema=ema)
    for seed in range(4):
        x, y = data(seed=seed)
        s = ones(x)
        sigma, weight = ema * sigma + (1 - ema) * s.T @ s / 9, ema * weight + 1 - ema
        found = grads(model, x, y)
        handle.remove()
        g = grads(model, x, y)
        handle.attach()
        joint = torch.cat([g["0.weight"], g["0.bias"][:, None]], 1)
        expected = torch.linalg.solve(torch.eye(5) + tau * sigma / weight, joint.T).T
        torch.testing.assert_close(found["0.weight"], expected[:, :4])
    other = ProxProp(tau=tau, ema=ema).attach(copy.deepcopy(model))
    other.load_state_dict(handle.state_dict())
    torch.testing.assert_close(other.state_dict(), handle.state_dict())
    assert len(handle.state_dict()) == 2


def test_infinite_gradients_stay_for_a_loss_scaler_to_see():
    model, (x, y) = mlp(), data()
    g, v = (f(model, x, y, lambda a, b: cross_entropy(a, b) * 1e308 * a[:, :1].sum()) for f in (grads, directions))
    assert not g["0.weight"].isfinite().all()
    for name, value in g.items():
        torch.testing.assert_close(v[name], value, equal_nan=True, rtol=0, atol=0)


def test_a_matrix_without_a_factor_is_solved_by_conjugate_gradients():
    s, g = torch.randn(9, 5), torch.randn(3, 5)
    expected = Metric(5.0, rows=s).solve(g, "primal")
    for method in ("dual", "primal"):
        broken = Metric(5.0, rows=s)
        broken._gram = lambda form: torch.full((9, 9) if form == "dual" else (5, 5), -1.0)
        with pytest.warns(RuntimeWarning, match="could not be factored"):
            torch.testing.assert_close(broken.solve(g, method), expected)


def test_a_weight_used_without_its_layer_stays_plain_and_says_so():
    model, (x, y) = mlp(), data()
    with proxprop(model), pytest.warns(RuntimeWarning, match=r"'0' were used without calling it"):
        cross_entropy(model[1:](nn.functional.linear(x, model[0].weight, model[0].bias)), y).backward()


def test_frozen_weights_have_no_columns():
    model, (x, y) = mlp(), data()
    model[0].bias.requires_grad_(False)
    g, v = grads(model, x, y), directions(model, x, y, tau=3.0)
    expected = torch.linalg.solve(torch.eye(4) + 3.0 * x.T @ x / 9, g["0.weight"].T).T
    torch.testing.assert_close(v["0.weight"], expected)
    assert "0.bias" not in v


def test_a_graph_of_directions_is_refused():
    model, (x, y) = mlp(), data()
    with proxprop(model), pytest.raises(RuntimeError, match="create_graph"):
        cross_entropy(model(x), y).backward(create_graph=True)


def test_models_can_be_copied_while_the_hooks_are_on():
    model, (x, y) = deq(), data()
    expected = grads(model, x, y)
    with proxprop(model):
        other = copy.deepcopy(model)
    torch.testing.assert_close(grads(other, x, y), expected)


BAD = [
    ({"tau": -1.0}, "tau"),
    ({"tau": float("nan")}, "tau"),
    ({"method": "lu"}, "method"),
    ({"cg_steps": 0}, "cg_steps"),
    ({"ema": 1.0}, "ema"),
    ({"ema": 0.9, "method": "dual"}, "ema"),
    ({"head": "both"}, "head"),
]


@pytest.mark.parametrize(("options", "name"), BAD, ids=str)
def test_bad_options_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        proxprop(mlp(), **options)


def test_models_that_it_can_not_take_are_refused():
    with pytest.raises(TypeError, match=r"nn\.Module"):
        proxprop(lambda x: x)
    with pytest.raises(ValueError, match="head='prox'"):
        proxprop(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no layer"):
        proxprop(nn.LayerNorm(3))
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="'0' and '1' share"):
        proxprop(tied)
    with pytest.raises(TypeError, match="taus"):
        proxprop(mlp(), taus=1)
    with pytest.raises(ValueError, match="optimizer"):
        ProxProp(optimizer="lion")
    with pytest.raises(Unsupported, match="no layer"):
        ProxProp().trainer(nn.LayerNorm(3), cross_entropy, lr=0.1)


def test_it_is_a_method_by_name():
    assert training.parse("proxprop") == ProxProp()
    assert training.parse("ProxProp(tau=3, method='cg')") == ProxProp(tau=3, method="cg")


def test_a_trainer_takes_steps_along_the_directions():
    model, (x, y) = deq(), data()
    v, before = directions(model, x, y), {name: p.detach().clone() for name, p in model.named_parameters()}
    ProxProp(optimizer="sgd").trainer(model, cross_entropy, lr=0.1).step(x, y)
    for name, p in model.named_parameters():  # Nesterov's first step is along 1.9 of it
        torch.testing.assert_close(before[name] - p.detach(), 0.19 * v[name])


def test_a_trainer_leaves_no_hooks():
    model, (x, y) = deq(), data()
    expected = grads(model, x, y)
    ProxProp().trainer(model, cross_entropy, lr=0.0).step(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(grads(model, x, y), expected)
