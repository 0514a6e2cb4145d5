"""Settings of all tests."""

import os

# One thread a process, set before torch is first imported: the tests run in several processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


def pytest_collectstart(collector):
    """What a module draws when it is imported is the same in every run: PyTorch's first seed is a random one."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def seed():
    """Every test draws the same numbers in every run, alone or among others."""
    torch.manual_seed(0)
