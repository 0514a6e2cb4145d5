"""All training methods on the same model and images: loss by epoch and by second, and the held-out accuracy.

    python examples/training/compare.py [--model implicit] [--data mnist] [--out runs/compare] [--quick]

The models are a network 784-500-10 of ReLUs, and the implicit model x = relu(Ax + Bu + b), y = Cx + Du + c of 100
states with ‖A‖∞ ≤ 0.95. Each method takes the step size of the same grid with which its loss on images held back from
the training part is least (seed 0), without a schedule; then the seeds follow. Runs that were done are not done again:
their results are in ``results.json``.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import cross_entropy

from implicitnets import ConvergenceWarning, data, storage, training
from implicitnets.models import ImplicitModel
from implicitnets.plots import save

METHODS = {
    "SGD": "Backprop(optimizer='sgd')",
    "AdamW": "Backprop()",
    "ProxProp": "ProxProp()",
    "semi-implicit": "SemiImplicit()",
    "F-adjoint": "FAdjoint()",
    "lifted": "Lifted()",
    "implicit SGD": "ImplicitSGD()",
    "Sobolev": "Sobolev()",
}
RATES = (1e-3, 1e-2, 1e-1, 1.0)
FULL = {"samples": 4_000, "held": 1_000, "epochs": 5, "batch": 100, "seeds": 3}
QUICK = {"samples": 400, "held": 100, "epochs": 1, "batch": 50, "seeds": 1}


def build(kind, features, seed):
    torch.manual_seed(seed)
    if kind == "implicit":
        return ImplicitModel(features, 100, 10)
    return nn.Sequential(nn.Linear(features, 500), nn.ReLU(), nn.Linear(500, 10))


@torch.no_grad()
def judge(model, part):
    outputs = model(part.inputs)
    return cross_entropy(outputs, part.labels).item(), (outputs.argmax(1) == part.labels).double().mean().item()


def train(dataset, kind, method, rate, seed, *, samples, held, epochs, batch, **_):
    """By epoch: seconds of training so far, training loss, loss of what is held back, held-out accuracy."""
    model = build(kind, dataset.features, seed)
    trainer = training.parse(method).trainer(model, cross_entropy, lr=rate)
    shuffle, seconds, rows = torch.Generator().manual_seed(seed), 0.0, []
    warnings.simplefilter("ignore", ConvergenceWarning)  # a step size that is too large is told by its loss
    part, back = (
        data.Split(inputs=dataset.train.inputs[chosen], labels=dataset.train.labels[chosen])
        for chosen in (slice(samples), slice(samples, samples + held))
    )
    for _ in range(epochs):
        begin = time.perf_counter()
        for inputs, labels in part.batches(batch, generator=shuffle):
            loss, _ = trainer.step(inputs, labels)
            if not loss.isfinite():
                return None
        seconds += time.perf_counter() - begin
        rows.append((seconds, judge(model, part)[0], judge(model, back)[0], judge(model, dataset.test)[1]))
    return rows if all(map(torch.isfinite, torch.tensor(rows).flatten())) else None


def measure(kind, dataset, options, out):
    """By method: the best rate and its runs, of which those that are in the file are not repeated."""
    path = out / "results.json"
    record = storage.read_json(path) if path.exists() else {"options": options, "runs": {}}
    if record["options"] != options:
        raise SystemExit(f"{path} is of other options: {record['options']}. Say --out for another folder")

    def run(method, rate, seed):
        key = f"{kind} {dataset.name} {method} {rate:g} {seed}"
        if key not in record["runs"]:
            record["runs"][key] = train(dataset, kind, METHODS[method], rate, seed, **options)
            storage.write_json(path, record)
        return record["runs"][key]

    best = {}
    for method in METHODS:
        tried = {rate: rows[-1][2] for rate in RATES if (rows := run(method, rate, 0)) is not None}
        if tried:
            rate = min(tried, key=tried.get)
            best[method] = rate, [rows for seed in range(options["seeds"]) if (rows := run(method, rate, seed))]
    return best


def show(best):
    print("| method | step size | training loss | accuracy (%) | seconds |\n|---|--:|--:|--:|--:|")
    for method, (rate, runs) in best.items():
        seconds, losses, _, accuracies = zip(*(rows[-1] for rows in runs), strict=True)
        spread = f"{100 * min(accuracies):.1f}–{100 * max(accuracies):.1f}"
        middle = f"{100 * statistics.mean(accuracies):.1f} ({spread})"
        print(f"| {method} | {rate:g} | {statistics.mean(losses):.3f} | {middle} | {statistics.median(seconds):.1f} |")


def draw(best, title):
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, x in zip(figure.subplots(1, 2, sharey=True), ("epochs", "seconds"), strict=True):
        for method, (_, runs) in best.items():
            losses = torch.tensor([[row[1] for row in rows] for rows in runs]).mean(0)
            seconds = torch.tensor([[row[0] for row in rows] for rows in runs]).median(0).values
            axes.semilogy(range(1, len(losses) + 1) if x == "epochs" else seconds, losses, "o-", ms=3, label=method)
        axes.set(xlabel=x, title=title if x == "epochs" else "")
        axes.grid(color="#d9dee3", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("training loss")
    figure.axes[1].set_xscale("log")
    figure.axes[1].legend(frameon=False, fontsize=8)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("network", "implicit"), default="implicit")
    parser.add_argument("--data", choices=tuple(data.DATASETS), default="mnist")
    parser.add_argument("--quick", action="store_true", help="one epoch on a few digits")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="where results and figures go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    dataset = data.load("digits" if arguments.quick else arguments.data)
    best = measure(arguments.model, dataset, QUICK if arguments.quick else FULL, arguments.out)
    show(best)
    save(draw(best, f"{arguments.model}, {dataset.name}"), arguments.out / f"{arguments.model}-{dataset.name}.png")


if __name__ == "__main__":
    main()
