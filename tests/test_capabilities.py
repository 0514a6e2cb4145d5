"""The capability table, capability by cell by solver and backward; every entry has to hold."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import pytest
import torch
from capabilities import LIMITS, ROWS, Wrong, check
from equilibria import CELLS, OURS, UNROLLED, Layer
from torch.utils import _pytree

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch.func itself uses it

ALL = [(row, cell, layer) for row in ROWS for cell in CELLS if ROWS[row].fits(CELLS[cell]) for layer in OURS]


def chosen() -> list[tuple[str, str, str]]:
    """All layers for a row of first order, else one for each row and cell, such that each cell sees them all."""
    rows, cells, layers = list(ROWS), list(CELLS), list(OURS)

    def turn(row: str, cell: str) -> str:
        return layers[(rows.index(row) + 2 * cells.index(cell)) % len(layers)]

    return [(row, cell, layer) for row, cell, layer in ALL if ROWS[row].first or layer == turn(row, cell)]


QUICK = chosen()
CLAIMED = [place for place in ALL if place[0] not in LIMITS]


@pytest.mark.parametrize(("row", "cell", "layer"), [place for place in QUICK if place in CLAIMED])
def test_the_capability_is_there(row, cell, layer):
    check(row, OURS[layer], cell)


@pytest.mark.parametrize("row", LIMITS)
@pytest.mark.parametrize("cell", CELLS)
def test_what_cannot_be_done_is_an_error(row, cell):
    with pytest.raises(LIMITS[row]):
        check(row, next(iter(OURS.values())), cell)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "cell", "layer"), [place for place in CLAIMED if place not in QUICK])
def test_the_capability_is_there_for_every_solver_and_backward(row, cell, layer):
    check(row, OURS[layer], cell)


# The yardstick


@pytest.mark.parametrize("name", CELLS)
def test_the_unrolled_layer_reaches_the_fixed_point_long_before_its_end(name):
    cell = CELLS[name]
    z = UNROLLED.solve(cell.f, cell.start(cell.x), cell.w, cell.x)
    for a, b in zip(_pytree.tree_leaves(cell.f(z, cell.w, cell.x)), _pytree.tree_leaves(z), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-15)


@pytest.mark.parametrize("scale", [1.0, 0.8, 0.5])
def test_the_relu_cells_are_at_kinks_or_far_from_them(scale):
    for name, at_kink in (("ReLU", 0), ("ReLU at kinks", 2)):
        cell = CELLS[name]
        w, x = scale * cell.w, scale * cell.x
        pre = UNROLLED.solve(cell.f, cell.start(x), w, x) @ w.T + x
        assert (pre == 0).sum() == at_kink
        assert pre[pre != 0].abs().min() > 0.2


class Detached(Layer):
    """What is wrong in a usual way: one step at a detached solution, so that a derivative lacks dz*."""

    def solve(self, f, z0, *inputs):
        z = _pytree.tree_map(torch.detach, UNROLLED.solve(f, z0, *inputs))
        return f(z, *inputs)


@pytest.mark.parametrize("row", ["backward", "torch.func.jvp", "torch.func.hessian (jacfwd of jacrev)", "vmap of grad"])
def test_a_wrong_layer_is_seen(row):
    (name,) = [n for n in ROWS if n == row or n.startswith(row + ":")]
    with pytest.raises(Wrong):
        check(name, Detached(), "dense tanh")


# Peers, where they are installed


def peer(solve) -> None:
    """Gradients of the dense cell are those that JAX's library finds."""
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415

    jax.config.update("jax_enable_x64", True)
    cell = CELLS["dense tanh"]
    w, x = (jnp.asarray(t.numpy()) for t in (cell.w, cell.x))

    def f(z, w, x):
        return jnp.tanh(z @ w.T + x)

    theirs = jax.grad(lambda w, x: (solve(f, jnp.zeros_like(x), w, x) ** 3).sum(), (0, 1))(w, x)
    ours = [t.clone().requires_grad_() for t in (cell.w, cell.x)]
    (layer, *_) = OURS.values()
    grads = torch.autograd.grad(layer.solve(cell.f, cell.start(cell.x), *ours).pow(3).sum(), ours)
    for a, b in zip(grads, theirs, strict=True):
        assert torch.allclose(a, torch.tensor(b.tolist(), dtype=a.dtype), rtol=1e-7, atol=1e-9)


if find_spec("jaxopt"):

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_jaxopt_agrees():
        from jaxopt import FixedPointIteration  # noqa: PLC0415
        from jaxopt.linear_solve import solve_gmres  # noqa: PLC0415

        tight = {"maxiter": 100, "tol": 1e-14, "implicit_diff_solve": partial(solve_gmres, tol=1e-12)}
        peer(lambda f, z, w, x: FixedPointIteration(f, **tight).run(z, w, x).params)


if find_spec("optimistix"):

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_optimistix_agrees():
        import optimistix  # noqa: PLC0415

        def solve(f, z, w, x):
            iteration = optimistix.FixedPointIteration(rtol=1e-13, atol=1e-14)
            return optimistix.fixed_point(lambda z, args: f(z, *args), iteration, z, (w, x)).value

        peer(solve)
