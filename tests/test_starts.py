"""Where a solver starts changes how long it takes, and nothing else."""

import copy

import pytest
import torch
from torch import nn

import implicitnets as inn
from implicitnets.models import DEQ, ImplicitModel, LearnedStart, WarmStart
from implicitnets.solvers import Anderson

TIGHT = Anderson(rtol=1e-10, atol=1e-12, max_steps=200)


class Pair(nn.Module):
    """A cell whose state is a dict."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(6, 3)
        self.mix.weight.data.mul_(0.5)

    def forward(self, z, x):
        return {"a": torch.tanh(self.mix(torch.cat((z["a"], z["b"]), 1)) + x), "b": 0.5 * z["a"]}

    def initial_state(self, x):
        return {"a": torch.zeros_like(x), "b": torch.zeros_like(x)}


def pair(start):
    return DEQ(Pair(), solver=TIGHT, start=start).double(), torch.randn(8, 3, dtype=torch.float64)


def implicit(start):
    return ImplicitModel(3, 6, 2, solver=TIGHT, start=start).double(), torch.randn(8, 3, dtype=torch.float64)


MODELS = pytest.mark.parametrize("build", [pair, implicit])


@MODELS
def test_who_was_here_before_starts_where_they_ended(build):
    model, x = build(WarmStart(20))
    index = torch.tensor([3, 19, 0, 7, 8, 9, 10, 1])
    with model.start.at(index):
        first, cold = model(x), model.forward_solution
        again, warm = model(x), model.forward_solution
    assert (cold.steps > 2).all()
    assert (warm.steps == 0).all()
    leaf = (lambda out: out["a"]) if isinstance(first, dict) else (lambda out: out)
    torch.testing.assert_close(leaf(first), leaf(again))
    with model.start.at(index[[1, 0]]):  # the samples have changed places: they are told by their index
        model(x[[1, 0]])
        assert (model.forward_solution.steps == 0).all()
    with model.start.at(torch.tensor([5, 3])):  # sample 5 is new
        model(x[[4, 0]])
        assert model.forward_solution.steps[0] > 2
        assert model.forward_solution.steps[1] == 0
    model(x)  # outside of the block nothing is known of them
    assert torch.equal(model.forward_solution.steps, cold.steps)
    model.start.forget()
    with model.start.at(index):
        model(x)
    assert torch.equal(model.forward_solution.steps, cold.steps)


@MODELS
def test_a_warm_start_changes_no_gradient(build):
    model, x = build(WarmStart(8))

    def gradient():
        out = model(x)
        loss = (out["a"] if isinstance(out, dict) else out).square().sum()
        return torch.autograd.grad(loss, list(model.parameters()))

    cold = gradient()
    with model.start.at(torch.arange(8)):
        gradient()
        for a, b in zip(cold, gradient(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_a_sample_that_failed_is_not_kept():
    model, x = implicit(WarmStart(8))
    x[2] = torch.nan
    with model.start.at(torch.arange(8)), pytest.warns(inn.ConvergenceWarning, match="1 of 8"):
        model(x)
    x[2] = 1.0
    with model.start.at(torch.arange(8)):
        assert model(x).isfinite().all()
    assert (model.forward_solution.steps > 0).tolist() == [i == 2 for i in range(8)]


@pytest.mark.parametrize(
    ("text", "index"),
    [
        (r"int64 of shape \(batch,\)", torch.zeros(3)),
        (r"int64 of shape \(batch,\)", torch.zeros(3, 1, dtype=torch.int64)),
        (r"0 \.\.\. 7", torch.tensor([8])),
        (r"0 \.\.\. 7", torch.tensor([-1])),
    ],
)
def test_a_bad_index_is_refused(text, index):
    model, _ = implicit(WarmStart(8))
    with pytest.raises(ValueError, match=text), model.start.at(index):
        pass


def test_bad_input_is_named():
    model, x = implicit(WarmStart(8))
    with model.start.at(torch.arange(8)):
        model(x)
        with pytest.raises(ValueError, match=r"5 samples, and the index of start\.at 8"):
            model(x[:5])
    with pytest.raises(ValueError, match="samples must be at least 1"):
        WarmStart(0)
    with pytest.raises(TypeError, match="start=3 is not a Start: write"):
        ImplicitModel(3, 6, 2, start=3)
    wrong, x = implicit(LearnedStart(nn.Linear(6, 5).double()))
    with pytest.raises(ValueError, match=r"predictor returns shapes \[\(8, 5\)\] where the state has \[\(8, 6\)\]"):
        wrong(x)
    with pytest.raises(RuntimeError, match="before the model was"):
        LearnedStart(nn.Linear(6, 6)).loss()


def test_a_learned_start_learns_where_the_solver_ends():
    start = LearnedStart(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 6)))
    model, _ = implicit(start)
    optimizer = torch.optim.Adam(start.parameters(), 1e-2)
    x = torch.randn(256, 3, dtype=torch.float64)
    plain = copy.deepcopy(model)
    plain.start = None
    out = plain(x)
    losses = []
    for _ in range(150):
        torch.testing.assert_close(model(x), out)
        optimizer.zero_grad()
        start.loss().backward()
        losses.append(start.loss().item())
        optimizer.step()
    assert losses[-1] < losses[0] / 50
    first = 1 / 10  # a tenth of the residual of zeros is left at the learned start
    model.solver = plain.solver = Anderson(rtol=0, atol=1e9)  # the first evaluation is the last
    model(x), plain(x)
    assert model.forward_solution.residual.mean() < first * plain.forward_solution.residual.mean()


def test_a_learned_start_is_copied_without_its_memory():
    model, x = implicit(LearnedStart(nn.Linear(6, 6)))
    model(x)
    with pytest.raises(RuntimeError, match="before the model was"):
        copy.deepcopy(model).start.loss()


def test_a_start_is_written_down_with_its_model():
    model = ImplicitModel(3, 6, 2, start=WarmStart(50))
    again = inn.models.from_config(model.config())
    assert again.start.samples == 50
    assert again.config() == model.config()
