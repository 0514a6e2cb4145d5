"""Two processes that communicate by gloo: the checks of distributed_worker.py, and the example under torchrun."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

TESTS = Path(__file__).parent
LIMIT = 180
"""Seconds until processes that wait for each other are ended. A collective gives up after 60 by itself."""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this PyTorch has no gloo")


def test_two_processes(tmp_path):
    command = [sys.executable, str(TESTS / "distributed_worker.py")]
    errors = [(tmp_path / f"errors{rank}").open("w+") for rank in range(2)]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=ENVIRONMENT, stderr=errors[rank])
        for rank in range(2)
    ]
    try:
        codes = [process.wait(LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for file in errors:
            file.seek(0)
            print(file.read())
            file.close()
    results = [pickle.loads((tmp_path / f"rank{rank}").read_bytes()) for rank in range(2)]
    failed = [text for result in results for text in result.values() if text != "passed"]
    assert not failed, "\n".join(failed)
    assert codes == [0, 0]
    assert results[0] == results[1]
    assert len(results[0]) >= 14


def test_example_runs_under_torchrun():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    example = TESTS.parent / "examples" / "distributed.py"
    done = subprocess.run(
        [*torchrun, str(example), "--quick"],
        env=ENVIRONMENT,
        capture_output=True,
        encoding="utf-8",
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
