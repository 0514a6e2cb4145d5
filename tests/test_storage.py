"""Models and checkpoints come back from disk as they were, or not at all."""

import json
import os
import pickle

import pytest
import torch
from torch import nn

from implicitnets import storage
from implicitnets.backward import Unroll
from implicitnets.models import ImplicitModel
from implicitnets.solvers import Anderson
from implicitnets.storage import StorageError


@pytest.fixture
def model():
    return ImplicitModel(3, 5, 2, solver=Anderson(memory=3), backward=Unroll(steps=2)).double()


@pytest.fixture
def folder(model, tmp_path):
    storage.save(model, tmp_path / "model")
    return tmp_path / "model"


def test_a_model_comes_back_equal(model, folder):
    found = storage.load(folder)
    u = torch.randn(4, 3, dtype=torch.float64)
    assert isinstance(found, ImplicitModel)
    assert found.config() == model.config()
    assert (found.solver, found.backward) == (model.solver, model.backward)
    assert torch.equal(found(u), model(u))
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_a_model_is_two_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_nothing_is_unpickled(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    storage.load(folder)


def test_a_model_without_a_config_is_refused(tmp_path):
    with pytest.raises(TypeError, match="Linear has none"):
        storage.save(nn.Linear(2, 2), tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(StorageError, match=f"{name} does not exist"):
        storage.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe" * 50, None], ids=["empty", "brace", "bytes", "half"])
def test_a_damaged_file_is_named(folder, name, content):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(StorageError, match=f"{name} is damaged"):
        storage.load(folder)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "one"}'])
def test_a_strange_file_is_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(StorageError, match=r"config\.json is not a file of this library"):
        storage.load(folder)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_later_format_is_refused(folder):
    edit(folder / "config.json", format=storage.FORMAT + 1)
    with pytest.raises(StorageError, match=f"has format {storage.FORMAT + 1}.*install a newer one"):
        storage.load(folder)


@pytest.mark.parametrize("config", [{"model": "Oracle"}, {}, {"model": "ImplicitModel", "inputs": 3}])
def test_a_config_that_makes_no_model_is_refused(folder, config):
    edit(folder / "config.json", model=config)
    with pytest.raises(StorageError, match=r"config\.json does not describe a model"):
        storage.load(folder)


def test_weights_of_another_model_are_refused(folder, tmp_path):
    storage.save(ImplicitModel(3, 6, 2), tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(StorageError, match=r"model\.safetensors does not fit .*config\.json"):
        storage.load(folder)


def test_a_bundle_comes_back_equal(tmp_path):
    row = torch.arange(6.0)
    tensors = {
        "transposed": row.view(2, 3).T,
        "shared": row,
        "scalar": torch.tensor(1e-30, dtype=torch.float64),
        "bytes": torch.Generator().get_state(),
        "empty": torch.empty(0, 3),
    }
    record = {"history": [{"loss": 0.1 + 0.2, "steps": None}], "text": "φ"}
    storage.write_bundle(tmp_path / "bundle", tensors, record)
    found, found_record = storage.read_bundle(tmp_path / "bundle")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert all(found[name].dtype == tensors[name].dtype for name in tensors)
    assert found_record == {**record, "format": storage.FORMAT}


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    storage.write_json(path, {"value": 1})

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        storage.write_json(path, {"value": 2})
    assert storage.read_json(path)["value"] == 1
    assert list(tmp_path.iterdir()) == [path]
