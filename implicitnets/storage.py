"""Models and checkpoints on disk: tensors as safetensors, everything else as JSON. Nothing is ever unpickled.

Each file is written beside its place and moved there when complete, so that a reader, or a run that was
interrupted, finds either the old file or the new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .models import from_config

__all__ = ["FORMAT", "StorageError", "load", "read_bundle", "read_json", "save", "write_bundle", "write_json"]

FORMAT = 1
"""The version of everything this module writes; a file with a higher one is refused."""

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class StorageError(ValueError):
    """A file that is missing, damaged, or of a kind that this version can't read."""


def save(model: nn.Module, folder: str | Path) -> None:
    """Write a model to a folder as ``model.safetensors`` and ``config.json``.

    Raises:
        TypeError: If the model has no ``config()``, from which it could be made again.
    """
    config = getattr(model, "config", None)
    if not callable(config):
        raise TypeError(f"model must have a config() to be saved, and {type(model).__name__} has none")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_bundle(folder / WEIGHTS, model.state_dict(), {})
    write_json(folder / CONFIG, {"model": config()})


def load(folder: str | Path) -> nn.Module:
    """The model that ``save`` wrote to that folder, with the same weights in the same dtypes, on the CPU.

    Raises:
        StorageError: If a file is missing or damaged, or the two do not fit each other.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    tensors, _ = read_bundle(folder / WEIGHTS)
    try:
        model = from_config(config["model"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{folder / CONFIG} does not describe a model: {error}") from error
    try:
        model.load_state_dict(tensors, assign=True)  # assign: the file's dtypes, not those of a new model
    except RuntimeError as error:
        raise StorageError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {error}") from error
    return model


def write_bundle(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors and a JSON record as one safetensors file, so that the two can't get out of step."""
    header = {"record": json.dumps({"format": FORMAT, **record})}
    # clone: safetensors refuses tensors that share memory
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    with _replacing(path) as draft:
        draft.write_bytes(safetensors.torch.save(plain, header))


def read_bundle(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record that ``write_bundle`` wrote.

    Raises:
        StorageError: If the file is missing, damaged, or of a later format.
    """
    if not path.is_file():
        raise StorageError(f"{path} does not exist")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            record = json.loads((file.metadata() or {})["record"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise StorageError(f"{path} is damaged, or not a file of this library ({error})") from error
    return tensors, _checked(record, path)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, with the format's and the library's versions on top."""
    text = json.dumps({"format": FORMAT, "library": version("implicitnets"), **record}, indent=2)
    with _replacing(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The record that ``write_json`` wrote.

    Raises:
        StorageError: If the file is missing, damaged, or of a later format.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StorageError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} is damaged ({error})") from error
    return _checked(record, path)


def _checked(record: Any, path: Path) -> dict[str, Any]:
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise StorageError(f"{path} is not a file of this library: it has no format number")
    if record["format"] > FORMAT:
        raise StorageError(
            f"{path} has format {record['format']}, and this version of implicitnets "
            f"({version('implicitnets')}) reads up to {FORMAT}: install a newer one"
        )
    return record


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A draft that takes the place of ``path`` in one move if the block succeeds, and is gone if it fails.

    Yields:
        Where to write.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
