"""The examples run as they are, without a warning; so do the benchmarks, quickly."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted([*(ROOT / "examples").glob("*.py"), *(ROOT / "examples" / "models").glob("*.py")])
EXPERIMENTS = sorted(path for room in ("training", "analysis") for path in (ROOT / "examples" / room).glob("*.py"))
STRICT = ("-W", "error", "-W", "ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch.func.jvp's own
BENCHMARKS = ("solvers", "training_step")


def run(*command):
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example):
    assert run(*STRICT, str(example), "--quick")


def test_nonsmooth_experiments_draw_their_figures(tmp_path):
    run("-W", "error", "examples/nonsmooth", "--quick", "--out", str(tmp_path))
    assert {path.stem for path in tmp_path.glob("*.png")} == {"network", "lasso", "quadratic", "cycle", "lorenz"}


def test_the_table_of_step_sizes_is_drawn_and_resumed(tmp_path):
    command = ("-W", "error", "examples/training/proxprop_table.py", "--quick", "--out", str(tmp_path))
    table = run(*command)
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["backprop", "cg1", "cg3", "cg5", "exact"]
    written = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert (tmp_path / "proxprop_table.png").stat().st_size > 1000
    (tmp_path / "results.json").write_text(
        written.replace('"cg1 50 0":', '"cg1 50 0": 123.0, "was":', 1), encoding="utf-8"
    )
    assert "123" in run(*command)  # what was there is not run again


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short(example):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 100


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_prints_a_table_and_draws_a_figure(experiment, tmp_path, monkeypatch, capsys):
    command = [str(experiment), "--quick", "--out", str(tmp_path)]
    table = run(*STRICT, *command)
    assert table.count("|") > 8
    assert list(tmp_path.glob("*.png"))
    monkeypatch.setattr(sys, "argv", command)  # in this process, which spares the imports
    runpy.run_path(command[0], run_name="__main__")
    assert capsys.readouterr().out == table  # of what was kept


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_benchmark_runs(benchmark):
    assert "ratio" in run(f"benchmarks/{benchmark}.py", "--quick", "--single-thread")
