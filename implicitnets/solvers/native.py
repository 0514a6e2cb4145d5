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
import torch
from torch import Tensor

__all__ = ["anderson", "fits", "library", "measure"]

Vector = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

LARGE = 2**18
"""From this many entries on, tensor operations are used where they have more than two threads: on one thread they
take about twice as long as these loops (measured), which use one."""
MAX_MEMORY = 32
"""As in native.c."""
SOURCE = Path(__file__).with_name("native.c")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where they can't be had (no compiler, or ``IMPLICITNETS_NATIVE=0`` is set)."""
    compiler = next((found for name in (os.environ.get("CC"), "cc") if name and (found := shutil.which(name))), None)
    if os.environ.get("IMPLICITNETS_NATIVE") == "0" or compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_compile(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).info("no native solver loops: %s", error)
        return None


def _compile(compiler: str) -> Path:
    """Compile native.c into the user's cache, once for each version of it."""
    command = [compiler, "-O3", "-fopenmp-simd", "-fno-math-errno", "-shared", "-fPIC"]
    machine = os.uname()
    key = " ".join([SOURCE.read_text(), *command, machine.sysname, machine.machine, machine.release])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "implicitnets"
    target = cache / f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            built = Path(scratch) / target.name
            subprocess.run(
                [*command, str(SOURCE), "-lm", "-o", str(built)], check=True, capture_output=True, timeout=60
            )
            built.replace(target)
    return target


def fits(z: Tensor) -> bool:
    """Whether a matrix like ``z`` is for these functions."""
    return (
        z.device.type == "cpu"
        and z.numel() > 0
        and (z.numel() < LARGE or torch.get_num_threads() <= 2)
        and z.dtype in (torch.float32, torch.float64)
        and z.is_contiguous()
        and library() is not None
    )


@functools.cache
def _function(name: str, dtype: torch.dtype, arguments: str) -> Any:
    """A function of the library; ``arguments`` has a letter for each: long, double or pointer."""
    function = getattr(library(), f"{name}_f32" if dtype == torch.float32 else f"{name}_f64")
    kinds = {"l": ctypes.c_long, "d": ctypes.c_double, "p": ctypes.c_void_p}
    function.argtypes, function.restype = [kinds[letter] for letter in arguments], ctypes.c_long
    return function


def measure(
    z: Tensor, fz: Tensor, limits: tuple[float, float], bounds: tuple[Vector, Vector], done: Mask
) -> tuple[Vector, int]:
    """‖fz − z‖ and ‖fz‖ of each row, shape (2, rows), and how many rows are as usual.

    These are the rows with least > ‖fz − z‖ > atol + rtol · ‖fz‖ and ‖fz‖ ≤ horizon, and those that are done, whose
    norms are 0.

    Args:
        z: A point.
        fz: The value there.
        limits: atol and rtol.
        bounds: least and horizon, by row.
        done: By row.
    """
    norms = np.empty((2, z.shape[0]))
    pointers = z.data_ptr(), fz.data_ptr(), *[array.ctypes.data for array in (*bounds, done, norms)]
    return norms, _function("measure", z.dtype, "llddpppppp")(*z.shape, *limits, *pointers)


def anderson(
    slot: int,
    used: int,
    diagonal: float,
    now: tuple[Tensor, ...],
    last: tuple[Tensor, ...],
    history: tuple[Tensor, ...],
) -> Tensor:
    """The next point of Anderson's method, which puts the newest difference into ``slot`` of the history.

    Args:
        slot: Where the newest difference goes.
        used: Slots in use, this one included.
        diagonal: Diagonal of the Gram matrix.
        now: z, f(z), and the norm of the latter in each row, float64.
        last: The previous z and f(z).
        history: keep, wait, active, dr, df and gram, as in ``anderson``.
    """
    z, finfo = now[0], torch.finfo(now[0].dtype)
    out = torch.empty_like(z)
    _function("anderson", z.dtype, "lllll" + "ddd" + "p" * 12)(
        *(*z.shape, history[-1].shape[1], slot, used),
        *(diagonal, finfo.eps, finfo.tiny),
        *[tensor.data_ptr() for tensor in (*now, *last, *history, out)],
    )
    return out
