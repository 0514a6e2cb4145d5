"""The inner loops in C, for small states on the CPU: compiled at the first use, where there is a C compiler.

Without one nothing changes but the time: every function here has its twin in tensor operations, and the tests hold
the two against each other.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Measure", "anderson", "cosines", "fits", "library", "scaled"]

Vector = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]

LARGE = 2**18
"""From this many entries on, tensor operations are used where they have more than two threads: on one thread they
take about twice as long as these loops (measured)."""
SHARE = 2**17
"""So many entries, times what is done with each, are at least the share of a thread: others are slow to wake."""
MAX_MEMORY = 32
"""As in native.c."""
SOURCE = Path(__file__).with_name("native.c")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where they can't be had (no compiler, or ``IMPLICITNETS_NATIVE=0`` is set)."""
    compiler = next((found for name in (os.environ.get("CC"), "cc") if name and (found := shutil.which(name))), None)
    if os.environ.get("IMPLICITNETS_NATIVE") == "0" or compiler is None:
        return None
    for openmp in ("-fopenmp", "-fopenmp-simd"):
        try:
            return ctypes.CDLL(str(_compile(compiler, openmp)))
        except (OSError, subprocess.SubprocessError) as error:
            logging.getLogger(__name__).info("no native solver loops with %s: %s", openmp, error)
    return None


def _compile(compiler: str, openmp: str) -> Path:
    """Compile native.c into the user's cache, once for each version of it.

    It is not linked with an OpenMP library: that in which PyTorch has its threads is in the process, and two would be
    in each other's way.
    """
    command = [compiler, "-O3", openmp, "-fno-math-errno", "-fPIC", "-c"]
    machine = os.uname()
    key = " ".join([SOURCE.read_text(), *command, machine.sysname, machine.machine, machine.release])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "implicitnets"
    target = cache / f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            part, built = Path(scratch) / "native.o", Path(scratch) / target.name
            for job in (
                [*command, str(SOURCE), "-o", str(part)],
                [compiler, "-shared", str(part), "-lm", "-o", str(built)],
            ):
                subprocess.run(job, check=True, capture_output=True, timeout=60)
            built.replace(target)
    return target


def fits(z: Tensor) -> bool:
    """Whether a contiguous matrix like ``z`` is for these functions."""
    return (
        z.device.type == "cpu"
        and z.numel() > 0
        and (z.numel() < LARGE or torch.get_num_threads() <= 2)
        and z.dtype in (torch.float32, torch.float64)
        and library() is not None
    )


@functools.cache
def _function(name: str, dtype: torch.dtype, arguments: str) -> Any:
    """A function of the library; ``arguments`` has a letter for each: long, double or pointer."""
    function = getattr(library(), f"{name}_f32" if dtype == torch.float32 else f"{name}_f64")
    kinds = {"l": ctypes.c_long, "d": ctypes.c_double, "p": ctypes.c_void_p}
    function.argtypes, function.restype = [kinds[letter] for letter in arguments], ctypes.c_long
    return function


def _threads(z: Tensor, work: int = 1) -> int:
    return min(torch.get_num_threads(), work * z.numel() // SHARE + 1)


def _pointer(array: np.ndarray[Any, Any]) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(array.data))  # less than half the time of array.ctypes


class _Job(ctypes.Structure):
    """As in native.c."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("threads", "rows", "size")),
        *((name, ctypes.c_double) for name in ("atol", "rtol")),
        *((name, ctypes.c_void_p) for name in ("horizon", "least", "done")),
    )


class Measure:
    """Measures points of a batch, and keeps those that meet the tolerance: the loop on the CPU, where all is as usual.

    Args:
        like: A matrix like all that will be measured.
        limits: atol and rtol.
        horizon: By row, of ‖fz‖.
        least: By row, the residual to be improved on.
        done: By row, who is not looked at any more. All three are read anew each time.
    """

    def __init__(self, like: Tensor, limits: tuple[float, float], horizon: Vector, least: Vector, done: Mask) -> None:
        self._kept = horizon, least, done
        self._job = _Job(_threads(like), *like.shape, *limits, *map(_pointer, self._kept))
        self._at, self._rows = ctypes.byref(self._job), like.shape[0]
        self._measure = _function("measure", like.dtype, "pppp")
        self._settle = _function("settle", like.dtype, "ppplpppp")

    def __call__(self, z: Tensor, fz: Tensor) -> tuple[Vector, int]:
        """‖fz − z‖ and ‖fz‖ of each row, shape (2, rows), and how many rows meet the tolerance, if all are as usual.

        These are the rows with ‖fz‖ ≤ horizon that meet it, ‖fz − z‖ ≤ atol + rtol · ‖fz‖, or have ‖fz − z‖ < least,
        and those that are done, whose norms are 0 and which are not counted. If one is not, the number is -1.
        """
        norms = np.empty((2, self._rows))
        met: int = self._measure(self._at, z.data_ptr(), fz.data_ptr(), _pointer(norms))
        return norms, met

    def settle(
        self, z: Tensor, norms: Vector, step: int, sample: Indices, value: Tensor, residual: Vector, steps: Indices
    ) -> int:
        """Have the rows that meet the tolerance be done, note point, residual and ``step``; how many these are."""
        settled: int = self._settle(
            *(self._at, z.data_ptr(), _pointer(norms), step, _pointer(sample)),
            *(value.data_ptr(), _pointer(residual), _pointer(steps)),
        )
        return settled


def scaled(right: Tensor) -> tuple[Tensor, Tensor]:
    """Each row in units of its norm, and that, shape (rows, 1); 1 where it is 0."""
    out, unit = torch.empty_like(right), right.new_empty(right.shape[0], 1)
    pointers = [tensor.data_ptr() for tensor in (right, out, unit)]
    _function("scale", right.dtype, "lllppp")(_threads(right), *right.shape, *pointers)
    return out, unit


def cosines(now: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], columns: int) -> Vector:
    """⟨fz − z, the other fz − z⟩ of each row, over its first ``columns`` entries, by their norms; 0 where one is."""
    found, (z, fz) = np.empty(now[0].shape[0]), now
    _function("cosines", z.dtype, "lll" + "p" * 5)(
        *z.shape, columns, *[tensor.data_ptr() for tensor in (z, fz, *other)], _pointer(found)
    )
    return found


def anderson(
    slot: int,
    used: int,
    diagonal: float,
    now: tuple[Tensor, Tensor, Vector],
    last: tuple[Tensor, Tensor],
    history: tuple[Tensor, ...],
) -> Tensor:
    """The next point of Anderson's method, which puts the newest difference into ``slot`` of the history.

    Args:
        slot: Where the newest difference goes.
        used: Slots in use, this one included.
        diagonal: Diagonal of the Gram matrix.
        now: z, f(z), and the norm of the latter in each row.
        last: The previous z and f(z).
        history: keep, wait, active, dr, df and gram, as in ``anderson``.
    """
    z, fz, scale = now
    out, finfo = torch.empty_like(z), torch.finfo(z.dtype)
    _function("anderson", z.dtype, "llllll" + "ddd" + "p" * 12)(
        *(_threads(z, work=8), *z.shape, history[-1].shape[1], slot, used),
        *(diagonal, finfo.eps, finfo.tiny),
        *(z.data_ptr(), fz.data_ptr(), _pointer(scale)),
        *[tensor.data_ptr() for tensor in (*last, *history, out)],
    )
    return out
