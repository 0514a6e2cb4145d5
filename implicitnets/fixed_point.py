"""The fixed point of a map, as a differentiable function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from .backward import Backward, Equation, Implicit, Report
from .backward.transforms import plain
from .solution import Solution, Status, warn_unconverged
from .solvers import Anderson, Solver

__all__ = ["check_strategies", "fixed_point"]


def fixed_point(
    f: Callable[..., Any],
    z0: Any,
    *inputs: Any,
    solver: Solver = Anderson(),
    backward: Backward = Implicit(),
    report: Report | None = None,
    sync_group: torch.distributed.ProcessGroup | None = None,
) -> Solution:
    """Solve z = f(z, *inputs) for each sample of the batch, differentiably.

    Gradients reach everything that f depends on: inputs, parameters and buffers of modules, and tensors that f only
    closes over. f should treat each sample on its own. An input whose first axis is the batch belongs to the samples
    one by one: it is cut when finished samples are dropped from the batch, which f's closure can't be.

    Examples:
        >>> import torch, implicitnets as inn
        >>> a = torch.tensor([[0.5], [0.25]], dtype=torch.float64, requires_grad=True)
        >>> tight = {"solver": inn.solvers.Anderson(rtol=1e-8), "backward": inn.Implicit(solver=inn.solvers.Dense())}
        >>> solution = inn.fixed_point(lambda z, a: a * z + 1, torch.zeros_like(a), a, **tight)  # z = 1 / (1 - a)
        >>> solution.value.detach().flatten()
        tensor([2.0000, 1.3333], dtype=torch.float64)
        >>> solution.value.sum().backward()
        >>> a.grad.flatten()  # 1 / (1 - a)²
        tensor([4.0000, 1.7778], dtype=torch.float64)

    Args:
        f: The map: takes a state and ``inputs``, returns a state of the same structure, shapes and dtypes.
        z0: Where to start: a tensor of shape (batch, ...), or a pytree of such tensors. It gets no gradient, since
            the solution does not depend on it.
        inputs: Further arguments of f, tensors or not.
        solver: How to solve.
        backward: How to differentiate.
        report: Called with the Solution of the adjoint equation each time a gradient is taken; its residual is in
            units of the incoming gradient.
        sync_group: The ``torch.distributed`` process group whose ranks solve together, needed where f has collectives
            inside: the states of all ranks become one state, solved by one rank and evaluated by all. Every rank has
            to make the call, and take the gradient.

    Returns:
        The Solution; its ``value`` carries the gradient.

    Raises:
        TypeError: If solver or backward is not a value of its kind, f is not callable, or a module that is sharded or
            wrapped for distributed training, the state is not of floating point, or f(z) is not built like z.
        ValueError: If z0 has no batch axis, the shape of f(z) differs from z's, or no sample of z0 or of an input is
            finite.
        RuntimeError: If f depends on a tensor whose gradient would be lost.

    Warns:
        ConvergenceWarning: If a sample did not converge, here or when the gradient is taken.
    """
    if torch.compiler.is_compiling():
        if backward.traceable:
            return backward.trace(f, z0, inputs, solver)
        outside: Solution = torch.compiler.disable(_fixed_point)(f, z0, inputs, solver, backward, report, sync_group)
        return outside
    return _fixed_point(f, z0, inputs, solver, backward, report, sync_group)


def _fixed_point(
    f: Callable[..., Any],
    z0: Any,
    inputs: tuple[Any, ...],
    solver: Solver,
    backward: Backward,
    report: Report | None,
    sync_group: torch.distributed.ProcessGroup | None,
) -> Solution:
    check_strategies(solver, backward)
    if not callable(f):
        raise TypeError(f"f must be callable, z -> f(z), not {type(f).__name__}")
    solution = backward.solve(Equation(f, z0, inputs, sync_group), solver, report)
    if solution.all_converged:
        return solution
    if bool((solution.status == Status.NONFINITE).all()):
        _refuse_nonfinite(z0, inputs)
    finder = backward.finder(solver)
    warn_unconverged(solution, finder, what="fixed point", remedies=finder.remedies, stacklevel=3)
    return solution


def check_strategies(solver: object, backward: object) -> None:
    """Check that these are a Solver and a Backward.

    Raises:
        TypeError: Saying what to write instead.
    """
    for name, value, kind, example in (
        ("solver", solver, Solver, "Anderson()"),
        ("backward", backward, Backward, "Implicit()"),
    ):
        if isinstance(value, kind):
            continue
        if isinstance(value, type) and issubclass(value, kind):
            raise TypeError(f"{name}={value.__name__} is a class: write {name}={value.__name__}()")
        hint = " or solvers.by_name(...)" if name == "solver" and isinstance(value, str) else ""
        raise TypeError(f"{name}={value!r} is not a {kind.__name__}: write for instance {name}={example}{hint}")


def _refuse_nonfinite(z0: Any, inputs: tuple[Any, ...]) -> None:
    """Raise if no sample could be solved because of the data, not the map.

    Raises:
        ValueError: Naming the argument.
    """
    for name, value in (("z0", z0), *((f"input {i + 1}", x) for i, x in enumerate(inputs))):
        for leaf in _pytree.tree_leaves(value):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() and leaf.dim():
                found = torch.isfinite(plain(leaf))
                finite = found.flatten(1).all(1) if leaf.dim() > 1 else found
                if not bool(finite.any()):
                    raise ValueError(f"{name} has NaN or infinite entries in every sample: clean the data first")
