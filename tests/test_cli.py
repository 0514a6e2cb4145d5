"""The command line: what it does, and what it says when it can't."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import version

import pytest
import torch

from implicitnets import storage
from implicitnets.cli import main
from implicitnets.experiment import Experiment
from implicitnets.run import CHECKPOINT, Run

QUICK = ["--states", "8", "--epochs", "2", "--batch-size", "200"]

unconverged_is_no_error = pytest.mark.filterwarnings("always::implicitnets.solution.ConvergenceWarning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "quick"
    assert main(["train", *QUICK, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def fails(capsys, *words):
    """The one line on the error stream of a command that fails as a wrong command line."""
    assert main(words) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.count("\n") == 1
    assert streams.err.startswith("error: ")
    return streams.err.strip()


# The main job


def test_the_default_training_is_accurate_and_its_report_holds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train"]) == 0
    assert "runs/digits-001" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "runs/digits-001/metrics.json").read_text())
    assert metrics["test_accuracy"] >= 0.97
    assert metrics["seconds"] < 60
    assert sum(epoch["forward_unconverged"] for epoch in metrics["history"]) == 0
    assert main(["evaluate", "runs/digits-001"]) == 0
    assert f"{metrics['test_accuracy']:.4%}" in capsys.readouterr().out


def test_flags_reach_the_experiment(finished, tmp_path, capsys):
    words = ["--solver", "picard", "--backward", "Unroll(steps=2)", "--kappa", "0.5"]
    words += ["--lr", "3e-3", "--seed", "5", "--activation", "tanh"]
    assert main(["train", *QUICK, *words, "--out", str(tmp_path / "run")]) == 0
    found = Run.resume(tmp_path / "run").experiment
    assert repr(found.solver).startswith("Picard(")
    assert (found.backward.steps, found.kappa, found.lr, found.seed) == (2, 0.5, 3e-3, 5)
    assert (found.activation, found.states, found.batch_size) == ("tanh", 8, 200)


def test_every_setting_is_a_flag_with_help_and_default(capsys):
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in fields(Experiment):
        flag = "--" + field.name.replace("_", "-")
        assert re.search(rf"{flag} ([A-Z]+ )?\w.*?\[default: ", text), flag
    assert "solver.rtol" not in text


def test_each_run_gets_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *QUICK]) == 0
    assert main(["train", *QUICK]) == 0
    assert sorted(os.listdir("runs")) == ["digits-001", "digits-002"]


def test_training_says_each_epoch_and_the_result(tmp_path, capsys):
    assert main(["train", *QUICK, "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"epoch 1/2  loss \d\.\d{4}  accuracy .*%  steps .*  residual", out)
    assert re.search(r"epoch 2/2  loss", out)
    last = Run.resume(tmp_path / "run").history[-1]
    assert f"{last.test_accuracy:.2%}" in out


@unconverged_is_no_error
def test_unconverged_samples_are_said_once_and_plainly(tmp_path, capsys):
    words = [*QUICK, "--solver", "Picard(max_steps=1)", "--out", str(tmp_path / "run")]
    assert main(["train", *words]) == 0
    out = capsys.readouterr().out
    assert "missed the tolerance: 2874 in forward and 0 in backward" in out
    assert out.count("ConvergenceWarning") == 1


# Evaluation


def test_a_report_is_reproduced(finished, capsys):
    assert main(["evaluate", str(finished)]) == 0
    assert "Reproduced exactly." in capsys.readouterr().out


def test_robustness_is_proved_between_two_bounds_and_kept(copy, capsys):
    command = ["certify", str(copy), "--radius", "0.01", "0.1", "--samples", "5"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "radius 0.01" in said
    assert "% proved, at most" in said
    kept = storage.read_json(copy / "robustness.json")["crown, norm inf, 5 samples"]
    assert kept["0.01"]["certified"] >= kept["0.1"]["certified"]
    assert all(0 <= point["certified"] <= point["attacked"] <= 1 for point in kept.values())
    assert (copy / "robustness-inf.png").stat().st_size > 1000
    assert main(command) == 0
    again = capsys.readouterr().out
    assert "radius 0.01" not in again
    assert again == said[said.index(str(copy)) :]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--radius", "-1"], "radius=-1.0: it must be at least 0"),
        (["--method", "guess"], "method='guess': the methods are"),
        (["--samples", "0"], "--samples: must be at least 1"),
    ],
)
def test_what_cannot_be_proved_is_said(flags, message, copy, capsys):
    assert main(["certify", str(copy), *flags]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_report_that_is_not_reproduced_fails(copy, capsys):
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["test_accuracy"] -= 1 / 360
    (copy / "metrics.json").write_text(json.dumps(metrics))
    assert main(["evaluate", str(copy)]) == 1
    streams = capsys.readouterr()
    assert "does not reproduce" in streams.err
    assert "Reproduced" not in streams.out


def test_a_folder_without_a_report_is_refused(copy, tmp_path, capsys):
    assert re.search(r"RUN: .*metrics\.json does not exist", fails(capsys, "evaluate", str(tmp_path)))
    (copy / "metrics.json").unlink()
    assert f"go on with implicitnets train --out {copy} --resume" in fails(capsys, "evaluate", str(copy))


def test_a_damaged_model_is_refused(copy, capsys):
    (copy / "model" / "model.safetensors").write_bytes(b"nothing")
    assert "model.safetensors is damaged" in fails(capsys, "evaluate", str(copy))


# Structure and compression


def test_sparsify_says_what_stays_of_a_model_that_is_made_smaller(copy, capsys):
    assert main(["sparsify", str(copy)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"states, inputs, outputs +│ 8, 64, 10 ", out)
    assert re.search(r"Salience\(keep=0.5\) +│ +\d+\.\d+% │ +8 │ +\d+\.\d% ", out)
    found = json.loads((copy / "sparsity.json").read_text())
    assert found["accuracy"] == json.loads((copy / "metrics.json").read_text())["test_accuracy"]
    exact, halved = found["curves"]["exact"][0], found["curves"]["magnitude"][0]
    assert (exact["accuracy"], halved["weights"] < 0.6, halved["bits"] < 0.6) == (found["accuracy"], True, True)
    assert exact["bound"] < 1e-5 < halved["bound"]
    assert all((copy / name).stat().st_size > 1000 for name in ("sparsity.png", "structure.png"))


def test_sparsify_needs_a_report(tmp_path, capsys):
    assert re.search(r"RUN: .*metrics\.json does not exist", fails(capsys, "sparsify", str(tmp_path)))


# Resuming


def test_ctrl_c_leaves_a_run_that_resumes(tmp_path):
    folder = tmp_path / "run"
    # A child of a background process starts with SIGINT ignored: hear it again, as a terminal's child does.
    hears = "import signal, sys, implicitnets.cli; signal.signal(signal.SIGINT, signal.default_int_handler); "
    words = ["train", "--states", "8", "--epochs", "500", "--out", str(folder)]
    command = [sys.executable, "-c", hears + "sys.exit(implicitnets.cli.main())", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first_epoch = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert first_epoch.startswith("epoch   1/500")
    assert process.returncode == 130
    assert err == ""
    assert f"implicitnets train --out {folder} --resume" in out
    assert 1 <= len(Run.resume(folder).history) < 500


def test_an_interrupted_run_goes_on_to_the_same_end(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    epoch = Run._epoch

    def interrupted_in_the_second(run, watch):
        if run.history:
            raise KeyboardInterrupt
        return epoch(run, watch)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_epoch", interrupted_in_the_second)
        assert main(["train", *QUICK, "--out", str(folder)]) == 130
    assert (
        f"1 of 2 epochs are kept. Go on with:\n  implicitnets train --out {folder} --resume" in capsys.readouterr().out
    )
    assert main(["train", "--out", str(folder), "--resume", "--states", "8"]) == 0
    whole, pieces = (storage.load(path / "model").state_dict() for path in (finished, folder))
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_resuming_needs_a_run(tmp_path, capsys):
    assert "Add --out FOLDER" in fails(capsys, "train", "--resume")
    assert f"{CHECKPOINT} does not exist" in fails(capsys, "train", "--resume", "--out", str(tmp_path))


def test_resuming_with_another_setting_is_refused(finished, capsys):
    line = fails(capsys, "train", "--resume", "--out", str(finished), "--states", "9")
    assert line.startswith("error: --states: ")
    assert "has 8, not 9; leave this flag out" in line


# Wrong command lines


@pytest.mark.parametrize(
    ("words", "flag", "remedy"),
    [
        (["--solver", "andersn"], "--solver", "did you mean 'anderson'"),
        (["--solver", "Anderson(memry=3)"], "--solver", "memry"),
        (["--solver", "Anderson(memory=3"], "--solver", "Anderson(option=value)"),
        (["--backward", "none"], "--backward", "implicit, "),
        (["--states", "1.5"], "--states", "not a whole number"),
        (["--states", "-3"], "--states", "at least 1"),
        (["--states"], "--states", "requires an argument"),
        (["--lr", "fast"], "--lr", "not a number"),
        (["--lr", "nan"], "--lr", "positive"),
        (["--kappa", "1"], "--kappa", "between 0 and 1"),
        (["--batch-size", "0"], "--batch-size", "at least 1"),
        (["--data", "mnits"], "--data", "one of digits"),
        (["--activation", "softmax"], "--activation", "one of elu, "),
        (["--stats", "3"], "--stats", "Did you mean --states"),
        (["5"], "'5'", "--name VALUE"),
    ],
)
def test_a_wrong_flag_is_named_with_its_remedy(words, flag, remedy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = fails(capsys, "train", *words)
    assert flag in line
    assert remedy in line
    assert os.listdir() == []


def test_a_folder_that_is_in_use_is_left_alone(copy, capsys):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    line = fails(capsys, "train", *QUICK, "--out", str(copy))
    assert line.startswith("error: --out: ")
    assert "add --resume" in line
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_a_file_in_place_of_a_folder_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "error: --out: can't make the folder" in fails(capsys, "train", "--out", str(tmp_path / "file"))


@unconverged_is_no_error
def test_a_loss_that_is_no_number_fails_in_one_line(tmp_path, capsys):
    assert main(["train", *QUICK, "--lr", "1e38", "--out", str(tmp_path / "run")]) == 1
    assert re.fullmatch(r"error: the loss became .*: try a lower lr\n", capsys.readouterr().err)


def test_a_wrong_command_is_refused(capsys):
    assert 'Did you mean "train"' in fails(capsys, "tran")


def test_help_and_version(capsys):
    assert main([]) == 0
    assert "evaluate" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("implicitnets")
