"""Lifted training of an implicit model, step size by step size, beside the implicit gradient and AdamW.

    python examples/training/lifted.py [--data mnist] [--quick] [--out runs/lifted]

x = relu(Ax + Bu + b), y = Cx + Du + c with ‖A‖∞ ≤ 0.95 learns the embedded digits, or 10,000 images of MNIST, in a few
epochs of batches of 100, with the step sizes of a grid. What counts is the training loss afterwards, the held-out
accuracy, and the seconds of an epoch. Runs that were done are not done again.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy

from implicitnets import data, storage, training
from implicitnets.models import ImplicitModel
from implicitnets.plots import BLUE, GRAY, GREEN, ORANGE, save

METHODS = {
    "lifted": "Lifted()",
    "lifted, λ = 1": "Lifted(growth=0.0)",
    "lifted, λ = 100": "Lifted(growth=0.0, penalty=100.0)",
    "AdamW": "Backprop()",
}
COLORS = dict(zip(METHODS, (BLUE, GREEN, GRAY, ORANGE), strict=True))
RATES = [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0]
FULL = {
    "digits": {"data": "digits", "samples": 2000, "states": 40, "rates": RATES, "epochs": 5, "seeds": 3},
    "mnist": {"data": "mnist", "samples": 10_000, "states": 100, "rates": RATES[:-1], "epochs": 3, "seeds": 1},
}
QUICK = {"data": "digits", "samples": 300, "states": 20, "rates": [1e-2, 1.0], "epochs": 1, "seeds": 1}


def train(method, rate, seed, dataset, options):
    """The training loss, the held-out accuracy and the seconds of an epoch, or None where the loss is not finite."""
    torch.manual_seed(seed)
    inputs, labels = (t[: options["samples"]] for t in (dataset.train.inputs, dataset.train.labels))
    part, model = data.Split(inputs=inputs, labels=labels), ImplicitModel(dataset.features, options["states"], 10)
    trainer = training.parse(METHODS[method]).trainer(model, cross_entropy, lr=rate)
    shuffle, begin = torch.Generator().manual_seed(seed), time.perf_counter()
    for _ in range(options["epochs"]):
        for batch in part.batches(100, generator=shuffle):
            loss, _ = trainer.step(*batch)
            if not loss.isfinite():
                return None
    seconds = (time.perf_counter() - begin) / options["epochs"]
    with torch.no_grad():
        loss = cross_entropy(model(part.inputs), part.labels).item()
        right = (model(dataset.test.inputs).argmax(1) == dataset.test.labels).double().mean().item()
    return loss, right, seconds


def measure(options, out):
    path = out / "results.json"
    record = storage.read_json(path) if path.exists() else {"options": options, "runs": {}}
    if record["options"] != options:
        raise SystemExit(f"{path} is of other options: {record['options']}. Say --out for another folder")
    dataset = data.load(options["data"])
    for seed in range(options["seeds"]):
        for rate in options["rates"]:
            for method in METHODS:
                key = f"{method}, {rate:g}, {seed}"
                if key not in record["runs"]:
                    record["runs"][key] = train(method, rate, seed, dataset, options)
                    storage.write_json(path, record)
    return {
        (method, rate): [record["runs"][f"{method}, {rate:g}, {seed}"] for seed in range(options["seeds"])]
        for method in METHODS
        for rate in options["rates"]
    }


def show(runs, rates):
    print("| training loss (accuracy, %) | " + " | ".join(f"{rate:g}" for rate in rates) + " | seconds |")
    print("|---|" + "--:|" * (len(rates) + 1))
    for method in METHODS:
        cells, seconds = [], []
        for rate in rates:
            done = runs[method, rate]
            loss, right, _ = (statistics.mean(v) for v in zip(*done, strict=True)) if all(done) else (0, 0, 0)
            seconds += [run[2] for run in done if run]
            cells.append(f"{loss:.3f} ({100 * right:.1f})" if all(done) else "—")
        print(f"| {method} | " + " | ".join(cells) + f" | {statistics.median(seconds):.2f} |")


def draw(runs, rates):
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method, color in COLORS.items():
        done = {rate: runs[method, rate] for rate in rates if all(runs[method, rate])}
        losses = [statistics.mean(loss for loss, _, _ in results) for results in done.values()]
        axes.loglog(list(done), losses, "o-", color=color, label=method)
    axes.set(xlabel="step size", ylabel="training loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=tuple(FULL), default="digits")
    parser.add_argument("--quick", action="store_true", help="one epoch of a few digits, two step sizes")
    parser.add_argument("--out", type=Path, default=Path("runs/lifted"), help="where results and figure go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    options = QUICK if arguments.quick else FULL[arguments.data]
    runs = measure(options, arguments.out)
    show(runs, options["rates"])
    save(draw(runs, options["rates"]), arguments.out / "lifted.png")


if __name__ == "__main__":
    main()
