"""What can be proved of trained models: which criterion makes them well-posed, how steep they are, what they look at.

    python examples/analysis/sensitivity.py [--quick] [--data mnist] [--out runs/sensitivity]

Five models of the same size are trained. The first table has the margins of the criteria of well-posedness; the second
bounds of the Lipschitz constant from above, and from below by a pair of inputs. The figure shows for each class how far
its output can move for one unit of each pixel, in the worst case over all images. Models that were trained are not
trained again: their weights are in the output folder, and what was found of them in ``results.json``.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import implicitnets as inn
from implicitnets import analysis, data, storage
from implicitnets.models import ImplicitModel, IntervalMonotoneDEQ, LipschitzDEQ, MonotoneDEQ, NonEuclideanDEQ
from implicitnets.plots import save, sensitivity_images
from implicitnets.solvers import Anderson, PeacemanRachford

FULL = {"states": 87, "epochs": 3, "batch": 200, "samples": 60_000, "steps": 30}
QUICK = {"states": 20, "epochs": 1, "batch": 50, "samples": 200, "steps": 5}
SPLIT = {
    "solver": PeacemanRachford(rtol=1e-2, max_steps=200),
    "backward": inn.Implicit(solver=PeacemanRachford(rtol=1e-2, max_steps=200)),
}
MODELS = {
    "‖A‖∞ ≤ 0.95": lambda p, n, q: ImplicitModel(p, n, q, solver=Anderson(max_steps=300)),
    "monotone": lambda p, n, q: nn.Sequential(MonotoneDEQ(p, n, **SPLIT), nn.Linear(n, q)),
    "interval": lambda p, n, q: nn.Sequential(IntervalMonotoneDEQ(p, n), nn.Linear(n, q)),
    "γ = 5": lambda p, n, q: LipschitzDEQ(p, n, q, lipschitz=5.0, **SPLIT),
    "NEMON": lambda p, n, q: nn.Sequential(NonEuclideanDEQ(p, n), nn.Linear(n, q)),
}


def trained(name, dataset, options, path):
    """The model, from the file if it is there."""
    torch.manual_seed(0)
    model = MODELS[name](dataset.features, options["states"], dataset.classes)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    count, batch = min(options["samples"], len(dataset.train)), options["batch"]
    part = data.Split(inputs=dataset.train.inputs[:count], labels=dataset.train.labels[:count])
    optimizer, shuffle = torch.optim.Adam(model.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options["epochs"] * math.ceil(count / batch))
    for _ in range(options["epochs"]):
        for inputs, labels in part.batches(batch, generator=shuffle):
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            schedule.step()
    torch.save(model.state_dict(), path)
    return model


def analyse(model, dataset, steps):
    with torch.no_grad():
        hits = (model(dataset.test.inputs).argmax(1) == dataset.test.labels).double().mean().item()
    posed, images = analysis.well_posedness(model), dataset.test.inputs[:200]
    steep = {norm: analysis.lipschitz(model, norm, images, steps=steps) for norm in ("2", "inf")}
    return {
        "accuracy": hits,
        "criterion": posed.criterion,
        "margins": posed.margins,
        "lipschitz": {norm: found.upper | {"found": found.lower} for norm, found in steep.items()},
    }


def show(results):
    print("| model | accuracy (%) |", " | ".join(next(iter(results.values()))["margins"]), "|")
    print("|---|--:|" + "--:|" * len(next(iter(results.values()))["margins"]))
    for name, found in results.items():
        margins = " | ".join(f"{margin:.3g}" for margin in found["margins"].values())
        print(f"| {name} | {100 * found['accuracy']:.1f} | {margins} |")
    for norm in ("2", "inf"):
        names = list(next(iter(results.values()))["lipschitz"][norm])
        print(f"\n| Lipschitz, norm {norm} | {' | '.join(names)} |\n|---|" + "--:|" * len(names))
        for name, found in results.items():
            bounds = found["lipschitz"][norm].values()
            print(f"| {name} | {' | '.join(f'{b:.3g}' if b < math.inf else '—' for b in bounds)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=tuple(data.DATASETS), default="mnist")
    parser.add_argument("--quick", action="store_true", help="small models, one epoch on a few digits")
    parser.add_argument("--out", type=Path, default=Path("runs/sensitivity"), help="where weights and results go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    dataset, options = data.load("digits" if arguments.quick else arguments.data), QUICK if arguments.quick else FULL
    path = arguments.out / "results.json"
    results = storage.read_json(path)["models"] if path.exists() else {}
    for number, name in enumerate(MODELS):
        model = trained(name, dataset, options, arguments.out / f"{number}.pt")
        if name not in results:
            results[name] = analyse(model, dataset, options["steps"])
            storage.write_json(path, {"models": results})
        if name == "NEMON":
            found = analysis.sensitivity(model)
            figure = sensitivity_images(found, dataset.shape[1:])
            save(figure, arguments.out / f"sensitivity-{dataset.name}.png")
    show(results)


if __name__ == "__main__":
    main()
