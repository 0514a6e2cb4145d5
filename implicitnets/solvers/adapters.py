"""Other people's solvers behind the same interface: TorchDEQ's and SciPy's."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from .base import Iterative
from .loop import Iterate
from .packed import PackedMap

__all__ = ["SciPy", "TorchDEQ"]


@dataclass
class _Spent:
    steps: Any = 0


@dataclass(frozen=True, kw_only=True, init=False, repr=False)
class _External(Iterative[_Spent]):
    """A foreign solver, run once; the shared loop then measures the residual where it ended.

    What the foreign solver says of itself is not believed: status and residual are ours.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    remedies: ClassVar[str] = "more steps (max_steps=), or one of this library's own solvers, e.g. Anderson()"

    def __init__(
        self,
        name: str,
        *,
        rtol: float = 1e-4,
        atol: float = 1e-6,
        max_steps: int = 50,
        record: bool = False,
        options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = (),
        **more: Any,
    ) -> None:
        """Take the foreign solver's name; ``more`` (or ``options``) are passed on to it."""
        merged = tuple(sorted({**dict(options), **more}.items()))
        values = {"rtol": rtol, "atol": atol, "max_steps": max_steps, "record": record}
        for key, value in {**values, "name": name, "options": merged}.items():
            object.__setattr__(self, key, value)
        self.__post_init__()

    def __repr__(self) -> str:
        own = {"name": self.name, "rtol": self.rtol, "atol": self.atol, "max_steps": self.max_steps}
        own["record"] = self.record
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in {**own, **dict(self.options)}.items())})"

    @property
    def rounds(self) -> int:
        """One: the foreign solver has its own loop, of at most ``max_steps``."""
        return min(1, self.max_steps)

    def init(self, z: Tensor) -> _Spent:
        return _Spent()

    def spent(self, state: _Spent, step: int) -> Any:
        return state.steps


@dataclass(frozen=True, kw_only=True, init=False, repr=False)
class TorchDEQ(_External):
    """A solver of torchdeq 0.1.0: ``TorchDEQ("anderson", m=6)``, "broyden" or "fixed_point_iter".

    (Its fourth one, "simple_fixed_point_iter", hands the map an argument of its own and so can't take any map.)
    Needs the extra ``implicitnets[torchdeq]``. It stops the whole batch at once, by its own rule: the relative
    residual against ``rtol``, or the absolute one against ``atol`` where rtol is 0.

    Raises:
        ImportError: If torchdeq is not installed.
        ValueError: If torchdeq has no solver of that name.
        TypeError: If that solver has no such option (torchdeq itself would ignore it).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("anderson", "broyden", "fixed_point_iter")
        if self.name not in names:
            raise ValueError(f"TorchDEQ(name={self.name!r}): torchdeq's solvers are {', '.join(names)}")
        known = set(inspect.signature(self._solver()).parameters)
        known -= {"func", "x0", "max_iter", "tol", "stop_mode", "indexing", "return_final", "kwargs"}
        for option in dict(self.options):
            if option not in known:
                raise TypeError(f"TorchDEQ({self.name!r}) has no option {option!r}; it has {', '.join(sorted(known))}")

    def _solver(self) -> Any:
        try:
            from torchdeq.solver import get_solver  # noqa: PLC0415  (optional)
        except ImportError as error:
            raise ImportError("TorchDEQ(...) needs torchdeq: pip install 'implicitnets[torchdeq]'") from error
        return get_solver(self.name)

    def step(self, f: PackedMap, now: Iterate, state: _Spent) -> Tensor:  # noqa: D102
        stop = {"tol": self.rtol, "stop_mode": "rel"} if self.rtol > 0 else {"tol": self.atol, "stop_mode": "abs"}
        z, _, info = self._solver()(f.evaluate, now.z, max_iter=self.max_steps, **stop, **dict(self.options))
        steps = info["nstep"].cpu().numpy().astype(np.int64)
        state.steps = np.where(steps < 0, self.max_steps, steps)
        return torch.as_tensor(z)


_METHODS = (
    "hybr",
    "lm",
    "broyden1",
    "broyden2",
    "anderson",
    "linearmixing",
    "diagbroyden",
    "excitingmixing",
    "krylov",
    "df-sane",
)


@dataclass(frozen=True, kw_only=True, init=False, repr=False)
class SciPy(_External):
    """A method of ``scipy.optimize.root``: ``SciPy("hybr")``, "lm", "krylov", "df-sane" and the others.

    Solves f(z) − z = 0 for one sample after the other, in float64 on the CPU, evaluating f on the whole batch
    each time: for comparison, not for speed.

    Raises:
        ValueError: If SciPy has no such method.
        TypeError: If the method has no such option.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in _METHODS:
            raise ValueError(f"SciPy(name={self.name!r}): the methods are {', '.join(_METHODS)}")
        try:
            self._root(lambda v: v - 0.5, np.ones(1), 1.0, torch.float64)
        except (TypeError, scipy.optimize.OptimizeWarning) as error:
            raise TypeError(f"SciPy({self.name!r}) can't take its options {dict(self.options)}: {error}") from None

    def _root(self, fun: Any, start: Any, tol: float, dtype: torch.dtype) -> Any:
        precision = torch.finfo(dtype).eps  # of f, which SciPy differentiates by differences
        options: dict[str, Any] = {"maxiter": max(self.max_steps, 1)}
        if self.name in ("hybr", "df-sane"):
            options = {"maxfev": max(self.max_steps, 1) * (start.size + 1)}
        elif self.name == "lm":
            options = {"maxiter": max(self.max_steps, 1) * (start.size + 1)}
        if self.name in ("hybr", "lm"):
            options["eps"] = precision
        elif self.name == "krylov":
            options["jac_options"] = {"rdiff": precision**0.5}
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error", scipy.optimize.OptimizeWarning)
            options |= dict(self.options)
            return scipy.optimize.root(fun, start, method=self.name, tol=tol, options=options)

    def step(self, f: PackedMap, now: Iterate, state: _Spent) -> Tensor:  # noqa: D102
        out = now.z.clone()
        residual, scale = now.host_norms()
        state.steps = np.zeros(residual.size, dtype=np.int64)
        for i in np.flatnonzero(residual > self.atol + self.rtol * scale).tolist():
            limit = min(self.rtol or 1.0, self.atol + self.rtol * scale[i]) / now.z.shape[1] ** 0.5
            start = now.z[i].double().cpu().numpy()
            state.steps[i] = self.max_steps
            try:
                found = self._root(functools.partial(self._sample, f, now.z, i), start, limit, now.z.dtype)
            except ValueError:  # SciPy gave this sample up; its status will say so
                continue
            state.steps[i] = found.get("nit", found.get("nfev"))
            out[i] = torch.as_tensor(found.x).to(out)
        return out

    @staticmethod
    def _sample(f: PackedMap, z: Tensor, i: int, v: Any) -> Any:
        """f(z) − z of sample i alone, at ``v``."""
        point = z.clone()
        point[i] = torch.as_tensor(v).to(point)
        return (f.evaluate(point)[i] - point[i]).double().cpu().numpy()
