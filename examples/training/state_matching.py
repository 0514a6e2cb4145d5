"""State matching: a trained network becomes a well-posed implicit model, sparse or not, by convex problems alone.

    python examples/training/state_matching.py [--quick] [--out runs/state_matching]

A network 64-32-16-10 of ReLUs learns the embedded digits. Its states on the training part are matched by models with
‖A‖∞ ≤ 0.95, as they are and in the units of ``models.rescale``, in which the network itself satisfies that bound. What
counts is the share of weights that are not zero, the held-out accuracy, and how far the equations are from holding.
Runs that were done are not done again.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import cross_entropy

from implicitnets import data, prox, storage, training
from implicitnets.models import from_sequential, rescale
from implicitnets.plots import BLUE, ORANGE, save

KAPPA = 0.95
UNITS = {"as they are": BLUE, "rescaled": ORANGE}
FULL = {"epochs": 20, "penalties": [f"{p}({w:g})" for p in ("L2", "LInf", "L1") for w in (1e-4, 1e-3, 1e-2)]}
QUICK = {"epochs": 2, "penalties": ["L2(0.001)", "L1(0.001)"]}


def teacher(epochs):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))
    trainer = training.Backprop().trainer(network, cross_entropy, lr=1e-2)
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in data.digits().train.batches(100, generator=shuffle):
            trainer.step(*batch)
    return from_sequential(network, 64)


@torch.no_grad()
def judge(model):
    """The share of weights that are not zero, and the held-out accuracy."""
    weights = torch.cat([w.to_dense().flatten() for w in (model.A, model.B, model.C, model.D)])
    test = data.digits().test
    right = model(test.inputs).argmax(1) == test.labels
    return [(weights != 0).double().mean().item(), right.double().mean().item()]


def match(network, penalty):
    kind, _, weight = penalty.strip(")").partition("(")
    value = prox.by_name(kind, weight=float(weight))
    model, record = training.match_states(
        network, data.digits().train.inputs, kappa=KAPPA, penalty=value, max_steps=20_000
    )
    return [*judge(model), record.hidden.misfit.square().mean().sqrt().item(), int((~record.hidden.converged).sum())]


def measure(options, out):
    path = out / "results.json"
    record = storage.read_json(path) if path.exists() else {"options": options, "runs": {}}
    if record["options"] != options:
        raise SystemExit(f"{path} is of other options: {record['options']}. Say --out for another folder")
    network = teacher(options["epochs"])
    record["teacher"] = [*judge(network), network.A.to_dense().abs().sum(1).max().item()]
    for units, given in zip(UNITS, (network, rescale(network, 0.9)), strict=True):
        for penalty in options["penalties"]:
            if f"{units}, {penalty}" not in record["runs"]:
                record["runs"][f"{units}, {penalty}"] = match(given, penalty)
                storage.write_json(path, record)
    return record


def show(record):
    print("| states | R | nonzero (%) | accuracy (%) | misfit | rows not converged |\n|---|---|--:|--:|--:|--:|")
    nonzero, right, norm = record["teacher"]
    print(f"| the network, ‖A‖∞ = {norm:.1f} | | {100 * nonzero:.1f} | {100 * right:.1f} | | |")
    for key, (nonzero, right, misfit, failed) in record["runs"].items():
        units, penalty = key.split(", ")
        print(f"| {units} | `{penalty}` | {100 * nonzero:.1f} | {100 * right:.1f} | {misfit:.3f} | {failed} |")


def draw(record):
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for units, color in UNITS.items():
        points = [run[:2] for key, run in record["runs"].items() if key.startswith(units) and "L1(" in key]
        axes.plot(*(100 * torch.tensor(points).T), "o-", color=color, label=f"L1, states {units}")
    axes.axhline(100 * record["teacher"][1], color="black", linewidth=0.8, label="the network")
    axes.set(xlabel="weights that are not zero (%)", ylabel="held-out accuracy (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few epochs and penalties")
    parser.add_argument("--out", type=Path, default=Path("runs/state_matching"), help="where results and figure go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = measure(QUICK if arguments.quick else FULL, arguments.out)
    show(record)
    save(draw(record), arguments.out / "state_matching.png")


if __name__ == "__main__":
    main()
