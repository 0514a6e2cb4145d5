"""Every model learns to classify real images."""

import pytest
import torch
from learners import LEARNERS, needs_images
from torch.nn.functional import cross_entropy

from implicitnets import data

ROWS = [pytest.param(learner, id=name) for name, learner in LEARNERS.items()]


def accuracy_after_an_epoch(learner, samples, tests):
    images = data.load("mnist")
    model = learner.make(images.shape)
    optimizer = torch.optim.Adam(model.parameters(), learner.lr)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=samples // 100)
    train = data.Split(inputs=images.train.inputs[:samples], labels=images.train.labels[:samples])
    test = data.Split(inputs=images.test.inputs[:tests], labels=images.test.labels[:tests])
    for inputs, labels in train.batches(100):
        optimizer.zero_grad()
        cross_entropy(model(inputs.reshape(-1, *images.shape)), labels).backward()
        optimizer.step()
        falling.step()
    model.eval()
    with torch.no_grad():
        right = [
            (model(inputs.reshape(-1, *images.shape)).argmax(1) == labels).sum() for inputs, labels in test.batches(500)
        ]
    return float(sum(right)) / tests


@needs_images
@pytest.mark.parametrize("learner", ROWS)
def test_it_learns_digits_from_a_few_images(learner):
    assert accuracy_after_an_epoch(learner, 5000, 2000) > learner.few


@needs_images
@pytest.mark.slow
@pytest.mark.parametrize("learner", ROWS)
def test_it_learns_digits_in_one_epoch(learner):
    assert accuracy_after_an_epoch(learner, 60_000, 10_000) > learner.all
