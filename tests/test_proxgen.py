"""The experiment of examples/training/proxgen.py, quickly."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

from implicitnets import storage

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "training"))
proxgen = import_module("proxgen")


def main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["proxgen.py", *map(str, arguments)])
    proxgen.main()
    return capsys.readouterr().out


def test_goes_on_where_it_was_interrupted_and_draws(tmp_path, monkeypatch, capsys):
    printed = main(monkeypatch, capsys, "--quick", "--out", tmp_path)
    assert (tmp_path / "proxgen.png").exists()
    record = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    runs = record["runs"]
    assert len(runs) == len(proxgen.CASES) == printed.count("±")
    assert all(run["norm"] <= 0.95 * (1 + 1e-5) for run in runs.values())
    assert runs["none 0 0"]["sparsity"] == 0
    for name, weights in proxgen.WEIGHTS.items():
        zeros = [runs[f"{name} {weight:g} 0"]["sparsity"] for weight in weights]
        assert zeros == sorted(zeros)
        assert 0.05 < zeros[0] < zeros[-1]

    lost = runs.pop("ℓ1 0.01 0")
    (tmp_path / "results.json").write_text(json.dumps(record), encoding="utf-8")
    trained, train = [], proxgen.train
    monkeypatch.setattr(proxgen, "train", lambda *a, **k: trained.append(a[1]) or train(*a, **k))
    assert main(monkeypatch, capsys, "--quick", "--out", tmp_path) == printed
    assert trained == [proxgen.prox.L1(0.01)]
    again = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["runs"]["ℓ1 0.01 0"]
    assert again | {"seconds": 0} == lost | {"seconds": 0}


def test_does_not_mix_runs_of_other_options(tmp_path, monkeypatch, capsys):
    storage.write_json(tmp_path / "results.json", {"options": {"seeds": 7}, "runs": {}})
    with pytest.raises(SystemExit, match="other options"):
        main(monkeypatch, capsys, "--quick", "--out", tmp_path)
