"""This library's solvers against TorchDEQ's, to the same true residual, in one process and interleaved.

    python benchmarks/solvers.py              # all cases; goes on where it was stopped, and repeats what was disturbed
    python benchmarks/solvers.py --quick      # a few of them
    python benchmarks/solvers.py --markdown   # the tables of the last full run

A cell is f(z) = φ(zW + x) with φ = tanh, ReLU or the identity, or a convolutional one; x is standard normal. Its
*contraction* ρ is the Lipschitz constant of its linear part in the 2-norm, with

- family "gaussian": W is Gaussian, scaled to ‖W‖₂ = ρ. Its spectral radius is about ρ/2, so every cell is easy;
- family "symmetric": W is symmetric, its eigenvalues uniform in [−ρ, ρ].

φ contracts further. How fast the plain iteration really converges is measured and reported as *rate*: the factor by
which the worst sample's residual falls in a step, in the end. With φ the identity and W symmetric, it is ρ.
The cell "groupnorm" is z ↦ GN(relu(z + GN(x + conv(relu(conv(z)))))), whose Lipschitz constant is unknown.

Every solver is asked for ‖f(z) − z‖ ≤ tolerance · ‖f(z)‖ in each sample, and this is checked afterwards by an
evaluation that is not the solver's own. One that misses it is asked again for half and a quarter of the tolerance;
one that needs more than 50 steps, again with 300. One that fails even then takes no part in the comparison. TorchDEQ's
solvers are called as their users do: ``get_solver(name)(f, z0, max_iter=..., tol=..., stop_mode="rel")``.
"""

import warnings
from functools import partial
from pathlib import Path

import torch
from cells import all_cases
from measure import (
    Probe,
    Results,
    command_line,
    fingerprint,
    interleaved,
    load,
    median,
    peak_memory,
    seconds,
    single_thread,
)
from tables import costs, disturbance, disturbed, each, summary
from torchdeq.solver import get_solver

import implicitnets as inn

OURS = {
    "Anderson": inn.solvers.Anderson,
    "Picard": inn.solvers.Picard,
    "Broyden": inn.solvers.Broyden,
    "Newton": inn.solvers.Newton,
}
THEIRS = {"Anderson": "anderson", "Picard": "fixed_point_iter", "Broyden": "broyden"}
RIVALS = {kind: f"torchdeq {name}" for kind, name in THEIRS.items()}
DEFAULT = "Anderson"
BUDGETS = (50, 300)
ROUNDS = 3
"""A case is measured so often at most, if another program got in its way; the least disturbed record is kept."""
SLACK = 1.01  # the check is an evaluation in the same precision, not with the same rounding errors
OUT = Path(__file__).parent / "results" / "solvers.json"


def our(kind, f, x, *, tolerance, steps):
    solver = OURS[kind](rtol=tolerance, atol=0.0, max_steps=steps)
    return inn.fixed_point(f, torch.zeros_like(x), x, solver=solver).value


def their(name, f, x, *, tolerance, steps):
    solve, z0 = get_solver(name), torch.zeros_like(x)
    return solve(lambda z: f(z, x), z0, max_iter=steps, tol=tolerance, stop_mode="rel")[0]


def contenders(kinds):
    ours = {kind: partial(our, kind) for kind in kinds}
    return ours | {RIVALS[kind]: partial(their, name) for kind, name in THEIRS.items()}


def relative_residual(f, z, x):
    """The largest ‖f(z) − z‖ / ‖f(z)‖ of a sample."""
    fz = f(z, x)
    return float(((fz - z).flatten(1).norm(dim=1) / fz.flatten(1).norm(dim=1)).max())


def attempt(solve, f, x, tolerance, options):
    """Solve once, counted and clocked, and check what was found."""
    probe, found = Probe(f, x.device), []
    total = seconds(lambda: found.append(solve(probe, x, **options)), x.device)
    residual = relative_residual(f, found[0], x)
    return {
        "converged": residual <= SLACK * tolerance,
        **options,
        "residual": residual,
        "evaluations": probe.calls,
        "rows": round(probe.rows / x.shape[0], 2),
        "seconds": total,
        "outside": total - probe.inside,
    }


def admit(solve, f, x, tolerance):
    """The record of the first attempt that reaches the tolerance, or of the last one."""
    record = {}
    for steps in BUDGETS:
        for divisor in (1, 2, 4):
            options = {"tolerance": tolerance / divisor, "steps": steps}
            record = attempt(solve, f, x, tolerance, options)
            if record["converged"]:
                repeats = range(5 if record["seconds"] < 0.1 else 0)  # a slow one is taken as it is
                again = [attempt(solve, f, x, tolerance, options) for _ in repeats] or [record]
                return record | {key: median(one[key] for one in again) for key in ("seconds", "outside")}
            if record["evaluations"] >= steps:  # no use in asking for more
                break
    return record


def measured_rate(f, x):
    """The factor by which the worst residual of the plain iteration falls in a step, in the end."""
    solver = inn.solvers.Picard(rtol=1e-5, atol=0.0, max_steps=200, record=True)
    worst = solver.run(lambda z: f(z, x), torch.zeros_like(x)).trace.amax(1)
    last = min(10, len(worst) - 1)
    return float((worst[-1] / worst[-1 - last]) ** (1 / last))


@torch.no_grad()
def measure(case, kinds, settings, *, quick):
    """The record of a case."""
    device = torch.device(settings["device"])
    f, x = case.build(device, settings["input_scale"], settings["seed"])
    solvers, runs = {}, {}
    for name, solve in contenders(kinds).items():
        solvers[name] = record = admit(solve, f, x, settings["tolerance"])
        if record["converged"]:
            runs[name] = partial(solve, f, x, tolerance=record["tolerance"], steps=record["steps"])
            if case.weighs:
                record["memory"] = peak_memory(runs[name], device)
    estimates = {name: solvers[name]["seconds"] for name in runs}
    limits = {"budget": 0.05, "least": 3, "most": 20} if quick else {"budget": 1.0, "least": 7, "most": 50}
    for name, times in interleaved(runs, estimates, device, **limits).items():
        solvers[name] |= {"seconds": median(times), "fastest": min(times), "repeats": len(times)}
    z = torch.zeros_like(x)
    alone = [seconds(lambda: f(z, x), device) for _ in range(11)]
    facts = {"name": case.name, **vars(case), "rate": measured_rate(f, x), "f_seconds": median(alone)}
    return {**facts, "solvers": solvers, **compare(solvers)}


def compare(solvers):
    """Time ratios, theirs to ours: above 1 where ours is faster, None where theirs fails, 0 where ours does."""
    times = {name: record["seconds"] for name, record in solvers.items() if record["converged"]}

    def ratio(theirs, ours):
        if ours not in times:
            return 0.0
        return times[theirs] / times[ours] if theirs in times else None

    best = min((name for name in RIVALS.values() if name in times), key=times.get, default=None)
    same = {kind: ratio(rival, kind) for kind, rival in RIVALS.items()}
    return {"best_of_torchdeq": best, "ratio": ratio(best, DEFAULT), "same_method": same}


def describe(case):
    """A line on a case."""
    parts = []
    for name, record in case["solvers"].items():
        spent = f"{1e3 * record['seconds']:.3g} ms" if record["converged"] else "failed"
        parts.append(f"{name} {record['evaluations']} f, {spent}")
    ratio = "-" if case["ratio"] is None else f"{case['ratio']:.2f}"
    return f"{case['name']}: ratio {ratio}, rate {case['rate']:.2f}; {'; '.join(parts)}"


def arguments():
    parser = command_line(__doc__, OUT)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="on the relative residual (default 1e-4)")
    parser.add_argument("--input-scale", type=float, default=1.0, help="standard deviation of x (default 1)")
    parser.add_argument("--newton", action="store_true", help="also measure Newton()")
    parser.add_argument(
        "--markdown",
        nargs="?",
        const="summary",
        choices=("summary", "cases"),
        help="measure nothing; print what is in the file as tables",
    )
    return parser.parse_args()


def main():
    options = arguments()
    out = options.out or (None if options.quick else OUT)
    if options.markdown:
        show(out, options.markdown)
        return
    if options.single_thread:
        single_thread()
    names = ("device", "tolerance", "input_scale", "seed", "newton", "quick", "single_thread")
    settings = {name: getattr(options, name) for name in names} | fingerprint()
    results = Results(out, settings, fresh=options.fresh)
    kinds = list(OURS) if options.newton else list(THEIRS)
    warnings.simplefilter("ignore", inn.ConvergenceWarning)  # what fails is reported below
    cases = [case for case in all_cases(quick=options.quick) if options.only in case.name]
    for _ in range(ROUNDS):
        for case in cases:
            old = results.get(case.name)
            if old is None or disturbed(old):
                record = measure(case, kinds, settings, quick=options.quick)
                if old is None or disturbance(record) < disturbance(old):
                    results.add(record, torch.device(options.device))
                print(describe(record), flush=True)
    if results.cases:
        report(results.cases)


def report(records):
    """Print the summary."""
    shaken = sum(map(disturbed, records))
    rivals = ", ".join(f"{kind}: {name}" for kind, name in THEIRS.items())
    print(
        f"Ratio: time of the fastest of TorchDEQ's solvers to that of {DEFAULT}(). Last columns: each of our solvers "
        f"against its like there ({rivals}). Rate: factor by which a plain iteration reduces the residual in the end. "
        "All are medians over the cases, except the least ratio.\n"
    )
    print(summary(records, RIVALS), *costs(records), sep="\n\n")
    print(f"\nDisturbed: {shaken} of {len(records)} cases (median beyond 1.5 times the fastest run).")


def show(path, what):
    """Print the tables of a file."""
    found = load(path)
    machine = found["environment"]
    if what == "cases":
        print(each(found["cases"]))
        return
    threads = f"{machine['clock']} with {machine['threads']} of {machine['cores']} threads of {machine['cpu']}"
    versions = f"torch {machine['torch']}, torchdeq {machine['torchdeq']}, {machine['date'][:10]}"
    tolerance = found["settings"]["tolerance"]
    print(f"Relative residual {tolerance:g}, float32, {machine['device']}, {threads}, {versions}.\n")
    report(found["cases"])


if __name__ == "__main__":
    main()
