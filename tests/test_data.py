"""The data sets, as their makers describe them."""

import pytest
import torch
from learners import needs_images

from implicitnets import data


@needs_images
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_real_images(name):
    found = data.load(name)
    assert (len(found.train), len(found.test), found.features, found.classes) == (60_000, 10_000, 784, 10)
    assert found.shape == (1, 28, 28)
    for part in (found.train, found.test):
        assert part.inputs.dtype == torch.float32
        assert (part.inputs.min(), part.inputs.max()) == (0, 1)
        assert part.labels.unique().tolist() == list(range(10))
    counts = found.test.labels.bincount().tolist()
    assert counts == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009] if name == "mnist" else [1000] * 10


def test_images_that_are_not_there_are_named_with_the_way_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"MNIST is not in .*download=True.*IMPLICITNETS_DATA"):
        data.load("mnist", root=tmp_path)


def test_digits_are_images_too():
    found = data.digits()
    assert found.shape == (1, 8, 8)
    assert found.features == 64
