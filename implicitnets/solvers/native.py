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

import torch
from torch import Tensor

__all__ = ["anderson", "fits", "library", "residual"]

LARGE = 2**18
"""From this many entries on, tensor operations, which use all cores, are faster (measured)."""
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
        and 0 < z.numel() < LARGE
        and z.dtype in (torch.float32, torch.float64)
        and z.is_contiguous()
        and library() is not None
    )


def _function(name: str, like: Tensor) -> Any:
    return getattr(library(), f"{name}_f32" if like.dtype == torch.float32 else f"{name}_f64")


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


def residual(z: Tensor, fz: Tensor) -> tuple[Tensor, Tensor]:
    """r = fz − z, and the norms of r and fz in each row, shape (rows, 2)."""
    r, norms = torch.empty_like(z), z.new_empty((z.shape[0], 2))
    rows, size = map(ctypes.c_long, z.shape)
    _function("residual", z)(rows, size, *_pointers(z, fz, r, norms))
    return r, norms


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
        now: r, f(z), and the norms of both.
        last: The previous r and f(z).
        history: keep, wait, active, dr, df and gram, as in ``anderson``.
    """
    r, finfo = now[0], torch.finfo(now[0].dtype)
    out = torch.empty_like(r)
    sizes = map(ctypes.c_long, (*r.shape, history[-1].shape[0], slot, used))
    constants = map(ctypes.c_double, (diagonal, finfo.eps, finfo.tiny))
    _function("anderson", r)(*sizes, *constants, *_pointers(*now, *last, *history, out))
    return out
