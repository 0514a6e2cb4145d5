"""How many evaluations the solvers take on monotone models, as W moves away from a contraction.

    python benchmarks/splitting.py

The equilibrium and the gradient of ``MonotoneDEQ(100, 100)``, and of its convolutional sisters on images of 12 × 12, to
rtol = 1e-4 on a batch of 32 normal inputs. The weights are those of the initialization times a factor; ‖I − W‖ is in
units of m. An evaluation is one of the map or one product with its Jacobian; a step of PeacemanRachford takes one
solve with I + a(I − W) beside it, one of ForwardBackward one product with W. The counts do not depend on the machine.
"""

import warnings

import torch
from measure import single_thread, table

import implicitnets as inn
from implicitnets.models import MonotoneConvDEQ, MonotoneDEQ, MonotoneMultiTierDEQ
from implicitnets.solvers import Anderson, Broyden, ForwardBackward, PeacemanRachford, Picard

STEPS = 1000
SOLVERS = {
    "PeacemanRachford()": PeacemanRachford(max_steps=STEPS),
    "PeacemanRachford(step_size=1)": PeacemanRachford(max_steps=STEPS, step_size=1.0),
    "ForwardBackward()": ForwardBackward(max_steps=STEPS),
    "Anderson()": Anderson(max_steps=STEPS),
    "Broyden()": Broyden(max_steps=STEPS),
    "Picard(damping=0.5)": Picard(max_steps=STEPS, damping=0.5),
}
MODELS = {
    "dense": (lambda **how: MonotoneDEQ(100, 100, **how), (100,), (1, 3, 6, 12)),
    "convolution": (lambda **how: MonotoneConvDEQ(1, 8, **how), (1, 12, 12), (1, 3, 6)),
    "two tiers": (lambda **how: MonotoneMultiTierDEQ(1, (8, 16), **how), (1, 12, 12), (1, 3, 6)),
}


def size(model, x):
    """‖I − W‖ by power iteration on the operator that the solvers see."""
    seen = []
    model.equilibrium = lambda f, z0, c: seen.extend((f, c)) or c
    model(x)
    del model.equilibrium
    f, c = seen
    operator = f.operator(c)
    v = torch.randn_like(f.splitting(c).injection)
    for _ in range(100):
        w = v - operator(v)
        v = w - operator.T(w)
        v /= v.norm()
    return float((v - operator(v)).norm())


def count(make, solver, factor, x):
    """Evaluations forward and backward, or a dash where a sample did not converge."""
    torch.manual_seed(0)
    model = make(solver=solver, backward=inn.Implicit(solver=solver))
    for p in model.parameters():
        p.data *= factor
    out = model(x)
    sum(t.square().sum() for t in (out if isinstance(out, tuple) else (out,))).backward()
    records = (model.forward_solution, model.backward_solution)
    shown = " + ".join(str(r.evaluations) if r.converged.all() else "–" for r in records)
    return shown, f"{size(model, x):.0f}"


def main():
    single_thread()
    warnings.simplefilter("ignore", inn.ConvergenceWarning)
    rows = []
    for name, (make, shape, factors) in MODELS.items():
        x = torch.randn(32, *shape, generator=torch.Generator().manual_seed(1))
        for factor in factors:
            found = [count(make, solver, factor, x) for solver in SOLVERS.values()]
            rows.append([name, found[0][1], *(shown for shown, _ in found)])
    print(table(["model", "‖I − W‖ / m", *SOLVERS], rows))


if __name__ == "__main__":
    main()
