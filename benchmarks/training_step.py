"""One training step of a deep equilibrium model, forward and backward, against TorchDEQ's.

    python benchmarks/training_step.py [--quick] [--markdown]

The cell is z ↦ tanh(zW + x) with a trained W of ‖W‖₂ = 0.9: Gaussian, which makes it easy, or symmetric with uniform
eigenvalues, which makes it less so. The loss is the squared distance of the equilibrium to a random target, as a mean
or as a sum over all entries: the mean is usual, and makes the gradient small.

Everybody is asked for the same relative residual of the equilibrium, which is checked by an evaluation of its own,
and for the same relative residual of the adjoint equation, as far as they can be told: TorchDEQ's two tolerances have
``stop_mode="rel"``, 50 steps, or 300 where 50 are too few. Who misses either residual is marked as failed, and is
left out of the comparison. "DEQ" is the default where it does not choose ``Dense()``, and with "Picard" or "Broyden"
it solves both equations by that method, as TorchDEQ's namesakes do. These are measured in both of TorchDEQ's designs:
as they are, the adjoint equation is solved in an ``autograd.Function`` behind f; with "hook" (``hook_ift=True``), f is
attached at the solution, and the adjoint equation is solved in a hook of f's value. "re-attached" is the second design
with our solvers, and nothing around them; in both, the gradient reaches the solution too, which takes a product more.

The error is that of the gradient of W and x together, relative to its norm, against
float64 with both equations solved to 1e-12: the adjoint by Dense() up to n = 512, beyond that by GMRES().
"""

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from cells import unit_matrix
from measure import (
    Results,
    command_line,
    fingerprint,
    interleaved,
    load,
    median,
    peak_memory,
    seconds,
    single_thread,
    table,
)
from torch import nn
from torch.nn import functional
from torchdeq import get_deq

import implicitnets as inn
from implicitnets.backward.base import Restricted
from implicitnets.solvers import GMRES, Anderson, Broyden, Dense, Fallback, Picard
from implicitnets.solvers.newton import solve_scaled

OUT = Path(__file__).parent / "results" / "training_step.json"
SLACK = 1.01
BUDGETS = (50, 300)
FORWARD = 1e-4
CONTRACTION = 0.9
REATTACHED = "re-attached"
RIVALS = {
    f"torchdeq {solver}{suffix}": (mine, solver, hook)
    for hook, suffix in ((False, ""), (True, ", hook"))
    for mine, solver in (("DEQ", "anderson"), ("DEQ, Picard", "fixed_point_iter"), ("DEQ, Broyden", "broyden"))
}
"""Who of ours uses the same method; the solver and the design in TorchDEQ."""
PAIRS = {rival: mine for rival, (mine, _, _) in RIVALS.items()} | {REATTACHED: "DEQ"}


class Cell(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, z, x):
        return torch.tanh(torch.addmm(x, z, self.weight))


@dataclass(frozen=True)
class Case:
    family: str
    n: int
    batch: int
    reduction: str
    adjoint: float
    """Tolerance of the adjoint equation."""

    @property
    def name(self):
        return f"{self.family}/n={self.n}/batch={self.batch}/{self.reduction}/adjoint={self.adjoint:g}"

    def build(self, device, seed):
        """A cell, its input, and a target for its equilibrium."""
        generator = torch.Generator().manual_seed(seed)
        x, target = torch.randn(2, self.batch, self.n, generator=generator).to(device)
        cell = Cell(CONTRACTION * unit_matrix(self.family, self.n, seed)).to(device)
        return cell, x.requires_grad_(), target


def all_cases(*, quick):
    sizes = ((64, 64),) if quick else ((64, 64), (512, 64), (2048, 64))
    return [
        Case(family, n, batch, reduction, adjoint)
        for n, batch in sizes
        for family in ("gaussian", "symmetric")
        for reduction in ("mean", "sum")
        for adjoint in (1e-3, 1e-4)
    ]


# Each of these makes the function x -> equilibrium, and a function that tells whether the last adjoint was solved.


def ours(forward, adjoint, cell, _steps):
    model = inn.DEQ(cell, solver=forward, backward=inn.Implicit(solver=adjoint))
    return model, lambda: bool(model.backward_solution.converged.all())


def theirs(solver, hook, tolerance, cell, steps):
    forward = {"f_solver": solver, "f_tol": FORWARD, "f_stop_mode": "rel", "f_max_iter": steps}
    backward = {"b_solver": solver, "b_tol": tolerance, "b_stop_mode": "rel", "b_max_iter": steps}
    deq = get_deq(ift=True, hook_ift=hook, **forward, **backward)
    told = {}

    def model(x):
        outputs, _ = deq(lambda z: cell(z, x), torch.zeros_like(x), backward_writer=told.update)
        return outputs[-1]

    return model, lambda: bool((told["rel_lowest"] <= SLACK * tolerance).all())


def default(tolerance):
    return Fallback(Anderson(rtol=tolerance), GMRES(rtol=tolerance))


def reattached(tolerance, cell, _steps):
    """Our solvers in TorchDEQ's second design: attach f at the solution, and solve the adjoint equation in a hook."""
    told = {}

    def model(x):
        with torch.no_grad():
            found = Anderson(rtol=FORWARD).run(Restricted(cell, (x,), len(x), cell), torch.zeros_like(x))
        z = found.value.requires_grad_()
        out = cell(z, x)

        def hook(g):
            handle.remove()
            told["adjoint"] = solve_scaled(
                default(tolerance), lambda w: torch.autograd.grad(out, z, w, retain_graph=True)[0], g
            )
            return told["adjoint"].value

        handle = out.register_hook(hook)
        return out

    return model, lambda: bool(told["adjoint"].converged.all())


def contenders(tolerance):
    models = {
        "DEQ": partial(ours, Anderson(rtol=FORWARD), default(tolerance)),
        "DEQ, GMRES": partial(ours, Anderson(rtol=FORWARD), GMRES(rtol=tolerance)),
        "DEQ, Picard": partial(ours, Picard(rtol=FORWARD), Picard(rtol=tolerance)),
        "DEQ, Broyden": partial(ours, Broyden(rtol=FORWARD), Broyden(rtol=tolerance)),
        REATTACHED: partial(reattached, tolerance),
    }
    return models | {name: partial(theirs, solver, hook, tolerance) for name, (_, solver, hook) in RIVALS.items()}


def step(model, case, cell, x, target):
    """Forward and backward; the equilibrium."""
    cell.weight.grad = x.grad = None
    z = model(x)
    functional.mse_loss(z, target, reduction=case.reduction).backward()
    return z.detach()


def gradient(cell, x):
    return torch.cat([cell.weight.grad.flatten(), x.grad.flatten()]).double()


def reference(case, cell, x, target):
    """The gradient in float64."""
    cell64, x64 = Cell(cell.weight.detach().double()), x.detach().double().requires_grad_()
    limits = {"rtol": 1e-12, "atol": 1e-12}
    adjoint = Dense(**limits) if case.n <= 512 else GMRES(**limits)
    solver = Anderson(max_steps=500, **limits)
    model = inn.DEQ(cell64, solver=solver, backward=inn.Implicit(solver=adjoint))
    step(model, case, cell64, x64, target.double())
    if not (model.forward_solution.converged.all() and model.backward_solution.converged.all()):
        raise RuntimeError(f"{case.name}: the reference did not converge")
    return gradient(cell64, x64)


@torch.no_grad()
def relative_residual(cell, z, x):
    fz = cell(z, x)
    return float(((fz - z).norm(dim=1) / fz.norm(dim=1)).max())


def admit(make, case, cell, x, target, exact):
    """The record of the first budget that suffices, or of the last; and the step that it took."""
    for steps in BUDGETS:
        model, adjoint_solved = make(cell, steps)
        run = partial(step, model, case, cell, x, target)
        found = []
        spent = seconds(lambda: found.append(run()), x.device)  # noqa: B023
        residual = relative_residual(cell, found[0], x)
        record = {
            "converged": residual <= SLACK * FORWARD and adjoint_solved(),
            "residual": residual,
            "error": float((gradient(cell, x) - exact).norm() / exact.norm()),
            "steps": steps,
            "seconds": spent,
        }
        if record["converged"]:
            break
    return record, run


def measure(case, settings):
    device = torch.device(settings["device"])
    cell, x, target = case.build(device, settings["seed"])
    exact = reference(case, cell, x, target)
    solvers, runs = {}, {}
    for name, make in contenders(case.adjoint).items():
        solvers[name], run = admit(make, case, cell, x, target, exact)
        if solvers[name]["converged"]:
            runs[name] = run
            cell.weight.grad = x.grad = None  # else some would free what others have left
            new = make(cell, solvers[name]["steps"])[0]  # which holds no record of another step yet
            solvers[name]["memory"] = peak_memory(partial(step, new, case, cell, x, target), device)
    estimates = {name: seconds(run, device) for name, run in runs.items()}
    limits = {"budget": 0.1, "least": 3, "most": 20} if settings["quick"] else {"budget": 0.5, "least": 5, "most": 50}
    for name, times in interleaved(runs, estimates, device, **limits).items():
        solvers[name] |= {"seconds": median(times), "fastest": min(times), "repeats": len(times)}
    return {"name": case.name, **vars(case), "solvers": solvers, **compare(solvers)}


def compare(solvers):
    """Time and peak memory of others in units of ours.

    "ratio": the time of TorchDEQ's best to that of each of ours; None where none of theirs or not ours is solved.
    "pairs": each of TorchDEQ's to ours of the same method, and re-attached to DEQ.
    """
    times = {name: record["seconds"] for name, record in solvers.items() if record["converged"]}
    best = min((name for name in times if name.startswith("torchdeq")), key=times.get, default=None)
    names = [name for name in solvers if name.startswith("DEQ")]
    return {
        "best_of_torchdeq": best,
        "ratio": {name: times[best] / times[name] if best and name in times else None for name in names},
        "pairs": {other: _relative(solvers[other], solvers[mine]) for other, mine in PAIRS.items()},
    }


def _relative(other, mine):
    """Time and peak memory in units of mine; None where one of the two is not solved."""
    if not (mine["converged"] and other["converged"]):
        return None
    memory = other["memory"] / mine["memory"] if mine["memory"] and other["memory"] else None
    return {"time": other["seconds"] / mine["seconds"], "memory": memory}


def report(records):
    """Time, error and memory of each contender, and the ratios."""
    names = list(records[0]["solvers"])
    mine = list(records[0]["ratio"])
    rows = []
    for record in records:
        ratios = ["–" if record["ratio"][name] is None else f"{record['ratio'][name]:.2f}" for name in mine]
        rows.append([record["name"], *ratios, *(spent(record["solvers"][name]) for name in names)])
    header = ["case", *(f"ratio, {name}" for name in mine)]
    print(table([*header, *(f"{name}: ms, error, MiB" for name in names)], rows))
    print()
    print(by_size(records))
    for name in mine:
        ratios = [record["ratio"][name] for record in records if record["ratio"][name] is not None]
        if ratios:
            print(f"\nTorchDEQ's best / {name}: median {median(ratios):.2f}, least {min(ratios):.2f}.")


def by_size(records):
    """Time and memory of each pair for each size, and before them the time of TorchDEQ's best."""
    sizes = list(dict.fromkeys(record["n"] for record in records))
    rows = [["TorchDEQ's best / DEQ"], *([f"{other} / {mine}"] for other, mine in PAIRS.items())]
    for n in sizes:
        cases = [record for record in records if record["n"] == n]
        rows[0] += [_middle(record["ratio"]["DEQ"] for record in cases), "–"]
        for row, other in zip(rows[1:], PAIRS, strict=True):
            known = [record["pairs"][other] for record in cases if record["pairs"][other] is not None]
            row += [_middle(ratios[what] for ratios in known) for what in ("time", "memory")]
    header = ["", *(f"n = {n}: {what}" for n in sizes for what in ("time", "memory"))]
    return "Medians (and least):\n\n" + table(header, rows)


def _middle(ratios):
    known = [ratio for ratio in ratios if ratio is not None]
    return f"{median(known):.2f} ({min(known):.2f})" if known else "–"


def spent(record):
    error = f"{record['error']:.0e}"
    if not record["converged"]:
        return f"failed, {error}"
    memory = "–" if record.get("memory") is None else f"{record['memory'] / 2**20:.1f}"
    return f"{1e3 * record['seconds']:.3g}, {error}, {memory}"


def arguments():
    parser = command_line(__doc__, OUT)
    parser.add_argument("--markdown", action="store_true", help="measure nothing; print what is in the file")
    return parser.parse_args()


def main():
    options = arguments()
    out = options.out or (None if options.quick else OUT)
    if options.markdown:
        report(load(out)["cases"])
        return
    if options.single_thread:
        single_thread()
    settings = {name: getattr(options, name) for name in ("device", "seed", "quick", "single_thread")}
    results = Results(out, settings | fingerprint(), fresh=options.fresh)
    warnings.simplefilter("ignore", inn.ConvergenceWarning)  # what fails is reported below
    for case in all_cases(quick=options.quick):
        if options.only in case.name and case.name not in results:
            results.add(measure(case, settings), torch.device(options.device))
            print(case.name, "is measured", flush=True)
    if results.cases:
        report(results.cases)


if __name__ == "__main__":
    main()
