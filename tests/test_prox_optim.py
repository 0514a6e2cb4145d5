"""Proximal optimizers: PyTorch's where there is no penalty, minimizers of their model where there is one."""

import copy
import io
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso
from torch import nn
from torch.nn.functional import cross_entropy

from implicitnets import data, models, prox
from implicitnets.constraints import inf_norm
from implicitnets.training import ProxAdam, ProxAdamW, ProxSGD, penalize

PAIRS = [
    (ProxSGD, torch.optim.SGD, {}),
    (ProxSGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1, "foreach": True}),
    (ProxSGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "maximize": True}),
    (ProxSGD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.9}),
    (ProxAdam, torch.optim.Adam, {}),
    (ProxAdam, torch.optim.Adam, {"betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.1, "foreach": True}),
    (ProxAdam, torch.optim.Adam, {"amsgrad": True, "maximize": True, "betas": (0.9, 0.3)}),
    (ProxAdamW, torch.optim.AdamW, {}),
    (ProxAdamW, torch.optim.AdamW, {"weight_decay": 0.3, "amsgrad": True}),
]
PENALTIES = [
    prox.L0(0.1),
    prox.L1(0.1),
    prox.L12(0.1),
    prox.L23(0.1),
    prox.L2(0.1),
    prox.Binary(prox.L1(0.1), level=0.5),
    prox.Box(-0.5, None),
    prox.GroupL1(0.1),
    prox.Nuclear(0.1, rtol=1e-10),
    prox.InfNormBall(0.5),
    prox.Simplex(),
]
seeds = st.integers(0, 10_000)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights():
    return [nn.Parameter(normal(0, 4, 3)), nn.Parameter(normal(1, 5))]


def drawn(k, p, i=0):
    """A gradient for step k of parameter number i."""
    return normal(100 * k + i, *p.shape) / (1 + k)


def descend(make, steps):
    """Parameters after some steps, and the optimizer."""
    parameters = weights()
    optimizer = make(parameters)
    go_on(parameters, optimizer, range(steps))
    return parameters, optimizer


def go_on(parameters, optimizer, steps):
    for k in steps:
        for i, p in enumerate(parameters):
            p.grad = drawn(k, p, i).to(p)
        optimizer.step()


def metric(gradients, beta=0.999, eps=1e-8, amsgrad=False):
    """D of Adam (Kingma and Ba 2015, algorithm 1; Reddi, Kale and Kumar 2018)."""
    average = highest = torch.zeros_like(gradients[0])
    for g in gradients:
        average = beta * average + (1 - beta) * g**2
        highest = torch.maximum(highest, average)
    return ((highest if amsgrad else average) / (1 - beta ** len(gradients))).sqrt() + eps


class TestWithoutPenalty:
    @pytest.mark.parametrize(("cls", "plain", "options"), PAIRS)
    def test_is_pytorchs_own_bit_for_bit(self, cls, plain, options):
        mine, _ = descend(lambda ps: cls(ps, lr=0.1, **options), steps=6)
        other, _ = descend(lambda ps: plain(ps, lr=0.1, **options), steps=6)
        assert all(map(torch.equal, mine, other))
        assert not torch.equal(mine[0], weights()[0])


class TestStep:
    @pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
    @pytest.mark.parametrize(("cls", "options"), [(mine, options) for mine, _, options in PAIRS])
    def test_is_the_proximal_map_of_pytorchs_step_in_its_metric(self, cls, options, penalty):
        def make(ps):
            return cls(ps, lr=0.1, **options)

        (p, _), optimizer = descend(make, steps=3)
        (v, _), _ = descend(make, steps=4)  # where PyTorch goes
        optimizer.param_groups[0] |= {"params": [p], "penalty": penalty}
        p.grad = drawn(3, p)
        optimizer.step()
        if cls is ProxSGD:
            d = (1 - options.get("momentum", 0.0)) / (1 - options.get("dampening", 0.0))
        else:
            decay = options.get("weight_decay", 0.0) if cls is ProxAdam else 0.0
            path = [descend(make, steps=k)[0][0].detach() for k in range(4)]
            gradients = [drawn(k, q) + decay * q for k, q in enumerate(path)]
            names = {"beta": options.get("betas", (0.9, 0.999))[1], "eps": options.get("eps", 1e-8)}
            d = metric(gradients, amsgrad=options.get("amsgrad", False), **names)
        expected = penalty(v.detach(), 0.1 / d * torch.ones(4, 3, dtype=torch.float64))
        assert torch.allclose(p, expected, rtol=1e-8, atol=1e-10)
        assert not torch.equal(p, v) or penalty == prox.L0(0.1)

    @given(seeds)
    @settings(max_examples=15, deadline=None)
    @pytest.mark.parametrize("penalty", [prox.L1(0.3), prox.L12(0.3), prox.L23(0.3), prox.L0(0.3)], ids=repr)
    def test_minimizes_the_model_of_the_loss(self, penalty, seed):
        """⟨m̂, θ'⟩ + R(θ') + (θ' − θ)ᵀD(θ' − θ)/2lr, no point of a grid being better."""
        gradients = [normal(seed + k, 6) for k in range(3)]
        p = nn.Parameter(normal(seed + 9, 6))
        optimizer = ProxAdam([p], lr=0.2, penalty=penalty, betas=(0.9, 0.99), eps=1e-3)
        for g in gradients:
            before, p.grad = p.detach().clone(), g
            optimizer.step()
        average = sum(0.1 * 0.9 ** (2 - k) * g for k, g in enumerate(gradients)) / (1 - 0.9**3)
        d = metric(gradients, beta=0.99, eps=1e-3)

        def value(x):
            return average * x + penalty.weight * penalty.size(x) + d * (x - before) ** 2 / 0.4

        grid = torch.tensor(np.linspace(-6, 6, 20_001))[:, None]
        assert (value(p.detach()) <= value(grid).amin(0) + 1e-10).all()

    @pytest.mark.parametrize("penalty", [p for p in PENALTIES if p.separable], ids=repr)
    @pytest.mark.parametrize("cls", [ProxSGD, ProxAdam])
    def test_taking_the_tensors_together_changes_nothing(self, cls, penalty):
        def parameters():
            single = [nn.Parameter(normal(k, 3, k).float()) for k in range(1, 4)]
            return [*weights(), *single]

        found = []
        for foreach in (None, True, False):
            mine = parameters()
            go_on(mine, cls(mine, lr=0.1, penalty=penalty, foreach=foreach), range(4))
            found.append(mine)
        assert all(torch.equal(p, q) for p, q in zip(found[0], found[1], strict=True))
        assert all(torch.allclose(p, q, atol=1e-7) for p, q in zip(found[0], found[2], strict=True))
        assert not torch.allclose(found[0][0], weights()[0])

    def test_what_has_no_gradient_or_no_rate_stays(self):
        still, moving = weights()
        before = still.detach().clone(), moving.detach().clone()
        moving.grad = torch.ones_like(moving)
        optimizer = ProxAdam([still, moving], lr=0.0, penalty=prox.InfNormBall(0.1))
        optimizer.step()
        assert torch.equal(moving, before[1])
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.step()
        assert torch.equal(still, before[0])
        assert moving.abs().sum().item() == pytest.approx(0.1)

    def test_closure_is_called_once_with_gradients_enabled(self):
        p, calls = nn.Parameter(torch.tensor([3.0])), []

        def closure():
            calls.append(torch.is_grad_enabled())
            optimizer.zero_grad()
            loss = p.square().sum() / 2
            loss.backward()
            return loss

        optimizer = ProxSGD([p], lr=0.1, penalty=prox.L1(2.0))
        assert optimizer.step(closure).item() == 4.5
        assert calls == [True]
        assert p.item() == pytest.approx(2.5)

    def test_hooks_are_called_once_even_if_pytorchs_own_were_made_before(self):
        torch.optim.Adam(weights())
        (p, _), calls = weights(), []
        p.grad = torch.ones_like(p)
        optimizer = ProxAdam([p], lr=0.1, penalty=prox.L1(100.0))
        optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_: calls.append(bool((p == 0).all())))
        optimizer.step()
        assert calls == ["before", True]


class TestLasso:
    """1/2n ‖Xb − y‖² + α‖b‖₁ on the diabetes data."""

    x, y = load_diabetes(return_X_y=True)
    x, y = x / x.std(0), (y - y.mean()) / y.std()
    alpha = 0.1
    expected = Lasso(alpha=alpha, tol=1e-12, max_iter=100_000, fit_intercept=False).fit(x, y).coef_

    @pytest.mark.parametrize(
        "make",
        [
            lambda ps, r: ProxSGD(ps, lr=0.2, penalty=r),
            lambda ps, r: ProxSGD(ps, lr=0.1, momentum=0.5, nesterov=True, penalty=r),
            lambda ps, r: ProxSGD(ps, lr=0.1, momentum=0.8, dampening=0.8, penalty=r),
            lambda ps, r: ProxAdam(ps, lr=0.1, penalty=r),
            lambda ps, r: ProxAdam(ps, lr=0.1, amsgrad=True, penalty=r),
            lambda ps, r: ProxAdamW(ps, lr=0.1, weight_decay=0.0, penalty=r),
        ],
        ids=["sgd", "nesterov", "dampening", "adam", "amsgrad", "adamw"],
    )
    def test_coefficients_are_those_of_scikit_learn(self, make):
        x, y = torch.from_numpy(self.x), torch.from_numpy(self.y)
        b = nn.Parameter(torch.zeros(10, dtype=torch.float64))
        optimizer = make([b], prox.L1(self.alpha))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
        for _ in range(1500):
            optimizer.zero_grad()
            ((x @ b - y).square().mean() / 2).backward()
            optimizer.step()
            schedule.step()
        assert b.detach().numpy() == pytest.approx(self.expected, abs=1e-6)
        assert ((b == 0).numpy() == (self.expected == 0)).all()
        assert 3 <= (b == 0).sum() <= 7


class TestRecords:
    @pytest.mark.parametrize("cls", [ProxSGD, ProxAdam, ProxAdamW])
    @pytest.mark.parametrize("carry", ["file", "copy", "pickle"])
    def test_a_run_that_was_interrupted_goes_on_the_same(self, cls, carry):
        def make(parameters):
            groups = [{"params": parameters[:1], "penalty": prox.Binary(prox.L12(0.1))}, {"params": parameters[1:]}]
            return cls(groups, lr=0.1, penalty=prox.L1(0.01))

        whole, _ = descend(make, steps=6)
        parameters, optimizer = descend(make, steps=3)
        if carry == "file":
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = cls([{"params": [p]} for p in parameters])
            optimizer.load_state_dict(torch.load(file, weights_only=True))
        else:
            again = copy.deepcopy if carry == "copy" else lambda x: pickle.loads(pickle.dumps(x))
            optimizer = again(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
        assert [g["penalty"] for g in optimizer.param_groups] == [prox.Binary(prox.L12(0.1)), prox.L1(0.01)]
        go_on(parameters, optimizer, range(3, 6))
        assert all(map(torch.equal, whole, parameters))

    def test_goes_on_from_adams_record_with_its_own_penalty(self):
        parameters, plain = descend(lambda ps: torch.optim.Adam(ps, lr=0.1), steps=2)
        optimizer = ProxAdam(parameters, penalty=prox.L1(3.0))
        optimizer.load_state_dict(plain.state_dict())
        assert optimizer.param_groups[0]["penalty"] == prox.L1(3.0)
        assert optimizer.param_groups[0]["lr"] == 0.1
        assert optimizer.state[parameters[0]]["step"] == 2

    def test_a_penalty_of_ones_own_is_kept_as_it_is(self):
        @dataclass(frozen=True)
        class Negative(prox.Prox):
            def minimize(self, v, step):
                return v.clamp_max(0)

            def penalty(self, x):
                return x.new_zeros(())

        optimizer = ProxSGD(weights(), penalty=Negative())
        record = optimizer.state_dict()
        assert record["param_groups"][0]["penalty"] == Negative()
        optimizer.load_state_dict(record)
        assert optimizer.param_groups[0]["penalty"] == Negative()

    def test_a_record_of_other_groups_is_refused(self):
        two = ProxSGD([{"params": [p]} for p in weights()]).state_dict()
        with pytest.raises(ValueError, match="group"):
            ProxSGD(weights()).load_state_dict(two)


class TestMisuse:
    def test_penalties_are_checked(self):
        with pytest.raises(TypeError, match=r"write for instance penalty=prox\.L1"):
            ProxSGD(weights(), penalty=0.1)
        with pytest.raises(ValueError, match="is for matrices"):
            ProxAdam(weights(), penalty=prox.Nuclear())
        optimizer = ProxAdamW(weights()[:1], penalty=prox.Nuclear())
        with pytest.raises(ValueError, match="is for matrices"):
            optimizer.add_param_group({"params": weights()[1:]})
        assert len(optimizer.param_groups) == 1
        optimizer.add_param_group({"params": weights()[1:], "penalty": None})
        assert [g["penalty"] for g in optimizer.param_groups] == [prox.Nuclear(), None]

    def test_complex_parameters_and_sparse_gradients_are_refused(self):
        with pytest.raises(TypeError, match="complex"):
            ProxSGD([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
        table = nn.Embedding(5, 3, sparse=True)
        before = table.weight.detach().clone()
        table(torch.tensor([1])).sum().backward()
        with pytest.raises(TypeError, match="sparse=False"):
            ProxSGD(table.parameters()).step()
        assert torch.equal(table.weight, before)

    def test_options_are_checked(self):
        for options in ({"momentum": 1.0}, {"momentum": 0.5, "dampening": 1.0}):
            with pytest.raises(ValueError, match="below 1"):
                ProxSGD(weights(), **options)
        with pytest.raises(ValueError, match="learning rate"):
            ProxAdam(weights(), lr=-1.0)


class TestPenalize:
    def model(self, **options):
        return models.ImplicitModel(5, 4, 3, **options)

    def test_groups_by_name(self):
        model = self.model(constraint=None)
        first, second, rest = penalize(model, {"A": prox.InfNormBall(), "[BC]": prox.L1(0.1)})
        assert first == {"params": [model.A], "penalty": prox.InfNormBall()}
        assert [id(p) for p in second["params"]] == [id(model.B), id(model.C)]
        assert {id(p) for p in rest["params"]} == {id(model.D), id(model.b), id(model.c)}
        assert "penalty" not in rest
        optimizer = ProxAdam([first, second, rest], penalty=prox.L2(1.0))
        assert optimizer.param_groups[2]["penalty"] == prox.L2(1.0)

    def test_nothing_is_left_over_by_a_star(self):
        assert len(penalize(self.model(constraint=None), {"*": prox.L1()})) == 1

    def test_qualified_names(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        group, rest = penalize(model, {"*.weight": prox.L1()})
        assert [id(p) for p in group["params"]] == [id(model[0].weight), id(model[1].weight)]
        assert len(rest["params"]) == 2

    def test_a_pattern_without_a_match_lists_the_names(self):
        with pytest.raises(ValueError, match=r"'E'. There are: A, B, C, D, b, c"):
            penalize(self.model(constraint=None), {"E": prox.L1()})

    def test_no_parameter_has_two(self):
        with pytest.raises(ValueError, match=r"'B' has two penalties, by 'B' and '\[B\]\*'"):
            penalize(self.model(constraint=None), {"B": prox.L1(), "[B]*": prox.L0()})

    def test_a_tied_parameter_has_all_its_names_and_one_penalty(self):
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        model[1].weight = model[0].weight
        (group,) = penalize(model, {"1.weight": prox.L1()})
        assert [id(p) for p in group["params"]] == [id(model[0].weight)]
        with pytest.raises(ValueError, match="two penalties"):
            penalize(model, {"0.weight": prox.L1(), "1.weight": prox.L0()})

    @pytest.mark.parametrize("pattern", ["A", "*", "[AB]"])
    def test_what_is_behind_a_parametrized_weight_is_named(self, pattern):
        model = self.model()
        with pytest.raises(ValueError, match=r"computed from parametrizations\.A\.original"):
            penalize(model, {pattern: prox.L1()})
        group, _ = penalize(model, {"parametrizations.A.original": prox.L1()})
        assert [id(p) for p in group["params"]] == [id(model.parametrizations.A.original)]

    def test_inside_of_other_modules_too(self):
        model = nn.Sequential(inf_norm(nn.Linear(2, 2), "weight"))
        with pytest.raises(ValueError, match=r"'0\.weight', which is parametrized"):
            penalize(model, {"0.weight": prox.L1()})
        assert len(penalize(model, {"*.bias": prox.L1()})) == 2

    def test_penalties_are_penalties(self):
        with pytest.raises(TypeError, match=r"write for instance prox.L1"):
            penalize(self.model(), {"B": 0.1})


@pytest.mark.parametrize("make", [lambda g: ProxSGD(g, lr=0.1, momentum=0.9), lambda g: ProxAdam(g, lr=0.01)])
def test_an_implicit_model_stays_well_posed_by_its_penalty_and_gets_sparse(make):
    torch.manual_seed(0)
    digits = data.digits()
    model = models.ImplicitModel(64, 20, 10, constraint=None)
    optimizer = make(penalize(model, {"A": prox.InfNormBall(0.9), "B": prox.L12(3e-3), "C": prox.GroupL1(1e-3)}))
    norms, losses = [], []
    for inputs, labels in digits.train.batches(100):
        loss = cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        norms.append(model.A.abs().sum(1).max().item())
        losses.append(loss.item())
    assert max(norms) <= 0.9 * (1 + 1e-5)
    assert losses[-1] < 0.75 * losses[0]
    assert 0.1 < (model.B == 0).double().mean() < 0.95
