"""Data sets as plain tensors, split once and for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Generator, Tensor

from . import images

__all__ = ["DATASETS", "Dataset", "Split", "digits", "load"]


@dataclass(frozen=True, kw_only=True)
class Split:
    """One part of a data set.

    Attributes:
        inputs: Floating point, shape ``(samples, features)``.
        labels: int64, shape ``(samples,)``.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, *, generator: Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the samples once, in their order or, given a generator, in one drawn from it.

        Yields:
            The inputs and labels of ``size`` samples; the last batch has what is left.
        """
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        for part in order.split(size):
            yield self.inputs[part], self.labels[part]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A classification problem: what to learn from, and what to be judged by.

    Attributes:
        name: What it is called, on the command line too.
        train: The part to learn from.
        test: The held-out part.
        classes: The number of classes; labels are 0 ... classes - 1.
        shape: Of the image that the features of a sample are, (channels, height, width).
    """

    name: str
    train: Split
    test: Split
    classes: int
    shape: tuple[int, int, int]

    @property
    def features(self) -> int:
        """The number of inputs of a sample."""
        return self.train.inputs.shape[1]


def digits(root: str | Path | None = None) -> Dataset:
    """Scikit-learn's handwritten digits: 1797 real images of 8×8 pixels in [0, 1], which ship with it.

    One fifth is held out, the same in every run, with every digit as frequent as in the whole. ``root`` is not
    looked at.

    >>> data = digits()
    >>> data.features, data.classes, len(data.train), len(data.test)
    (64, 10, 1437, 360)
    """
    pixels, labels = load_digits(return_X_y=True)
    inputs = (pixels / 16.0).astype(np.float32)
    parts = train_test_split(inputs, labels, test_size=0.2, stratify=labels, random_state=0)
    train_inputs, test_inputs, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
    return Dataset(
        name="digits",
        train=Split(inputs=train_inputs, labels=train_labels.long()),
        test=Split(inputs=test_inputs, labels=test_labels.long()),
        classes=10,
        shape=(1, 8, 8),
    )


def _images(
    name: str, read: Callable[[str | Path | None], tuple[images.Part, images.Part]], root: str | Path | None = None
) -> Dataset:
    train, test = (Split(inputs=pixels.flatten(1), labels=labels) for pixels, labels in read(root))
    return Dataset(name=name, train=train, test=test, classes=10, shape=(1, 28, 28))


DATASETS: dict[str, Callable[[str | Path | None], Dataset]] = {
    "digits": digits,
    "mnist": partial(_images, "mnist", images.mnist),
    "fashion-mnist": partial(_images, "fashion-mnist", images.fashion_mnist),
}
"""What can be loaded by name."""


def load(name: str, root: str | Path | None = None) -> Dataset:
    """The data set of that name.

    Args:
        name: A name in ``DATASETS``.
        root: The folder of the image data sets, in torchvision's layout; None for what the environment variable
            IMPLICITNETS_DATA says, or ``data``. The digits ship with scikit-learn and need none.

    Raises:
        ValueError: If there is none of that name; the message lists those that exist.
        FileNotFoundError: If it is not in that folder.
        ImportError: If it takes torchvision, and that is not installed.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set is called {name!r}. There are: {', '.join(sorted(DATASETS))}")
    return DATASETS[name](root)
