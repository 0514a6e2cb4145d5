"""Ways to the gradient of a directional derivative of an implicit model, which Sobolev training takes.

    python benchmarks/sobolev.py

- exact: ``torch.func.jvp`` of the model, and ``backward()`` through it: the derivative of a derivative;
- augmented: (z, ż) with z = f(z, x), ż = ∂f/∂z ż + ∂f/∂x v as one fixed point, differentiated once: what
  ``training.tangent`` does;
- by hand: the same, its map written out for x = tanh(Ax + Bu + b).

The loss is the sum of squares of the outputs and of their derivative along v, of a model at its initialization. Prints
times in units of that of the exact way: medians of interleaved runs in one process, on one thread; above 1, the exact
one is faster. All give the same gradient, which is checked.
"""

import statistics
from functools import partial

import torch
from measure import interleaved, single_thread, table

import implicitnets as inn
from implicitnets import training
from implicitnets.models import ImplicitModel

CASES = [(states, batch) for states in (20, 100, 400) for batch in (20, 100, 500)]


def exact(model, x, v):
    return torch.func.jvp(model, (x,), (v,))


def augmented(model, x, v):
    y, (dot,) = training.tangent(model, x, [v])
    return y, dot


def by_hand(model, x, v):
    matrix, bx, bv = model.A.T, x @ model.B.T + model.b, v @ model.B.T

    def f(state, bx, bv):
        z = torch.tanh(state[0] @ matrix + bx)
        return z, (1 - z * z) * (state[1] @ matrix + bv)

    start = (torch.zeros_like(bx), torch.zeros_like(bx))
    z, dot = inn.fixed_point(f, start, bx, bv, solver=model.solver, backward=model.backward).value
    return z @ model.C.T + x @ model.D.T + model.c, dot @ model.C.T + v @ model.D.T


WAYS = {"exact": exact, "augmented": augmented, "by hand": by_hand}


def gradient(way, model, x, v):
    y, dot = way(model, x, v)
    return torch.autograd.grad(y.square().sum() + dot.square().sum(), list(model.parameters()))


def main():
    single_thread()
    device, rows = torch.device("cpu"), []
    for states, batch in CASES:
        torch.manual_seed(0)
        model = ImplicitModel(10, states, 5, activation="tanh")
        x, v = torch.randn(2, batch, 10)
        runs = {name: partial(gradient, way, model, x, v) for name, way in WAYS.items()}
        for run in runs.values():
            for a, b in zip(runs["exact"](), run(), strict=True):
                assert (a - b).norm() <= 1e-2 * b.norm()
        times = interleaved(runs, dict.fromkeys(runs, 0.05), device, budget=1, least=10, most=20)
        middle = {name: statistics.median(taken) for name, taken in times.items()}
        ratios = [f"{middle[name] / middle['exact']:.2f}" for name in ("augmented", "by hand")]
        rows.append([states, batch, f"{1e3 * middle['exact']:.1f}", *ratios])
    print(table(["states", "batch", "exact (ms)", "augmented / exact", "by hand / exact"], rows))


if __name__ == "__main__":
    main()
