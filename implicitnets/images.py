"""Image data sets, read by torchvision, which is an extra: ``pip install 'implicitnets[vision]'``."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["ROOT", "fashion_mnist", "mnist", "root_folder"]

ROOT = "IMPLICITNETS_DATA"
"""The environment variable that says where the data sets are, in torchvision's layout; else it is ``data``."""

Part = tuple[Tensor, Tensor]


def root_folder(root: str | Path | None = None) -> Path:
    """The folder of the data sets: ``root``, or what the environment says, or ``data``."""
    return Path(root or os.environ.get(ROOT) or "data")


def mnist(root: str | Path | None = None) -> tuple[Part, Part]:
    """MNIST: 60,000 and 10,000 images, float32 in [0, 1] of shape (samples, 1, 28, 28), and int64 labels."""
    return _read("MNIST", root)


def fashion_mnist(root: str | Path | None = None) -> tuple[Part, Part]:
    """Fashion-MNIST, of the same form as MNIST."""
    return _read("FashionMNIST", root)


def _read(name: str, root: str | Path | None) -> tuple[Part, Part]:
    folder = root_folder(root)
    kind = getattr(_torchvision(), name)
    try:
        parts = [kind(folder, train=train, download=False) for train in (True, False)]
    except RuntimeError:
        raise FileNotFoundError(
            f"{name} is not in {folder.resolve()}: fetch it by torchvision.datasets.{name}({str(folder)!r}, "
            f"download=True), or say where it is by root= or the environment variable {ROOT}"
        ) from None
    train, test = [(part.data[:, None].float() / 255, part.targets.long()) for part in parts]
    return train, test


@functools.cache
def _torchvision() -> ModuleType:
    """torchvision.datasets, also where its compiled operations don't fit the torch that is installed.

    The wheels of the package index are made for CUDA. Beside a torch without it, the import stops at two operations
    that are described but not there; their schemas are all that is missed.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        from torchvision import datasets  # noqa: PLC0415  (an extra)
    except ImportError:
        raise ImportError("reading images takes torchvision: pip install 'implicitnets[vision]'") from None
    except RuntimeError:
        _declare_operations()
        from torchvision import datasets  # noqa: PLC0415
    module: ModuleType = datasets
    return module


@functools.cache
def _declare_operations() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
