"""All training methods on the same model and images: loss by epoch and by second, and the held-out accuracy.

    python examples/training/compare.py [--model implicit] [--data mnist] [--out runs/compare] [--quick]

The models are a network 784-500-10 of ReLUs, and the implicit model x = relu(Ax + Bu + b), y = Cx + Du + c of 100
states with ‖A‖∞ ≤ 0.95. Each method takes the step size of the same grid with which its loss on images held back from
the training part is least (seed 0), without a schedule; then the seeds follow. A run that is worse than a constant
after its first epoch is given up. Runs that were done are not done again: their results are in ``results.json``, and so
are the seconds of an epoch, measured at the end, the methods in turn; ``--clock`` measures these again.
"""

import argparse
import math
import statistics
import time
import warnings
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
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
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0, 100.0)
FULL = {"samples": 4_000, "held": 1_000, "epochs": 5, "batch": 100, "seeds": 3}
QUICK = {"samples": 200, "held": 100, "epochs": 1, "batch": 50, "seeds": 1}


def build(kind, features, seed):
    torch.manual_seed(seed)
    if kind == "implicit":
        return ImplicitModel(features, 100, 10)
    return nn.Sequential(nn.Linear(features, 500), nn.ReLU(), nn.Linear(500, 10))


@torch.no_grad()
def judge(model, part):
    outputs = model(part.inputs)
    return cross_entropy(outputs, part.labels).item(), (outputs.argmax(1) == part.labels).double().mean().item()


def prepare(dataset, kind, method, rate, seed, *, samples, batch, **_):
    """The model, and a function that trains it for an epoch and tells whether its losses were finite."""
    model = build(kind, dataset.features, seed)
    trainer = training.parse(METHODS[method]).trainer(model, cross_entropy, lr=rate)
    part, shuffle = cut(dataset.train, 0, samples), torch.Generator().manual_seed(seed)

    def epoch():
        batches = part.batches(batch, generator=shuffle)
        return all(trainer.step(inputs, labels)[0].isfinite() for inputs, labels in batches)

    return model, epoch


def cut(split, begin, count):
    chosen = slice(begin, begin + count)
    return data.Split(inputs=split.inputs[chosen], labels=split.labels[chosen])


def train(dataset, kind, method, rate, seed, options):
    """By epoch: training loss, loss of what is held back, held-out accuracy. None where it is of no use."""
    model, epoch = prepare(dataset, kind, method, rate, seed, **options)
    part, back = cut(dataset.train, 0, options["samples"]), cut(dataset.train, options["samples"], options["held"])
    rows = []
    for _ in range(options["epochs"]):
        if not epoch():
            return None
        rows.append((judge(model, part)[0], judge(model, back)[0], judge(model, dataset.test)[1]))
        if not rows[0][1] < math.log(dataset.classes):
            return None
    return rows if all(map(math.isfinite, sum(rows, ()))) else None


def clock(dataset, kind, best, options):
    """Seconds of an epoch by method: medians of three rounds, in each of which every method has its turn."""
    epochs = {method: prepare(dataset, kind, method, rate, 0, **options)[1] for method, (rate, _) in best.items()}
    seconds = {method: [] for method in epochs}
    for _ in range(3):
        for method, epoch in epochs.items():
            begin = time.perf_counter()
            epoch()
            seconds[method].append(time.perf_counter() - begin)
    return {method: statistics.median(taken) for method, taken in seconds.items()}


def measure(kind, dataset, options, out, again):
    """By method: the best rate with its runs, and the seconds; what is in the file is not repeated."""
    path = out / "results.json"
    record = storage.read_json(path) if path.exists() else {"options": options, "runs": {}, "seconds": {}}
    if record["options"] != options:
        raise SystemExit(f"{path} is of other options: {record['options']}. Say --out for another folder")

    def run(method, rate, seed):
        key = f"{kind} {dataset.name} {method} {rate:g} {seed}"
        if key not in record["runs"]:
            record["runs"][key] = train(dataset, kind, method, rate, seed, options)
            storage.write_json(path, record)
        return record["runs"][key]

    best = {}
    for method in METHODS:
        tried = {rate: rows[-1][1] for rate in RATES if (rows := run(method, rate, 0)) is not None}
        if tried:
            rate = min(tried, key=tried.get)
            best[method] = rate, [rows for seed in range(options["seeds"]) if (rows := run(method, rate, seed))]
    name = f"{kind} {dataset.name}"
    if again or name not in record["seconds"]:
        record["seconds"][name] = clock(dataset, kind, best, options)
        storage.write_json(path, record)
    return best, record["seconds"][name]


def show(best, seconds):
    print("| method | step size | training loss | accuracy (%) | time of an epoch, AdamW = 1 |\n|---|--:|--:|--:|--:|")
    for method, (rate, runs) in best.items():
        losses, _, accuracies = zip(*(rows[-1] for rows in runs), strict=True)
        spread = f"{100 * min(accuracies):.1f}–{100 * max(accuracies):.1f}"
        middle = f"{100 * statistics.mean(accuracies):.1f} ({spread})"
        ratio = seconds[method] / seconds["AdamW"]
        print(f"| {method} | {rate:g} | {statistics.mean(losses):.3f} | {middle} | {ratio:.1f} |")


def draw(best, seconds, title):
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, x in zip(figure.subplots(1, 2, sharey=True), ("epochs", "seconds"), strict=True):
        for method, (_, runs) in best.items():
            losses = torch.tensor([[row[0] for row in rows] for rows in runs]).mean(0)
            times = torch.arange(1, len(losses) + 1) * (1 if x == "epochs" else seconds[method])
            axes.semilogy(times, losses, "o-", ms=3, label=method)
        axes.set(xlabel=x, title=title if x == "epochs" else "")
        axes.grid(color="#d9dee3", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("training loss")
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.axes[1].set_xscale("log")
    figure.axes[1].xaxis.set_minor_formatter(NullFormatter())
    figure.axes[1].legend(frameon=False, fontsize=8)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("network", "implicit"), default="implicit")
    parser.add_argument("--data", choices=tuple(data.DATASETS), default="mnist")
    parser.add_argument("--quick", action="store_true", help="one epoch on a few digits")
    parser.add_argument("--clock", action="store_true", help="measure the seconds of an epoch again")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="where results and figures go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    dataset = data.load("digits" if arguments.quick else arguments.data)
    options = QUICK if arguments.quick else FULL
    warnings.simplefilter("ignore", ConvergenceWarning)  # a step size that is too large is told by its loss
    best, seconds = measure(arguments.model, dataset, options, arguments.out, arguments.clock)
    show(best, seconds)
    title = f"{arguments.model}, {dataset.name}"
    save(draw(best, seconds, title), arguments.out / f"{arguments.model}-{dataset.name}.png")


if __name__ == "__main__":
    main()
