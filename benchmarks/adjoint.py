"""When is a dense solve of the adjoint equation faster than an iterative one? What ``Implicit()`` chooses by.

    python benchmarks/adjoint.py [--single-thread] [--markdown]

The backward pass of z = tanh(zW + x), symmetric W with ‖W‖₂ = 0.9, with ``Implicit(solver=Dense())`` and
``Implicit(solver=Fallback(Anderson(), GMRES()))``: the time of the second in units of the first.
"""

import argparse
from pathlib import Path

import torch
from cells import unit_matrix
from measure import Results, fingerprint, interleaved, load, median, seconds, single_thread, table

import implicitnets as inn
from implicitnets.backward.linear import LITTLE, SMALL
from implicitnets.solvers import GMRES, Anderson, Dense, Fallback

OUT = Path(__file__).parent / "results" / "adjoint.json"
SIZES, BATCHES = (4, 8, 16, 32, 48, 64, 96, 128), (1, 8, 64, 512)
ADJOINTS = {"Dense": Dense(), "iterative": Fallback(Anderson(), GMRES())}


def measure(n, batch):
    generator = torch.Generator().manual_seed(0)
    weight = (0.9 * unit_matrix("symmetric", n, 0)).requires_grad_()
    x = torch.randn(batch, n, generator=generator)
    runs = {}
    for name, solver in ADJOINTS.items():
        z = inn.fixed_point(
            lambda z, x: torch.tanh(z @ weight + x),
            torch.zeros_like(x),
            x,
            solver=Anderson(rtol=1e-5),
            backward=inn.Implicit(solver=solver),
        ).value
        runs[name] = lambda z=z: torch.autograd.grad(z.square().sum(), weight, retain_graph=True)
    device = torch.device("cpu")
    estimates = {name: min(seconds(run, device) for _ in range(3)) for name, run in runs.items()}
    times = {
        name: median(found)
        for name, found in interleaved(runs, estimates, device, budget=0.3, least=5, most=100).items()
    }
    chosen = "Dense" if n <= SMALL and batch * n**3 <= LITTLE else "iterative"
    ratio = times["iterative"] / times["Dense"]
    return {"name": f"n={n}/batch={batch}", "n": n, "batch": batch, "seconds": times, "ratio": ratio, "chosen": chosen}


def report(records):
    """Iterative / Dense; in bold where Implicit() takes Dense."""
    found = {(record["n"], record["batch"]): record for record in records}
    rows = []
    for n in SIZES:
        cells = [found.get((n, batch)) for batch in BATCHES]
        shown = ["–" if c is None else f"{c['ratio']:.2f}" for c in cells]
        rows.append(
            [n, *(f"**{s}**" if c and c["chosen"] == "Dense" else s for c, s in zip(cells, shown, strict=True))]
        )
    print(table(["n", *(f"batch {batch}" for batch in BATCHES)], rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--single-thread", action="store_true", help="one thread and its processor time")
    parser.add_argument("--markdown", action="store_true", help="measure nothing; print what is in the file")
    options = parser.parse_args()
    if options.markdown:
        report(load(OUT)["cases"])
        return
    if options.single_thread:
        single_thread()
    results = Results(OUT, {"single_thread": options.single_thread} | fingerprint(), fresh=False)
    for n in SIZES:
        for batch in BATCHES:
            if f"n={n}/batch={batch}" not in results:
                results.add(measure(n, batch), torch.device("cpu"))
    report(results.cases)


if __name__ == "__main__":
    main()
