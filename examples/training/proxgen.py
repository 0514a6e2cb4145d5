"""Accuracy against sparsity for ℓ0, ℓ½, ℓ⅔ and ℓ1, on the same implicit model.

    python examples/training/proxgen.py [--quick] [--out runs/proxgen]

``ProxAdam`` (ProxGen; Yun, Lozano and Yang 2021) trains x = relu(Ax + Bu + b), y = Cx + Du + c on MNIST. The projection
on ‖A‖∞ ≤ 0.95 keeps it well-posed; B, C and D have one of the penalties, at four weights. Runs that were done are not
done again: their results are in ``results.json``.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy

from implicitnets import data, models, prox, storage
from implicitnets.plots import BLUE, GRAY, GREEN, ORANGE, save
from implicitnets.solvers import Anderson
from implicitnets.training import ProxAdam, penalize

PENALTIES = {"ℓ0": prox.L0, "ℓ½": prox.L12, "ℓ⅔": prox.L23, "ℓ1": prox.L1}
WEIGHTS = {
    "ℓ0": [1e-5, 1e-4, 3e-4, 1e-3],
    "ℓ½": [3e-5, 1e-4, 3e-4, 1e-3],
    "ℓ⅔": [3e-5, 1e-4, 3e-4, 1e-3],
    "ℓ1": [3e-4, 1e-3, 3e-3, 1e-2],
}
CASES = [("none", 0.0), *((name, weight) for name, weights in WEIGHTS.items() for weight in weights)]
COLORS = dict(zip(PENALTIES, (ORANGE, GREEN, GRAY, BLUE), strict=True))
FULL = {"data": "mnist", "samples": 20_000, "states": 100, "epochs": 3, "batch": 200, "rate": 6e-3, "seeds": 3}
QUICK = {"data": "digits", "samples": 600, "states": 20, "epochs": 1, "batch": 50, "rate": 1e-2, "seeds": 1}


def train(dataset, penalty, seed, *, samples, states, epochs, batch, rate, **_):
    """One model: its held-out accuracy, and how many entries of the penalized weights are zero."""
    torch.manual_seed(seed)
    shuffle = torch.Generator().manual_seed(seed)
    solver = Anderson(max_steps=500)  # ‖A‖∞ ≤ 0.95 may take more than usual
    model = models.ImplicitModel(dataset.features, states, dataset.classes, constraint=None, solver=solver)
    penalties = {"A": prox.InfNormBall(0.95)} | ({} if penalty is None else {"[BCD]": penalty})
    optimizer = ProxAdam(penalize(model, penalties), lr=rate)
    part = data.Split(inputs=dataset.train.inputs[:samples], labels=dataset.train.labels[:samples])
    steps = epochs * -(-len(part) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    begin = time.perf_counter()
    for _ in range(epochs):
        for inputs, labels in part.batches(batch, generator=shuffle):
            loss = cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        hits = (model(dataset.test.inputs).argmax(1) == dataset.test.labels).double().mean().item()
    weights = torch.cat([w.detach().flatten() for w in (model.B, model.C, model.D)])
    return {
        "accuracy": hits,
        "sparsity": (weights == 0).double().mean().item(),
        "inputs": int((torch.cat([model.B, model.D]) != 0).any(0).sum()),
        "norm": model.A.abs().sum(1).max().item(),
        "seconds": time.perf_counter() - begin,
    }


def measure(options, out):
    """All runs, of which those that are in the file are not repeated."""
    path = out / "results.json"
    record = storage.read_json(path) if path.exists() else {"options": options, "runs": {}}
    if record["options"] != options:
        raise SystemExit(f"{path} is of other options: {record['options']}. Say --out for another folder")
    dataset = data.load(options["data"])
    for seed in range(options["seeds"]):
        for name, weight in CASES:
            key = f"{name} {weight:g} {seed}"
            if key not in record["runs"]:
                penalty = PENALTIES[name](weight) if name in PENALTIES else None
                record["runs"][key] = train(dataset, penalty, seed, **options)
                storage.write_json(path, record)
    return record["runs"]


def summarize(runs):
    """For each penalty and weight: mean sparsity, mean accuracy, its standard deviation, mean number of inputs used."""
    table = {}
    for name, weight in CASES:
        rows = [run for key, run in runs.items() if key.startswith(f"{name} {weight:g} ")]
        accuracies = [row["accuracy"] for row in rows]
        table[name, weight] = (
            statistics.mean(row["sparsity"] for row in rows),
            statistics.mean(accuracies),
            statistics.stdev(accuracies) if len(rows) > 1 else 0.0,
            statistics.mean(row["inputs"] for row in rows),
        )
    return table


def draw(table):
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(100 * table["none", 0.0][1], color=GRAY, ls=":", label="no penalty")
    for name, color in COLORS.items():
        rows = [table[name, w] for w in WEIGHTS[name]]
        left = [100 * (1 - sparsity) for sparsity, *_ in rows]
        accuracy, spread = ([100 * row[i] for row in rows] for i in (1, 2))
        axes.errorbar(left, accuracy, spread, color=color, marker="o", ms=4, capsize=2, label=name)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_title("Accuracy against sparsity", loc="left", fontweight="bold")
    axes.set(xlabel="entries of B, C, D that are not zero (%)", ylabel="held-out images classified rightly (%)")
    axes.grid(color="#d9dee3", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small models on the digits")
    parser.add_argument("--out", type=Path, default=Path("runs/proxgen"), help="where results and figure go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = summarize(measure(QUICK if arguments.quick else FULL, arguments.out))
    print("| penalty | weight | zeros | accuracy | inputs used |\n|---|--:|--:|--:|--:|")
    for (name, weight), (sparsity, accuracy, spread, inputs) in table.items():
        print(f"| {name} | {weight:g} | {sparsity:.1%} | {accuracy:.2%} ± {spread:.2%} | {inputs:.0f} |")
    save(draw(table), arguments.out / "proxgen.png")


if __name__ == "__main__":
    main()
