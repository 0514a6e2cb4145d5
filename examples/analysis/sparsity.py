"""How small an implicit model can be made: held-out accuracy against what is kept, for each way to make it smaller.

    python examples/analysis/sparsity.py [--data mnist] [--out runs/sparsity] [--quick]

The model x = relu(Ax + Bu + b), y = Cx + Du + c has 100 states and ‖A‖∞ ≤ 0.95. Each method is applied to the trained
model at once; then some step by step, with further training after each step: entries that are zero stay zero, states
and inputs that are gone stay gone. "proximal" is ``ProxAdam`` with a penalty on all matrices, after which what is zero
stays zero for two epochs of further training. The bound is that of the change of the outputs on boxes of radius 0.01
around 20 held-out images, the median of these. What was done is kept in ``results.json`` and is not done again.
"""

import argparse
import math
import warnings
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy

from implicitnets import ConvergenceWarning, data, prox, storage
from implicitnets.analysis import compress, region
from implicitnets.analysis.structure import (
    Exact,
    Inputs,
    LowRank,
    Magnitude,
    Match,
    Quantize,
    Salience,
    Share,
    Shrink,
    States,
)
from implicitnets.models import ImplicitModel
from implicitnets.plots import save
from implicitnets.run import accuracy
from implicitnets.training import ProxAdam, penalize

SHARES = (0.5, 0.3, 0.2, 0.1, 0.05)
ONCE = {
    "magnitude": [(Magnitude(keep=k),) for k in SHARES],
    "salience": [(Salience(keep=k),) for k in SHARES],
    "ℓ1 shrinkage": [(Shrink(penalty=prox.L1(t)),) for t in (0.005, 0.01, 0.02, 0.03)],
    "reverse Huber": [(Shrink(penalty=prox.ReverseHuber(t * 0.1, 0.1)),) for t in (0.005, 0.01, 0.02, 0.03)],
    "states": [(States(keep=k),) for k in (80, 60, 40, 20)],
    "inputs": [(Inputs(keep=k),) for k in (500, 400, 300, 200, 100)],
    "low rank of A": [(LowRank(rank=k),) for k in (20, 10, 5, 2)],
    "low rank + sparse A": [(LowRank(rank=k, sparse=50 * k),) for k in (10, 5, 2)],
    "matching, ℓ1": [(Match(penalty=prox.L1(w), max_steps=1000),) for w in (3e-4, 1e-3, 3e-3)],
    "matching, reverse Huber": [
        (Match(penalty=prox.ReverseHuber(w, 0.1), max_steps=1000),) for w in (3e-5, 1e-4, 3e-4)
    ],
    "quantization": [(Quantize(bits=k),) for k in (8, 6, 4, 3)],
    "shared values": [(Share(values=k),) for k in (32, 16, 8, 4)],
}
COLORS = {
    "magnitude": "#d55e00",
    "salience": "#0072b2",
    "states": "#009e73",
    "inputs": "#cc79a7",
    "matching, ℓ1": "#e69f00",
    "proximal ℓ1": "#56b4e9",
    "proximal ℓ0": "#5f6b76",
    "quantization": "#8b5a2b",
    "shared values": "#000000",
}
"""What the figure shows, methods that hardly make a difference left out."""
STEPS = {
    "magnitude, trained on": [(Magnitude(keep=k), Exact(linear=False)) for k in (0.2, 0.1, 0.05, 0.03, 0.02, 0.01)],
    "salience, trained on": [(Salience(keep=k), Exact(linear=False)) for k in (0.2, 0.1, 0.05, 0.03, 0.02, 0.01)],
    "states, trained on": [(States(keep=k),) for k in (60, 40, 20, 10)],
    "inputs, trained on": [(Inputs(keep=k),) for k in (390, 200, 100, 50)],
}
PENALTIES = {
    "proximal ℓ1": [prox.L1(w) for w in (1e-4, 3e-4, 1e-3, 2e-3)],
    "proximal ℓ0": [prox.L0(w) for w in (1e-6, 1e-5, 3e-5, 1e-4)],
}
FULL = {"samples": 60_000, "epochs": 10, "more": 2, "prox": 3, "rate": 3e-3, "match": 2_000}
QUICK = {"samples": 300, "epochs": 2, "more": 1, "prox": 1, "rate": 3e-3, "match": 100}


def train(model, part, epochs, rate, optimizer=None):
    """AdamW, or the optimizer, with a warm-up of a tenth and then a cosine to 0."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    shuffle, steps, done = torch.Generator().manual_seed(0), epochs * math.ceil(len(part) / 100), 0
    for _ in range(epochs):
        for inputs, labels in part.batches(100, generator=shuffle):
            share = (done + 0.5) / steps
            for group in optimizer.param_groups:
                group["lr"] = rate * min(10 * share, 0.5 * (1 + math.cos(math.pi * share)))
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels, label_smoothing=0.1).backward()
            optimizer.step()
            done += 1
    return model


class Study:
    """The results so far, and what it takes to get more."""

    def __init__(self, dataset, options, out):
        self.data, self.options, self.out = dataset, options, out
        count = options["samples"]
        self.part = data.Split(inputs=dataset.train.inputs[:count], labels=dataset.train.labels[:count])
        self.region = region(dataset.test.inputs[:20], 0.01, domain=(0, 1))
        path = out / "results.json"
        self.record = storage.read_json(path) if path.exists() else {"options": options, "rows": {}}
        if self.record["options"] != options:
            raise SystemExit(f"{path} is of other options: {self.record['options']}. Say --out for another folder")
        self.model = self.kept("trained", self.trained)

    def trained(self):
        torch.manual_seed(0)
        return train(ImplicitModel(self.data.features, 100, 10), self.part, self.options["epochs"], 1e-2)

    def kept(self, name, make):
        """The model of that name, read or made."""
        path = self.out / name.replace(", ", "-").replace(" ", "-")
        if not path.exists():
            storage.save(make(), path)
        return storage.load(path)

    def add(self, key, result, model, bound):
        """A row: states, weights, bits, accuracy, and the bound."""
        states, weights, bits = result.sizes[1], result.weights[1], result.bits[1]
        self.record["rows"][key] = [states, weights, bits, accuracy(model, self.data.test), bound]
        storage.write_json(self.out / "results.json", self.record)

    def once(self, name, methods):
        key = f"{name} | {' + '.join(map(repr, methods))}"
        if key not in self.record["rows"]:
            x = self.part.inputs[: self.options["match"]]
            result = compress(self.model, *methods, x=x, region=self.region)
            self.add(key, result, result.model, result.bound.median().item())

    def steps(self, name, chain):
        model = self.model
        for methods in chain:
            key = f"{name} | {' + '.join(map(repr, methods))}"
            result = compress(model, *methods, x=self.part.inputs[: self.options["match"]])
            model = self.kept(key.replace(" | ", "-"), lambda r=result: self.tuned(r.model))
            if key not in self.record["rows"]:
                self.add(key, compress(model), model, None)

    def tuned(self, model):
        return train(model, self.part, self.options["more"], self.options["rate"])

    def proximal(self, name, penalty):
        """Train with a penalty on all matrices, then on with the zeros that it made."""
        key = f"{name} | {penalty!r}"

        def made():
            model, options = self.kept("trained", None), self.options
            names = ("parametrizations.A.original", "B", "C", "D")
            optimizer = ProxAdam(penalize(model, dict.fromkeys(names, penalty)))
            train(model, self.part, options["prox"], options["rate"], optimizer)
            return self.tuned(compress(model, Exact(linear=False)).model)

        model = self.kept(key.replace(" | ", "-"), made)
        if key not in self.record["rows"]:
            self.add(key, compress(model), model, None)

    def run(self, quick):
        few = slice(0, 1 if quick else None)
        for name, chain in ONCE.items():
            for methods in chain[few]:
                self.once(name, methods)
        for name, chain in STEPS.items():
            self.steps(name, chain[few])
        for name, penalties in PENALTIES.items():
            for penalty in penalties[few]:
                self.proximal(name, penalty)
        whole = compress(self.model)
        return [whole.sizes[0], whole.weights[0], whole.bits[0], accuracy(self.model, self.data.test), 0.0]


def show(whole, rows):
    print("| way | setting | states | weights kept (%) | bits kept (%) | accuracy (%) | bound of the change |")
    print("|---|---|--:|--:|--:|--:|--:|")
    print(f"| trained | | {whole[0]} | 100.0 | 100.0 | {100 * whole[3]:.2f} | |")
    for key, (states, weights, bits, right, bound) in rows.items():
        name, setting = key.split(" | ")
        setting = setting.split(" + ")[0].replace(", matrices='ABCD'", "").replace(", kappa=0.95, max_steps=1000", "")
        shares = f"{100 * weights / whole[1]:.1f} | {100 * bits / whole[2]:.1f}"
        change = "" if bound is None else f"{bound:.2g}"
        print(f"| {name} | `{setting}` | {states} | {shares} | {100 * right:.2f} | {change} |")


def draw(whole, rows):
    """Dotted where a method is applied at once, solid where training goes on after each step."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    curves = {}
    for key, row in rows.items():
        curves.setdefault(key.split(" | ")[0], []).append(row)
    for axes, index, label in zip(figure.subplots(1, 2, sharey=True), (1, 2), ("weights", "bits"), strict=True):
        for name, points in curves.items():
            color, at_once = COLORS.get(name.removesuffix(", trained on")), name in ONCE
            if color is not None:
                x, y = [100 * row[index] / whole[index] for row in points], [100 * row[3] for row in points]
                axes.plot(x, y, "x:" if at_once else "o-", ms=4, color=color, label=name)
        axes.axhline(100 * whole[3], color="black", linewidth=0.8)
        axes.axhline(100 * whole[3] - 1, color="black", linewidth=0.8, linestyle="--")
        axes.set(xlabel=f"{label} kept (%)", ylim=(100 * whole[3] - 12, 100 * whole[3] + 0.6), xscale="log")
        axes.set_xticks([1, 2, 5, 10, 20, 50, 100], [1, 2, 5, 10, 20, 50, 100])
        axes.grid(color="#d9dee3", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("held-out accuracy (%)")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=tuple(data.DATASETS), default="mnist")
    parser.add_argument("--quick", action="store_true", help="a few steps on the embedded digits")
    parser.add_argument("--out", type=Path, default=Path("runs/sparsity"), help="where models, results and figure go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", ConvergenceWarning)  # rows that are matched nearly are good enough
    dataset = data.load("digits" if arguments.quick else arguments.data)
    study = Study(dataset, QUICK if arguments.quick else FULL, arguments.out)
    whole = study.run(arguments.quick)
    show(whole, study.record["rows"])
    save(draw(whole, study.record["rows"]), arguments.out / "sparsity.png")


if __name__ == "__main__":
    main()
