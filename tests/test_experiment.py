"""Experiments, the runs that carry them out, and the reports on them."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from implicitnets import data, plots, report, storage
from implicitnets.backward import Implicit, Unroll
from implicitnets.experiment import Epoch, Experiment, InvalidSetting
from implicitnets.run import CHECKPOINT, Run, TrainingError, accuracy
from implicitnets.solution import ConvergenceWarning
from implicitnets.solvers import Anderson, Dense, Picard
from implicitnets.storage import StorageError

SMALL = Experiment(states=8, epochs=3, batch_size=200)


@pytest.fixture(scope="module")
def finished():
    run = Run(SMALL)
    run.train()
    return run


def weights(run):
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


# The data


def test_digits_are_the_same_each_time_and_split_fairly():
    digits = data.load("digits")
    assert torch.equal(digits.test.inputs, data.digits().test.inputs)
    both = torch.cat([digits.train.inputs, digits.test.inputs])
    assert both.shape == (1797, 64)
    assert both.dtype == torch.float32
    assert (both.min(), both.max()) == (0, 1)
    frequency = [split.labels.bincount(minlength=10) / len(split) for split in (digits.train, digits.test)]
    torch.testing.assert_close(*frequency, rtol=0, atol=0.002)
    kept = {tuple(image) for image in digits.train.inputs.tolist()}
    assert not any(tuple(image) in kept for image in digits.test.inputs.tolist())


def test_batches_hold_each_sample_once():
    split = data.digits().test
    plain = list(split.batches(100))
    assert [len(labels) for _, labels in plain] == [100, 100, 100, 60]
    assert torch.equal(torch.cat([inputs for inputs, _ in plain]), split.inputs)
    mixed = torch.cat([torch.cat([u, y[:, None]], 1) for u, y in split.batches(100, generator=torch.Generator())])
    assert not torch.equal(mixed[:, :-1], split.inputs)
    assert sorted(mixed.tolist()) == sorted(torch.cat([split.inputs, split.labels[:, None]], 1).tolist())


def test_an_unknown_data_set_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match=r"'mnits'.*There are: digits"):
        data.load("mnits")


# The experiment


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("states", 0),
        ("epochs", -1),
        ("batch_size", 0),
        ("kappa", 1.0),
        ("kappa", 0.0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("weight_decay", -1.0),
        ("label_smoothing", 1.0),
        ("seed", -1),
        ("data", "mnits"),
        ("activation", "softmax"),
    ],
)
def test_a_setting_that_can_not_be_is_named(name, value):
    with pytest.raises(InvalidSetting, match=f"^{name} .*not {value}$") as caught:
        Experiment(**{name: value})
    assert caught.value.name == name


def test_an_experiment_survives_json():
    experiment = Experiment(
        solver=Anderson(memory=2, rtol=1e-3),
        backward=Implicit(solver=Picard(damping=0.1)),
        lr=0.1 + 0.2,
        seed=7,
    )
    assert Experiment.from_record(json.loads(json.dumps(experiment.to_record()))) == experiment


def test_the_learning_rate_rises_through_the_first_epoch_and_falls_to_zero():
    experiment = Experiment(epochs=10, lr=0.1)
    rates = [experiment.learning_rate(progress / 100) for progress in range(101)]
    assert rates[5] == pytest.approx(0.05)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == pytest.approx(0.1, rel=0.03)
    assert rates[100] == pytest.approx(0, abs=1e-12)


def test_weights_are_drawn_from_the_seed_alone():
    before = torch.get_rng_state()
    first = weights(Run(SMALL))
    torch.rand(3)
    assert torch.equal(weights(Run(SMALL)), first)
    assert not torch.equal(weights(Run(replace(SMALL, seed=1))), first)
    torch.set_rng_state(before)
    Run(SMALL)
    assert torch.equal(torch.get_rng_state(), before)


# The run


def test_equal_experiments_end_with_equal_weights(finished):
    again = Run(SMALL)
    again.train()
    assert torch.equal(weights(again), weights(finished))


def test_the_watch_sees_every_step_and_every_epoch():
    seen = []
    run = Run(SMALL)
    run.train(watch=lambda means, done: seen.append((means, done)))
    assert len(seen) == 3 * (8 + 1)  # 1437 samples make 8 batches of 200
    assert [means for means, _ in seen if isinstance(means, Epoch)] == run.history
    shares = [done for _, done in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert [epoch.epoch for epoch in run.history] == [1, 2, 3]


def test_the_history_is_true(finished):
    last = finished.history[-1]
    assert last.test_accuracy == accuracy(finished.model, finished.data.test)
    first = Run(replace(SMALL, epochs=1, batch_size=2000, lr=1e-30))  # one step, of all samples, that changes nothing
    first.train()
    train = first.data.train
    logits = first.model(train.inputs)
    solution, epoch = first.model.forward_solution, first.history[0]
    loss = cross_entropy(logits, train.labels, label_smoothing=SMALL.label_smoothing)
    assert epoch.loss == pytest.approx(loss.item(), rel=1e-5)
    assert epoch.train_accuracy == accuracy(first.model, train)
    assert epoch.forward_steps == pytest.approx(solution.steps.double().mean().item())
    assert epoch.forward_steps_max == solution.steps.max()
    assert epoch.forward_residual == pytest.approx(solution.residual.mean().item(), rel=1e-4)
    assert epoch.forward_evaluations == solution.evaluations
    assert epoch.backward_steps > 0
    assert epoch.backward_evaluations == first.model.backward_solution.evaluations


def test_samples_that_do_not_converge_are_counted():
    run = Run(
        replace(
            SMALL,
            epochs=1,
            solver=Picard(max_steps=1, rtol=1e-12),
            backward=Implicit(solver=Picard(max_steps=0)),
        )
    )
    with pytest.warns(ConvergenceWarning):
        run.train()
    assert run.history[0].forward_unconverged == 1437
    assert run.history[0].backward_unconverged == 1437


def test_unrolling_solves_nothing_backward():
    run = Run(replace(SMALL, epochs=1, backward=Unroll(steps=2)))
    run.train()
    assert run.history[0].backward_steps is None
    assert run.history[0].backward_evaluations is None
    assert run.history[0].backward_unconverged == 0


@pytest.mark.filterwarnings("ignore::implicitnets.solution.ConvergenceWarning")
def test_a_loss_that_is_no_number_stops_the_run():
    with pytest.raises(TrainingError, match=r"the loss became .* in epoch 1: try a lower lr"):
        Run(replace(SMALL, lr=1e38)).train()


@pytest.mark.parametrize("stop", [1, 9, 13, 18], ids=["first step", "end of epoch 1", "in epoch 2", "end of epoch 2"])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(finished, tmp_path, stop):
    calls = itertools.count(1)

    def interrupt(means, done):
        if next(calls) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(SMALL).train(tmp_path, interrupt)
    resumed = Run.resume(tmp_path)
    assert len(resumed.history) == stop // 9
    resumed.train(tmp_path)
    assert torch.equal(weights(resumed), weights(finished))
    strip = [replace(epoch, seconds=0.0) for epoch in resumed.history]
    assert strip == [replace(epoch, seconds=0.0) for epoch in finished.history]


def test_a_finished_run_resumes_to_itself(tmp_path):
    run = Run(SMALL)
    run.train(tmp_path)
    resumed = Run.resume(tmp_path)
    resumed.train(tmp_path)
    assert torch.equal(weights(resumed), weights(run))
    assert resumed.history == run.history


def test_a_checkpoint_that_is_none_is_refused(tmp_path):
    with pytest.raises(StorageError, match="does not exist"):
        Run.resume(tmp_path)
    storage.write_bundle(tmp_path / CHECKPOINT, {}, {"experiment": SMALL.to_record(), "history": []})
    with pytest.raises(StorageError, match="does not hold a run of this version"):
        Run.resume(tmp_path)


# The report


def test_a_report_is_complete_and_reads_back(finished, tmp_path):
    report.write(finished, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"metrics.json", "model", "learning.png", "steps.png", "residuals.png"}
    for plot in tmp_path.glob("*.png"):
        assert plot.read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["experiment"]["seed"] == 0
    assert len(metrics["history"]) == 3
    assert metrics["solvers"].keys() == {"Anderson", "Picard"}
    recorded = report.read(tmp_path)
    assert recorded.experiment == SMALL
    assert recorded.test_accuracy == finished.history[-1].test_accuracy
    assert accuracy(recorded.model, finished.data.test) == recorded.test_accuracy


def test_solvers_are_compared_to_the_limit_of_rounding(finished):
    model, inputs = finished.model, finished.data.test.inputs
    own = model.solver
    found = report.compare(model, inputs, [Picard(max_steps=1), Dense()])
    assert list(found) == ["Picard", "Dense"]
    assert model.solver is own
    picard = found["Picard"]
    assert picard.converged.all()
    assert picard.trace.shape[1] == len(inputs)
    assert torch.equal(picard.trace[-1], picard.residual)
    assert (picard.residual < 1e-5 * picard.trace[0]).all()
    torch.testing.assert_close(found["Dense"].value, picard.value, rtol=1e-4, atol=1e-5)


def test_the_model_keeps_its_solver_when_a_comparison_fails(finished):
    own = finished.model.solver
    with pytest.raises((RuntimeError, ValueError)):
        report.compare(finished.model, torch.zeros(2, 3), [Picard()])
    assert finished.model.solver is own


def test_a_solver_is_compared_with_another():
    assert report.rivals(Anderson(memory=2)) == (Picard(), Anderson(memory=2))
    assert report.rivals(Picard(damping=0.5)) == (Anderson(), Picard(damping=0.5))


@pytest.mark.parametrize("draw", [plots.learning, plots.steps])
@pytest.mark.parametrize("backward_steps", [3.0, None])
def test_every_axis_of_a_plot_says_what_it_shows(finished, draw, backward_steps):
    figure = draw([replace(epoch, backward_steps=backward_steps) for epoch in finished.history])
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert axes.get_title(loc="left")
        assert axes.get_xlabel() == "epoch"
        assert axes.get_ylabel()
        for line in axes.get_lines():
            assert list(line.get_xdata()) == [1, 2, 3]


def test_the_residual_plot_shows_median_and_largest_of_each_solver(finished):
    solutions = report.compare(finished.model, finished.data.test.inputs, [Picard(), Anderson()])
    (axes,) = plots.residuals(solutions).axes
    assert axes.get_yscale() == "log"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["Picard, median", "Picard, largest", "Anderson, median", "Anderson, largest"]
    largest = solutions["Picard"].trace.amax(1)
    assert list(axes.get_lines()[1].get_ydata()) == largest.tolist()
    with pytest.raises(ValueError, match="Picard has no trace"):
        plots.residuals({"Picard": replace(solutions["Picard"], trace=None)})
