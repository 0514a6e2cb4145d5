"""Accuracy under attack: by method, norm and radius, and by the gradient that leads the attack.

    python examples/analysis/attack.py [--quick] [--data mnist] [--out runs/attack]

An implicit model with ‖A‖∞ ≤ 0.95 and a monotone one are trained in the ordinary way. The first tables have the
accuracy that each attack leaves; the next that which PGD leaves when it is led by other gradients than the exact one;
the last that which is left when a few pixels may take any value. The figure shows accuracy against the radius. Models
and results are kept in the output folder and not computed again.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import cross_entropy

from implicitnets import Unroll, analysis, data, storage
from implicitnets.analysis import FGSM, PGD, SPSA, LinearProgramAttack, Noise, Sparse
from implicitnets.models import ImplicitModel, MonotoneDEQ
from implicitnets.plots import save

FULL = {"states": 87, "epochs": 3, "batch": 128, "images": 100, "curve": 4}
QUICK = {"states": 10, "epochs": 1, "batch": 64, "images": 8, "curve": 1}
MODELS = {
    "‖A‖∞ ≤ 0.95": ImplicitModel,
    "monotone": lambda p, n, q: nn.Sequential(MonotoneDEQ(p, n), nn.Linear(n, q)),
}
BALLS = {"‖·‖∞ ≤ 0.05": ("inf", 0.05), "‖·‖∞ ≤ 0.1": ("inf", 0.1), "‖·‖₂ ≤ 1": (2, 1.0), "‖·‖₁ ≤ 5": (1, 5.0)}
METHODS = {
    "noise": Noise(),
    "SPSA": SPSA(),
    "FGSM": FGSM(),
    "linear programmes": LinearProgramAttack(classes=1),
    "PGD": PGD(),
    "PGD, cross entropy": PGD(loss="ce"),
    "PGD at each class": PGD(targets=9),
}
GRADIENTS = {"exact": "exact", "Neumann, 5 terms": Unroll(steps=5), "Jacobian-free": Unroll()}
SPARSE = {"gradient": Sparse(), "sensitivity": Sparse(ranking="sensitivity"), "PGD": PGD(targets=9)}


def train(make, dataset, options, path):
    torch.manual_seed(0)
    model = make(dataset.features, options["states"], dataset.classes)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    optimizer, shuffle = torch.optim.Adam(model.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
    for _ in range(options["epochs"]):
        for inputs, labels in dataset.train.batches(options["batch"], generator=shuffle):
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    torch.save(model.state_dict(), path)
    return model


class Bench:
    """Attacks on the first test images; results are kept in a file."""

    def __init__(self, models, dataset, options, path):
        self.models, self.path = models, path
        self.inputs, self.labels = (part[: options["images"]] for part in (dataset.test.inputs, dataset.test.labels))
        self.record = storage.read_json(path) if path.exists() else {"options": options, "accuracy": {}}
        if self.record["options"] != options:
            raise SystemExit(f"{path} is of other options: say --out for another folder")

    def accuracy(self, name, method, **how):
        """In percent, or None where the attack is not for the model."""
        key = f"{name} {method!r} {how!r}"
        if key not in self.record["accuracy"]:
            try:
                result = analysis.attack(
                    self.models[name], self.inputs, self.labels, domain=(0, 1), method=method, **how
                )
                self.record["accuracy"][key] = 100 * result.accuracy
            except ValueError:  # a monotone model has no sensitivities
                self.record["accuracy"][key] = None
            storage.write_json(self.path, self.record)
        return self.record["accuracy"][key]


def table(head, rows):
    print(f"| {' | '.join(head)} |\n|---|{'--:|' * (len(head) - 1)}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join('–' if value is None else f'{value:.1f}' for value in values)} |")
    print()


def draw(bench, options):
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    sizes = [0.2 * step / options["curve"] for step in range(options["curve"] + 1)]
    for axes, name in zip(figure.subplots(1, 2, sharey=True), MODELS, strict=True):
        for method in ("noise", "FGSM", "PGD", "PGD at each class"):
            left = [bench.accuracy(name, METHODS[method], radius=size) for size in sizes]
            axes.plot(sizes, left, "o-", ms=3, label=method)
        axes.set(title=name, xlabel="radius in the maximum norm")
        axes.grid(color="#d9dee3", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("accuracy (%)")
    figure.axes[0].legend(frameon=False)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=tuple(data.DATASETS), default="mnist")
    parser.add_argument("--quick", action="store_true", help="small models, a few digits")
    parser.add_argument("--out", type=Path, default=Path("runs/attack"), help="where results and figures go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    dataset = data.load("digits" if arguments.quick else arguments.data)
    options = QUICK if arguments.quick else FULL
    paths = {name: arguments.out / f"model{number}.pt" for number, name in enumerate(MODELS)}
    models = {name: train(make, dataset, options, paths[name]) for name, make in MODELS.items()}
    bench = Bench(models, dataset, options, arguments.out / "results.json")

    for name in MODELS:
        rows = {"none": [bench.accuracy(name, FGSM(), radius=0.0)] * len(BALLS)}
        for method, value in METHODS.items():
            balls = [
                None if method == "linear programmes" and p == 2 else (p, r) for p, r in BALLS.values()
            ]  # it is slow
            rows[method] = [ball and bench.accuracy(name, value, norm=ball[0], radius=ball[1]) for ball in balls]
        table([name, *BALLS], rows)
    balls = {"‖·‖∞": {"radius": 0.1}, "‖·‖₂": {"radius": 1.0, "norm": 2}}
    rows = {
        f"{name}, {gradient}": [bench.accuracy(name, PGD(), gradient=value, **how) for how in balls.values()]
        for name in MODELS
        for gradient, value in GRADIENTS.items()
    }
    table(["gradient", "‖·‖∞ ≤ 0.1", "‖·‖₂ ≤ 1"], rows)
    counts = (1, 2) if arguments.quick else (4, 8, 16, 32)
    rows = {
        f"{name}, {ranking}": [bench.accuracy(name, value, radius=1.0, cardinality=count) for count in counts]
        for name in MODELS
        for ranking, value in SPARSE.items()
    }
    table(["ranking", *(f"{count} pixels" for count in counts)], rows)
    save(draw(bench, options), arguments.out / "attack.png")


if __name__ == "__main__":
    main()
