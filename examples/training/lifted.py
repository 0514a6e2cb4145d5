"""Lifted training of an implicit model, step size by step size, beside the implicit gradient and AdamW.

    python examples/training/lifted.py [--quick] [--out runs/lifted]

x = relu(Ax + Bu + b), y = Cx + Du + c with 40 states and ‖A‖∞ ≤ 0.95 learns the embedded digits for some epochs of
batches of 100, with the step sizes of a grid. What counts is the training loss afterwards and the held-out accuracy;
three seeds. Runs that were done are not done again.
"""

import argparse
import statistics
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
FULL = {"rates": [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0], "epochs": 5, "seeds": 3}
QUICK = {"rates": [1e-2, 1.0], "epochs": 1, "seeds": 1}


def train(method, rate, seed, epochs):
    """The training loss and the held-out accuracy, or None where the loss is not finite."""
    torch.manual_seed(seed)
    digits, model = data.digits(), ImplicitModel(64, 40, 10)
    trainer = training.parse(METHODS[method]).trainer(model, cross_entropy, lr=rate)
    shuffle = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for inputs, labels in digits.train.batches(100, generator=shuffle):
            loss, _ = trainer.step(inputs, labels)
            if not loss.isfinite():
                return None
    with torch.no_grad():
        loss = cross_entropy(model(digits.train.inputs), digits.train.labels).item()
        right = (model(digits.test.inputs).argmax(1) == digits.test.labels).double().mean().item()
    return loss, right


def measure(options, out):
    path = out / "results.json"
    record = storage.read_json(path) if path.exists() else {"options": options, "runs": {}}
    if record["options"] != options:
        raise SystemExit(f"{path} is of other options: {record['options']}. Say --out for another folder")
    for seed in range(options["seeds"]):
        for rate in options["rates"]:
            for method in METHODS:
                key = f"{method}, {rate:g}, {seed}"
                if key not in record["runs"]:
                    record["runs"][key] = train(method, rate, seed, options["epochs"])
                    storage.write_json(path, record)
    return {
        (method, rate): [record["runs"][f"{method}, {rate:g}, {seed}"] for seed in range(options["seeds"])]
        for method in METHODS
        for rate in options["rates"]
    }


def show(runs, rates):
    print("| training loss (accuracy, %) | " + " | ".join(f"{rate:g}" for rate in rates))
    print("|---|" + "--:|" * len(rates))
    for method in METHODS:
        cells = []
        for rate in rates:
            done = runs[method, rate]
            loss, right = (statistics.mean(v) for v in zip(*done, strict=True)) if all(done) else (float("inf"), 0.0)
            cells.append(f"{loss:.3f} ({100 * right:.1f})" if all(done) else "—")
        print(f"| {method} | " + " | ".join(cells) + " |")


def draw(runs, rates):
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method, color in COLORS.items():
        done = {rate: runs[method, rate] for rate in rates if all(runs[method, rate])}
        losses = [statistics.mean(loss for loss, _ in results) for results in done.values()]
        axes.loglog(list(done), losses, "o-", color=color, label=method)
    axes.set(xlabel="step size", ylabel="training loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one epoch, two step sizes")
    parser.add_argument("--out", type=Path, default=Path("runs/lifted"), help="where results and figure go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    options = QUICK if arguments.quick else FULL
    runs = measure(options, arguments.out)
    show(runs, options["rates"])
    save(draw(runs, options["rates"]), arguments.out / "lifted.png")


if __name__ == "__main__":
    main()
