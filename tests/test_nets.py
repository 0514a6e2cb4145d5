"""The models of deep learning: cells, images at one and several resolutions, Transformers, recurrent networks."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from problems import normal
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

import implicitnets as inn
from implicitnets.analysis import jacobian_frobenius, spectral_radius
from implicitnets.models import (
    DEQ,
    ConvCell,
    ConvDEQ,
    DenseCell,
    DEQTransformer,
    ImplicitModel,
    ImplicitRNN,
    LearnedStart,
    MultiscaleCell,
    MultiscaleDEQ,
    TransformerCell,
    WarmStart,
    normalized,
)
from implicitnets.models.transformer import sinusoids
from implicitnets.solvers import GMRES, Anderson, Dense, Picard

F64 = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14, "max_steps": 500}
EXACT: dict[str, Any] = {"solver": Anderson(**TIGHT), "backward": inn.Implicit(solver=GMRES(**TIGHT))}


def double(*shape: int, seed: int = 1) -> Tensor:
    return normal(*shape, dtype=F64, seed=seed)


def jiggle(module: nn.Module, size: float = 0.1) -> Any:
    """The module in float64, with no weight left at a special value such as 0 or 1."""
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn_like(p))
    return module


def iterate(f: Any, z: Any, steps: int = 500) -> Any:
    """The plain iteration, as one would write it."""
    with torch.no_grad():
        for _ in range(steps):
            z = f(z)
    return z


# the equations of the cells


def test_a_dense_cell_is_the_state_of_an_implicit_model():
    model = jiggle(ImplicitModel(4, 6, 2, activation="tanh", **EXACT))
    deq = DEQ(DenseCell(6), **EXACT).double()
    deq.cell.load_state_dict({"parametrizations.weight.original": model.parametrizations.A.original})
    u = double(3, 4)
    assert torch.allclose(deq(functional.linear(u, model.B, model.b)), model.state(u), atol=1e-10)


def test_a_convolutional_cell_is_the_block_of_its_paper():
    cell = jiggle(ConvCell(4, hidden=6, groups=2))
    z, u = double(3, 4, 5, 5), double(3, 4, 5, 5, seed=2)

    def norm(layer: nn.GroupNorm, t: Tensor) -> Tensor:
        groups = t.reshape(len(t), 2, -1)
        deviation = (groups.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        scaled = ((groups - groups.mean(-1, keepdim=True)) / deviation).reshape(t.shape)
        return scaled * layer.weight[:, None, None] + layer.bias[:, None, None]

    h = functional.relu(norm(cell.norm1, functional.conv2d(z, cell.conv1.weight, padding=1)))
    h = norm(cell.norm2, u + functional.conv2d(h, cell.conv2.weight, padding=1))
    assert torch.allclose(cell(z, u), norm(cell.norm3, functional.relu(z + h)))


def test_a_multiscale_cell_fuses_every_resolution_with_every_other():
    cell = jiggle(MultiscaleCell((2, 4, 6), groups=2))
    z = (double(3, 2, 7, 7), double(3, 4, 4, 4), double(3, 6, 2, 2))
    u = double(3, 2, 7, 7, seed=2)
    a, b, c = (block(t, v) for block, t, v in zip(cell.blocks, z, (u, None, None), strict=True))
    down, up = cell.down, cell.up
    assert [type(layer) for layer in down["0to2"][1:3]] == [nn.GroupNorm, nn.ReLU]
    assert [layer.stride for layer in down["0to2"] if isinstance(layer, nn.Conv2d)] == [(2, 2), (2, 2)]
    # To the next neighbor: pixel i of 7 is pixel ⌊4i/7⌋ of 4, and ⌊2i/7⌋ of 2.
    fine4, fine2, mid2 = (torch.arange(n) * m // n for n, m in ((7, 4), (7, 2), (4, 2)))

    def grown(t: Tensor, at: Tensor) -> Tensor:
        return t[:, :, at][:, :, :, at]

    sums = (
        a + grown(up["1to0"](b), fine4) + grown(up["2to0"](c), fine2),
        down["0to1"](a) + b + grown(up["2to1"](c), mid2),
        down["0to2"](a) + down["1to2"](b) + c,
    )
    for got, fuse, total in zip(cell(z, u), cell.fuse, sums, strict=True):
        assert torch.allclose(got, fuse(functional.relu(total)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_transformer_cell_is_an_encoder_layer_of_pytorch(causal, masked):
    cell = jiggle(TransformerCell(8, 2, hidden=5, causal=causal))
    layer = nn.TransformerEncoderLayer(8, 2, 5, dropout=0.0, activation="gelu", batch_first=True, dtype=F64)
    names = {
        "project.": "self_attn.in_proj_",
        "merge": "self_attn.out_proj",
        "expand": "linear1",
        "contract": "linear2",
    }
    weights = {}
    for name, value in cell.state_dict().items():
        head = next((key for key in names if name.startswith(key)), None)
        weights[name if head is None else name.replace(head, names[head])] = value
    layer.load_state_dict(weights)
    z, u = double(3, 6, 8), double(3, 6, 8, seed=2)
    mask = torch.arange(6) < torch.tensor([[6], [4], [1]]) if masked else None
    wanted = layer(
        z + u,
        src_mask=torch.ones(6, 6, dtype=torch.bool).triu(1) if causal else None,
        src_key_padding_mask=None if mask is None else ~mask,
    )
    if mask is not None:
        wanted = wanted * mask[..., None]
    assert torch.allclose(cell(z, u, mask), wanted)
    with torch.no_grad():  # where another kernel may be at work
        assert torch.allclose(cell(z, u, mask), wanted)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: ConvDEQ(2, 4, groups=2, **EXACT), (3, 2, 6, 5)),
        (lambda: MultiscaleDEQ(2, (2, 4, 4), groups=2, **EXACT), (3, 2, 9, 7)),
        (lambda: DEQTransformer(8, 2, **EXACT), (3, 5, 8)),
    ],
    ids=["ConvDEQ", "MultiscaleDEQ", "DEQTransformer"],
)
def test_the_models_go_where_the_plain_iteration_goes(make, shape):
    model, x = jiggle(make(), 0.02), double(*shape)
    got = model(x)
    u = model.injection(x) if isinstance(model, DEQTransformer) else model.inject(x)
    start = tuple(map(torch.zeros_like, got)) if isinstance(got, tuple) else torch.zeros_like(got)
    wanted = iterate(lambda z: model.cell(z, u), start)
    for a, b in zip(*((t if isinstance(t, tuple) else (t,)) for t in (got, wanted)), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


# images


def test_resolutions_are_halves_rounded_up_and_all_see_the_input():
    model = MultiscaleDEQ(3, (4, 8, 4), groups=4, **EXACT).double()
    x = double(2, 3, 11, 6)
    with torch.no_grad():
        states, moved = model(x), model(x + 0.1 * double(2, 3, 11, 6, seed=3))
    assert [tuple(z.shape) for z in states] == [(2, 4, 11, 6), (2, 8, 6, 3), (2, 4, 3, 2)]
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in zip(states, moved, strict=True))


def test_weight_norm_trains_lengths_and_directions():
    conv = normalized.convolution(3, 5, gain=0.7)
    lengths = conv.weight.flatten(1).norm(dim=1)
    assert torch.allclose(lengths, torch.full((5,), 0.7))
    assert torch.allclose(conv.parametrizations.weight.original0.flatten(), lengths)
    with torch.no_grad():
        conv.parametrizations.weight.original1.mul_(3)
    assert torch.allclose(conv.weight.flatten(1).norm(dim=1), lengths)
    with torch.no_grad():
        conv.parametrizations.weight.original1[0] = 0  # a kernel that was pruned
    assert not conv.weight[0].any()
    conv.weight.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in conv.parameters())


def test_weight_norm_has_derivatives_of_every_mode():
    conv = normalized.convolution(1, 2).double()
    names, values = zip(*conv.named_parameters(), strict=True)
    x, call = double(1, 1, 3, 3), torch.func.functional_call

    def f(*values: Tensor) -> Tensor:
        return call(conv, dict(zip(names, values, strict=True)), (x,)).square().sum()

    values = tuple(v.detach().requires_grad_() for v in values)
    assert torch.autograd.gradcheck(f, values, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, values)


def test_weight_norm_is_computed_once_a_solve(monkeypatch):
    calls = []
    cell = ConvCell(4)
    deq, u = DEQ(cell), torch.randn(2, 4, 5, 5)
    kind = type(cell.conv1.parametrizations.weight[0])
    original = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, g, v: calls.append(1) or original(self, g, v))
    with torch.no_grad():
        deq(u)
    assert deq.forward_solution.evaluations > 5
    assert len(calls) <= 4  # of two convolutions: to look what the cell depends on, and to solve


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_of_a_weight_normed_module_trains_by_itself(how):
    conv = jiggle(normalized.convolution(2, 3))
    other = how(conv)
    assert other.state_dict().keys() == conv.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(conv.parameters(), other.parameters(), strict=True))
    assert torch.equal(other.weight, conv.weight)
    other.weight.sum().backward()
    assert all(p.grad is None for p in conv.parameters())
    with torch.no_grad():
        other.parametrizations.weight.original0.zero_()
    assert not other.weight.any()
    assert bool(conv.weight.any())


# Transformers


def transformer(**options: Any) -> DEQTransformer:
    return jiggle(DEQTransformer(8, 2, **EXACT, **options), 0.05)


def test_what_is_later_is_not_seen_at_equilibrium():
    model, x = transformer(), double(2, 6, 8)
    later = x.clone()
    later[:, 4:] += 1
    before, after = model(x), model(later)
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-10)
    assert float((before[:, 4:] - after[:, 4:]).detach().abs().min(-1).values.max()) > 1e-3
    x.requires_grad_()
    (g,) = torch.autograd.grad(model(x)[:, :4].square().sum(), x)
    assert not g[:, 4:].any()
    assert bool(g[:, :4].any(-1).all())


def test_without_causality_and_positions_it_is_equivariant():
    x, order = double(2, 6, 8), torch.randperm(6)
    model = transformer(causal=False, positions=False)
    assert torch.allclose(model(x)[:, order], model(x[:, order]), atol=1e-10)
    for options in ({"causal": False}, {"positions": False}):
        other = transformer(**options)
        assert not torch.allclose(other(x)[:, order], other(x[:, order]), atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_as_if_it_were_not_there(causal):
    model, x = transformer(causal=causal), double(3, 6, 8)
    lengths = torch.tensor([6, 3, 1])
    mask = torch.arange(6) < lengths[:, None]
    states = model(x, mask)
    assert model.forward_solution.converged.all()
    for row, length in enumerate(lengths):
        assert torch.allclose(states[row, :length], model(x[row : row + 1, :length])[0], atol=1e-10)
        assert not states[row, length:].any()
    x = torch.where(mask[..., None], x, torch.full_like(x, 1e3)).requires_grad_()
    assert torch.allclose(model(x, mask), states, atol=1e-10)
    (g,) = torch.autograd.grad(model(x, mask).square().sum(), x)
    assert not g[~mask].any()


def test_padding_in_front_of_a_causal_model_is_not_seen_either():
    model, x = transformer(positions=False), double(1, 5, 8)
    mask = torch.tensor([[False, False, True, True, True]])
    assert torch.allclose(model(x, mask)[:, 2:], model(x[:, 2:]), atol=1e-10)


@pytest.mark.parametrize("length", [4, 64])
def test_however_long_the_sequence_it_starts_as_a_contraction(length):
    model, x = DEQTransformer(16, 2, **EXACT).double(), double(2, length, 16)
    state, u = model(x).detach(), model.injection(x).detach()
    assert spectral_radius(model.cell, state, u).max() < 0.5


def test_positions_are_those_of_the_transformer():
    found = sinusoids(30, 6, like=torch.empty(0, dtype=F64))
    t = torch.arange(30, dtype=F64)
    assert torch.allclose(found[:, 2], (t / 10000 ** (2 / 6)).sin())
    assert torch.allclose(found[:, 3], (t / 10000 ** (2 / 6)).cos())
    assert sinusoids(4, 5, like=torch.empty(0)).shape == (4, 5)


def test_attention_has_second_derivatives_or_says_that_it_has_none():
    x = double(2, 3, 4).requires_grad_()
    model = jiggle(
        DEQTransformer(4, 2, hidden=3, solver=Anderson(**TIGHT), backward=inn.Implicit(solver=Dense(**TIGHT)))
    )
    assert torch.autograd.gradgradcheck(model, x, fast_mode=True)
    assert torch.autograd.gradcheck(model, x, fast_mode=True, check_forward_ad=True)

    def penalty(x: Tensor) -> Tensor:
        u = model.injection(x)
        return jacobian_frobenius(model.cell, model(x), u, generator=torch.Generator().manual_seed(0)).sum()

    assert torch.autograd.gradcheck(penalty, x, fast_mode=True)
    fused = DEQTransformer(4, 2, hidden=3, fused=True, **EXACT).double()
    fused.load_state_dict(model.state_dict())
    (wanted,) = torch.autograd.grad(model(x).square().sum(), x)
    (g,) = torch.autograd.grad(fused(x).square().sum(), x)
    assert torch.allclose(g, wanted, atol=1e-10)
    with pytest.raises(RuntimeError, match="not implemented"):
        jacobian_frobenius(fused.cell, fused(x), fused.injection(x)).sum().backward()


# recurrent networks


def test_a_recurrent_network_is_a_fixed_point_at_each_step():
    rnn = jiggle(ImplicitRNN(2, 5, **EXACT))
    x, h = double(3, 7, 2), torch.zeros(3, 5, dtype=F64)
    states = rnn(x)
    for t in range(7):
        u = x[:, t] @ rnn.U.T + h @ rnn.V.T + rnn.b
        h = iterate(lambda z, u=u: torch.tanh(z @ rnn.W.T + u), torch.zeros_like(u))
        assert torch.allclose(states[:, t], h, atol=1e-9)


def test_without_implicit_weights_it_is_the_plain_recurrent_network():
    rnn, plain = jiggle(ImplicitRNN(2, 5, **EXACT)), nn.RNN(2, 5, batch_first=True, dtype=F64)
    with torch.no_grad():
        rnn.parametrizations.W.original.zero_()
        for mine, theirs in ((rnn.U, "weight_ih_l0"), (rnn.V, "weight_hh_l0"), (rnn.b, "bias_ih_l0")):
            getattr(plain, theirs).copy_(mine)
        plain.bias_hh_l0.zero_()
    x = double(3, 7, 2).requires_grad_()
    a, b = rnn(x), plain(x)[0]
    assert torch.allclose(a, b, atol=1e-11)
    assert torch.allclose(*(torch.autograd.grad((y * double(3, 7, 5)).sum(), x)[0] for y in (a, b)), atol=1e-10)


def test_a_sequence_can_be_cut_and_the_gradient_with_it():
    rnn = jiggle(ImplicitRNN(2, 5, **EXACT))
    x = double(3, 7, 2).requires_grad_()
    whole, first = rnn(x), rnn(x[:, :4])
    pieces = torch.cat([first, rnn(x[:, 4:], first[:, -1])], 1)
    assert torch.allclose(pieces, whole, atol=1e-10)
    assert torch.allclose(*(torch.autograd.grad(y.sum(), x)[0] for y in (pieces, whole)), atol=1e-9)


def test_the_rows_of_the_implicit_weights_stay_bounded_through_training():
    rnn = ImplicitRNN(2, 5, constraint=inn.constraints.InfNorm(kappa=0.6))
    optimizer = torch.optim.SGD(rnn.parameters(), lr=10.0)
    for _ in range(5):
        optimizer.zero_grad()
        rnn(torch.randn(4, 3, 2)).square().sum().backward()
        optimizer.step()
    assert float(rnn.parametrizations.W.original.detach().abs().sum(1).max()) > 0.6
    assert float(rnn.W.detach().abs().sum(1).max()) <= 0.6 + 1e-6


def test_a_failure_at_an_early_step_stays_in_the_record():
    rnn = ImplicitRNN(2, 5, solver=Picard(rtol=1e-6, atol=1e-8, max_steps=9, record=True)).double()
    with torch.no_grad():
        rnn.V.zero_()  # then all steps have the same equation, and only the first has to be solved
        rnn.b.fill_(1.0)
    seen: list[Any] = []
    original = rnn.equilibrium
    rnn.equilibrium = lambda *a: (original(*a), seen.append(rnn.forward_solution))[0]
    x = torch.ones(3, 4, 2, dtype=F64)
    with pytest.warns(inn.ConvergenceWarning, match="3 of 3 samples"):
        states = rnn(x)
    record = rnn.forward_solution
    assert not seen[0].converged.any()
    assert seen[-1].converged.all()
    assert (record.status == inn.Status.MAX_STEPS).all()
    assert torch.equal(record.residual, seen[0].residual)
    assert torch.equal(record.steps, sum(r.steps for r in seen))
    assert record.evaluations == sum(r.evaluations for r in seen)
    assert record.trace.shape == (sum(len(r.trace) for r in seen), 3)
    assert torch.equal(record.value, states)


def test_a_failed_gradient_of_one_step_stays_in_the_record():
    rnn = ImplicitRNN(2, 5, backward=inn.Implicit(solver=Picard(rtol=1e-10, atol=1e-12, max_steps=2))).double()
    states = rnn(double(3, 4, 2))
    assert rnn.backward_solution is None
    with pytest.warns(inn.ConvergenceWarning, match="gradient"):
        states.sum().backward()
    record = rnn.backward_solution
    assert not record.converged.any()
    assert record.steps.tolist() == [8, 8, 8]
    rnn(double(3, 4, 2))
    assert rnn.backward_solution is None


def test_starting_from_the_states_of_the_last_time_takes_no_step():
    rnn, x = ImplicitRNN(2, 5), torch.randn(6, 4, 2)
    states = rnn(x)
    assert rnn.forward_solution.steps.min() > 4
    again = rnn(x, z0=states)
    assert not rnn.forward_solution.steps.any()
    assert torch.allclose(states, again, atol=1e-3)


def test_a_recurrent_network_with_a_start_keeps_whole_sequences():
    x, index = torch.randn(6, 4, 2), torch.arange(6)
    warm = ImplicitRNN(2, 5, start=WarmStart(samples=6))
    with warm.start.at(index):
        warm(x)
        first = warm.forward_solution.steps
        warm(x)
    assert (warm.forward_solution.steps < first).all()
    learned = ImplicitRNN(2, 5, start=LearnedStart(nn.Linear(5, 5)))
    learned(x)
    learned.start.loss().backward()
    assert bool(learned.start.predictor.weight.grad.any())


# what is trained


def test_a_recurrent_network_remembers():
    """The first of ten symbols is to be told at the end."""
    rnn, head = ImplicitRNN(5, 24), nn.Linear(24, 4)
    optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=1e-2)

    def draw(samples: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(4, (samples,))
        symbols = torch.full((samples, 10), 4)
        symbols[:, 0] = labels
        return functional.one_hot(symbols, 5).float(), labels

    for _ in range(40):
        x, y = draw(32)
        optimizer.zero_grad()
        cross_entropy(head(rnn(x)[:, -1]), y).backward()
        optimizer.step()
    x, y = draw(500)
    assert float((head(rnn(x)[:, -1]).argmax(1) == y).float().mean()) > 0.95


def test_a_transformer_continues_what_repeats():
    """Four random tokens of eight, again and again: from the fifth on, the next one is known."""
    deq = DEQTransformer(32, 4)
    model = nn.Sequential(nn.Embedding(8, 32), deq, nn.Linear(32, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def draw(samples: int) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(8, (samples, 4)).repeat(1, 4)[:, :13]
        return tokens[:, :-1], tokens[:, 4:]

    for _ in range(150):
        tokens, wanted = draw(32)
        optimizer.zero_grad()
        cross_entropy(model(tokens)[:, 3:].flatten(0, 1), wanted.flatten()).backward()
        optimizer.step()
    tokens, wanted = draw(200)
    assert float((model(tokens)[:, 3:].argmax(-1) == wanted).float().mean()) > 0.6  # by chance 0.125


def test_a_jacobian_penalty_makes_the_cell_contract_more():
    x = torch.randn(8, 2, 6, 6)
    means = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        model = ConvDEQ(2, 4)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(15):
            z, u = model(x), model.inject(x)
            loss = (z.mean((2, 3)) - 1).square().mean() + weight * jacobian_frobenius(model.cell, z, u).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        means.append(float(jacobian_frobenius(model.cell, model(x), model.inject(x), probes=20).mean().detach()))
    assert means[1] < 0.7 * means[0]


# bad input


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (ValueError, r"DenseCell\(states=0\): states must be at least 1", lambda: DenseCell(0)),
        (ValueError, r"no activation is called 'swish'.*relu", lambda: DenseCell(3, activation="swish")),
        (TypeError, r"constraint=0.9 is not a Constraint.*InfNorm", lambda: DenseCell(3, constraint=0.9)),
        (ValueError, r"channels=6, groups=4\): channels must be a multiple", lambda: ConvCell(6)),
        (ValueError, r"hidden=6, groups=4\): hidden must be a multiple", lambda: ConvCell(8, hidden=6)),
        (ValueError, r"width=6, heads=4\): width must be a multiple", lambda: TransformerCell(6, 4)),
        (ValueError, r"MultiscaleCell\(channels=\(\)\).*\(16, 32\)", lambda: MultiscaleCell(())),
        (ValueError, r"ConvDEQ\(channels_in=0\)", lambda: ConvDEQ(0, 4)),
        (TypeError, r"solver='anderson' is not a Solver", lambda: ConvDEQ(1, 4, solver="anderson")),
        (ValueError, r"x has shape \(2, 9\), not \(batch, 1, height", lambda: ConvDEQ(1, 4)(torch.ones(2, 9))),
        (ValueError, r"not \(batch, 3, height", lambda: MultiscaleDEQ(3, (4,))(torch.ones(2, 1, 4, 4))),
        (ValueError, r"not \(batch, length, 8\).*nn.Embedding", lambda: DEQTransformer(8, 2)(torch.ones(2, 8))),
        (
            ValueError,
            r"mask is torch.float32 of shape \(2, 3\), not bool",
            lambda: DEQTransformer(8, 2)(torch.ones(2, 3, 8), torch.ones(2, 3)),
        ),
        (ValueError, r"ImplicitRNN\(inputs=0\)", lambda: ImplicitRNN(0, 4)),
        (ValueError, r"no activation is called 'swish'", lambda: ImplicitRNN(2, 4, activation="swish")),
        (TypeError, r"constraint=0.9 is not a Constraint", lambda: ImplicitRNN(2, 4, constraint=0.9)),
        (ValueError, r"x has shape \(3, 2\).*x\[:, None\]", lambda: ImplicitRNN(2, 4)(torch.ones(3, 2))),
        (ValueError, r"length of at least 1", lambda: ImplicitRNN(2, 4)(torch.ones(3, 0, 2))),
        (ValueError, r"h0 has shape \(4,\)", lambda: ImplicitRNN(2, 4)(torch.ones(3, 5, 2), torch.ones(4))),
        (ValueError, r"z0 has shape \(3, 4\)", lambda: ImplicitRNN(2, 4)(torch.ones(3, 5, 2), z0=torch.ones(3, 4))),
    ],
)
def test_bad_input_is_named_with_what_to_write_instead(error, text, call):
    with pytest.raises(error, match=text):
        call()
