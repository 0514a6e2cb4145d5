"""What the benchmarks share: clocks, memory, a description of the machine, and a file of results that grows."""

import argparse
import gc
import hashlib
import json
import os
import platform
import random
import statistics
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from implicitnets.solvers import native

__all__ = [
    "Probe",
    "Results",
    "clock",
    "command_line",
    "environment",
    "fingerprint",
    "interleaved",
    "load",
    "median",
    "peak_memory",
    "seconds",
    "single_thread",
    "table",
]

median = statistics.median
ROOT = Path(__file__).resolve().parent.parent
SINGLE = False


def command_line(description, out):
    """A parser with the options that all benchmarks have, for one that writes to the file ``out``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few cases, coarsely; saved only if --out is given")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--out", type=Path, help=f"file of results (default {out.name} beside this program's)")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases with this in their name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--single-thread", action="store_true", help="one thread and its processor time, on a machine that others use"
    )
    return parser


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock():
    """Seconds: of the wall, or with a single thread those that the processor spent on this process."""
    return time.process_time() if SINGLE else time.perf_counter()


def single_thread():
    """Use one thread, and count its processor time: others on the machine then disturb little."""
    global SINGLE  # noqa: PLW0603
    SINGLE = True
    torch.set_num_threads(1)


def seconds(run, device):
    """How long one call of ``run`` takes."""
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


class Probe:
    """A map that counts its calls and the rows it was given, and the time spent inside."""

    def __init__(self, f, device):
        self.f, self.device = f, device
        self.calls = self.rows = 0
        self.inside = 0.0

    def __call__(self, z, *inputs):
        self.calls += 1
        self.rows += z.shape[0]
        synchronize(self.device)
        start = clock()
        out = self.f(z, *inputs)
        synchronize(self.device)
        self.inside += clock() - start
        return out


def interleaved(runs, estimates, device, *, budget, least, most):
    """Time every run several times, in rounds of shuffled order, so that a disturbance hits all alike.

    A run is repeated as often as ``budget`` seconds allow, but between ``least`` and ``most`` times; one that takes
    more than 1.5 times as long as the fastest is no contender, and is repeated three times at the least.

    Returns:
        The times of each run, in seconds.
    """
    fastest = min(estimates.values(), default=0)
    repeats = {}
    for name, estimate in estimates.items():
        enough = least if estimate <= 1.5 * fastest else min(least, 3)
        repeats[name] = min(max(int(budget / estimate), enough), most)
    times = {name: [] for name in runs}
    order = random.Random(0)
    for round_ in range(max(repeats.values(), default=0)):
        names = [name for name in runs if repeats[name] > round_]
        for name in order.sample(names, len(names)):
            times[name].append(seconds(runs[name], device))
    return times


def peak_memory(run, device):
    """Bytes of tensors that are held at the peak of ``run`` beyond those held before.

    It runs twice, since the second run has what the first one left, and may free it.
    """

    def twice():
        run()
        run()

    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        twice()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        twice()
    events = record.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate((size for _, size in changes), initial=0))


def environment(device):
    """The machine and the versions that the results belong to."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": "processor time" if SINGLE else "wall time",
        "load": round(os.getloadavg()[0], 2),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numpy", "torchdeq", "implicitnets")},
    }


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def fingerprint():
    """What identifies the code that is measured, so that results of other code are not mistaken for its own."""
    code = hashlib.sha256()
    names = ("solvers", "backward", "fixed_point.py", "pytree.py", "solution.py", "linalg.py", "models/deq.py")
    for name in names:
        path = ROOT / "implicitnets" / name
        for file in sorted([*path.rglob("*.py"), *path.rglob("*.c")] if path.is_dir() else [path]):
            code.update(file.read_bytes())
    return {"code": code.hexdigest()[:16], "compiled": native.library() is not None}


class Results:
    """Cases in a JSON file, written as they come; a case that is there already need not be measured again."""

    def __init__(self, path, settings, *, fresh=False):
        self.path, self.settings, self.cases = path, settings, []
        if path is None or fresh or not path.exists():
            return
        found = load(path)
        if found["settings"] == settings:
            self.cases = found["cases"]
        else:
            print("The results in the file are of other settings or other code: starting anew.")

    def __contains__(self, name):
        return self.get(name) is not None

    def get(self, name):
        """The record of a case, or None."""
        return next((case for case in self.cases if case["name"] == name), None)

    def add(self, case, device):
        """Take in the record of a case, in place of the one that there may be."""
        old = self.get(case["name"])
        if old is None:
            self.cases.append(case)
        else:
            self.cases[self.cases.index(old)] = case
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _write(self.path, {"settings": self.settings, "environment": environment(device), "cases": self.cases})


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path, content):
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def table(header, rows):
    """A Markdown table, with numbers to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
