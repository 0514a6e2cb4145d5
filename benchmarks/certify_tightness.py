"""How tight the bounds of certified robustness are, and what they cost.

    OMP_NUM_THREADS=1 python benchmarks/certify_tightness.py --single-thread  # saves results/certify_tightness.json

Random relu models with n states, p inputs and ‖A‖∞ as given, over boxes of half-width σ: the upper bound of a random
output less its value at the centre, divided by that of the exact maximum; medians of eight, milliseconds in brackets.
"lp", "sdp" and "milp" start from bounds of z by implicit CROWN, the time of which is in the column of that name.
"""

import argparse
import time
from pathlib import Path

import torch
from measure import Results, median, single_thread, table

from implicitnets.activations import as_activation
from implicitnets.analysis import (
    ClosedForm,
    Crown,
    Interval,
    LinearProgram,
    MixedInteger,
    Semidefinite,
    Zonotope,
    region,
)
from implicitnets.analysis.certificates.prepare import prepare
from implicitnets.analysis.certificates.problem import Problem
from implicitnets.models import AffineForm

OUT = Path(__file__).with_name("results") / "certify_tightness.json"
SIZES = [(8, 4), (16, 8), (32, 16)]
CASES = [(n, p, norm, sigma) for n, p in SIZES for norm in (0.5, 0.9) for sigma in (0.05, 0.3)]
METHODS = {
    "closed form": ClosedForm(),
    "interval": Interval(),
    "zonotope": Zonotope(),
    "crown": Crown(),
    "lp": LinearProgram(),
    "sdp": Semidefinite(),
    "milp": MixedInteger(),
}


def random_problem(n, p, norm, sigma, seed):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    A = normal(n, n)
    form = AffineForm(
        A=A * norm / A.abs().sum(1).max(),
        B=normal(n, p) / p**0.5,
        C=normal(1, n),
        D=torch.zeros(1, p, dtype=torch.float64),
        b=0.3 * normal(n),
        c=torch.zeros(1, dtype=torch.float64),
        activation=as_activation("relu"),
    )
    u = normal(1, p)
    return form, region(u, sigma), form.solve(u).value


def searched(form, space):
    """The largest output at 2000 random inputs and where five ascents by gradients end."""
    many = space.take(torch.zeros(2000, dtype=torch.long))
    u = many.sample(torch.Generator().manual_seed(0))
    best = (form.solve(u).value @ form.C.T).amax()
    for _ in range(5):
        u = u.detach().requires_grad_()
        u = many.maximizer(torch.autograd.grad((form.solve(u).value @ form.C.T).sum(), u)[0])
        best = torch.maximum(best, (form.solve(u).value @ form.C.T).amax())
    return float(best)


def measure(name, n, p, norm, sigma, repeats):
    runs = []
    for seed in range(repeats):
        form, space, x0 = random_problem(n, p, norm, sigma, seed)
        plain, centre = prepare(form, space, x0), float((x0 @ form.C.T)[0, 0])
        tight, found, spent = Crown().tighten(plain), {}, {}
        for method, bounder in METHODS.items():
            start = time.perf_counter()
            asked = Problem.of(form, space, x0) if method == "closed form" else tight
            asked = bounder.tighten(plain) if method in ("interval", "zonotope", "crown") else asked
            found[method] = float(bounder.maximum(asked, asked.form.C, asked.form.D)[0, 0]) - centre
            spent[method] = time.perf_counter() - start
        found["searched"] = searched(form, space) - centre
        runs.append({"found": found, "seconds": spent})
    return {"name": name, "runs": runs}


def row(case):
    ratios = {
        method: median(run["found"][method] / run["found"]["milp"] for run in case["runs"])
        for method in [*METHODS, "searched"]
    }
    spent = {method: median(1e3 * run["seconds"][method] for run in case["runs"]) for method in METHODS}
    cells = [f"{ratios[m]:.3g} ({spent[m]:.0f})" if m in spent else f"{ratios[m]:.3g}" for m in ratios]
    return [case["name"], *cells]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest models, twice; nothing is saved")
    parser.add_argument("--single-thread", action="store_true", help="one thread")
    parser.add_argument("--out", type=Path, help=f"file of results (default {OUT.name} beside this program's)")
    args = parser.parse_args()
    if args.single_thread:
        single_thread()
    repeats = 2 if args.quick else 8
    path = args.out or (None if args.quick else OUT)
    results = Results(path, {"repeats": repeats})
    for n, p, norm, sigma in CASES[:2] if args.quick else CASES:
        name = f"{n}, {p}; {norm}; {sigma}"
        if name not in results:
            results.add(measure(name, n, p, norm, sigma, repeats), torch.device("cpu"))
    print(table(["n, p; ‖A‖∞; σ", *METHODS, "searched"], [row(case) for case in results.cases]))


if __name__ == "__main__":
    main()
