"""How much of the accuracy of trained models can be proved: certified from below, attacked from above.

    python examples/analysis/certify.py [--quick] [--data mnist] [--out runs/certify] [--models NAME ...] [--images N]

Models are trained as usual, and for certified accuracy (``training.Certified``). A row of a table is a model and a
radius around the test images, of pixels between 0 and 1: the share of images that it classifies rightly; the share that
it still does after an attack, above which nothing can be proved; the share that ``analysis.certify`` proves, and its
seconds for an image. The figure has both shares against the radius. Models that were trained are not trained again:
their weights are in the output folder, and what was found of them in ``results.json``.
"""

import argparse
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter
from torch import nn
from torch.nn.functional import cross_entropy

import implicitnets as inn
from implicitnets import analysis, data, storage, training
from implicitnets.models import ImplicitModel, IntervalMonotoneDEQ, MonotoneDEQ
from implicitnets.plots import save
from implicitnets.solvers import PeacemanRachford

UNIT = 0.3081  # the standard deviation of MNIST's pixels: published radii of monotone models are multiples of it
SPLIT = {
    "solver": PeacemanRachford(rtol=1e-2, max_steps=500),
    "backward": inn.Implicit(solver=PeacemanRachford(rtol=1e-2, max_steps=500)),
}


@dataclass(frozen=True)
class Query:
    """What is asked of a model: how many of the first images are robust within radii."""

    radii: tuple
    method: str = "crown"
    images: int = 100
    norm: object = "inf"
    domain: tuple | None = None  # changed pixels are between these; as published, they can be anything


@dataclass(frozen=True)
class Plan:
    """A model, how it is trained, and what is asked of it."""

    build: object
    method: str
    queries: tuple
    epochs: int = 10
    rate: float = 2e-3


def monotone(states):
    return lambda p, q: nn.Sequential(MonotoneDEQ(p, states, m=20.0, **SPLIT), nn.Linear(states, q))


def interval(p, q):
    return nn.Sequential(IntervalMonotoneDEQ(p, 100), nn.Linear(100, q))


def certified(radius, epochs, *, natural):
    method = f"Certified(radius={radius}, domain=(0.0, 1.0), natural={natural}, ramp=RAMP)"
    return Plan(interval, method, (Query((0.01, 0.03, 0.05, 0.1), "crown", 10_000, domain=(0.0, 1.0)),), epochs)


SMALL = tuple(sorted((0.01, 0.02, *(UNIT * radius for radius in (0.01, 0.02, 0.05, 0.1)))))
BALLS = Query((0.1, 0.2, 0.3), norm=2)
CLIPPED = Query(SMALL, domain=(0.0, 1.0))
PLANS = {
    "monotone 40": Plan(
        monotone(40),
        "Backprop()",
        (Query(SMALL), Query(SMALL, "auto"), CLIPPED, replace(CLIPPED, method="auto"), BALLS),
        rate=1e-2,
    ),
    "monotone 87": Plan(
        monotone(87),
        "Backprop()",
        (Query(SMALL), Query(SMALL[:5], "auto"), CLIPPED, Query(SMALL[:5], "auto", domain=(0.0, 1.0)), BALLS),
        rate=1e-2,
    ),
    "monotone 200": Plan(monotone(200), "Backprop()", (Query(SMALL), CLIPPED, BALLS), rate=1e-2),
    "inf-norm 100": Plan(lambda p, q: ImplicitModel(p, 100, q), "Backprop()", (Query(SMALL), BALLS)),
    "certified 0.06": certified(0.06, 20, natural=0.5),
    "certified 0.13": certified(0.13, 40, natural=0.3),
}


def trained(plan, dataset, quick, path):
    """The model, from the file if it is there."""
    torch.manual_seed(0)
    model = plan.build(dataset.features, dataset.classes)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    epochs, batch = (1, 16) if quick else (plan.epochs, 128)
    steps = epochs * math.ceil(len(dataset.train) / batch)
    method, done = training.parse(plan.method.replace("RAMP", str(2 * steps // 3))), 0
    trainer, shuffle = method.trainer(model, cross_entropy, lr=plan.rate), torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for inputs, labels in dataset.train.batches(batch, generator=shuffle):
            trainer.lr = plan.rate * one_cycle(done / steps)
            trainer.step(inputs, labels)
            done += 1
    torch.save(model.state_dict(), path)
    return model


def one_cycle(share, peak=0.3):
    """The learning rate as a share of the largest: up until the peak, then down (Smith and Topin 2017)."""
    if share < peak:
        return 0.04 + 0.96 * share / peak
    return 0.5 + 0.5 * math.cos(math.pi * (share - peak) / (1 - peak))


def answer(model, dataset, query, radius):
    """How many images are right, withstand an attack and are proved to; those that are proved are not attacked."""
    x, labels = dataset.test.inputs[: query.images], dataset.test.labels[: query.images]
    where = {"radius": radius, "norm": query.norm, "domain": query.domain}
    start = time.perf_counter()
    found = analysis.certify(model, x, labels, method=query.method, **where)
    seconds, robust, fooled = time.perf_counter() - start, found.robust, found.falsified
    left = ~robust & ~fooled
    if left.any():
        fooled[left] = analysis.attack(model, x[left], labels[left], **where).success
    wrong = torch.tensor([item.method == "clean" for item in found])
    counts = {"right": ~wrong, "withstand": ~fooled, "proved": robust}
    return {key: which.double().mean().item() for key, which in counts.items()} | {
        "method": query.method,
        "images": len(x),
        "seconds": seconds / len(x),
    }


def show(results):
    """Two tables: the models, and the answers."""
    print("| model | trained by | epochs | accuracy (%) |\n|---|---|--:|--:|")
    for name, found in results.items():
        print(f"| {name} | `{found['trained by']}` | {found['epochs']} | {100 * found['accuracy']:.2f} |")
    print("\n| model | region | radius | / 0.3081 | images | right (%) | attacked (%) | proved (%) | by | s / image |")
    print("|---|---|" + "--:|" * 6 + "---|--:|")
    for name, found in results.items():
        for row in found["rows"].values():
            shares = " | ".join(f"{100 * row[key]:.4g}" for key in ("right", "withstand", "proved"))
            size = f"{row['radius']:.4g} | {row['radius'] / UNIT:.3g} | {row['images']}"
            print(f"| {name} | {row['region']} | {size} | {shares} | {row['method']} | {row['seconds']:.2g} |")


def curves(results, region):
    """For each model the best that is known at each radius."""
    found = {}
    for name, result in results.items():
        rows = [row for row in result["rows"].values() if row["region"] == region]
        points = [
            [row for row in rows if row["radius"] == radius] for radius in sorted({row["radius"] for row in rows})
        ]
        if points:
            found[name] = [
                (same[0]["radius"], max(row["proved"] for row in same), min(row["withstand"] for row in same))
                for same in points
            ]
    return found


def draw(found, region):
    """The share proved as a line, the one after an attack dotted: the truth is between them."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(found.items()):
        radii, proved, attacked = zip(*points, strict=True)
        axes.plot(radii, proved, color=f"C{number}", marker=".", label=name)
        axes.plot(radii, attacked, color=f"C{number}", marker=".", ls=":")
        axes.fill_between(radii, proved, attacked, color=f"C{number}", alpha=0.12, linewidth=0)
    axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel=f"radius, {region}", ylabel="images classified rightly")
    axes.set_title("Proved (lines) and after an attack (dotted)", loc="left", fontweight="bold")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#d9dee3", linewidth=0.6)
    axes.legend(frameon=False, loc="lower left")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=tuple(data.DATASETS), default="mnist")
    parser.add_argument("--quick", action="store_true", help="digits, an epoch, few images and radii")
    parser.add_argument("--out", type=Path, default=Path("runs/certify"), help="where weights and results go")
    parser.add_argument("--models", nargs="*", choices=tuple(PLANS), default=tuple(PLANS), help="only these")
    parser.add_argument("--images", type=int, default=10_000, help="at most so many of the test images for a row")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    dataset = data.load("digits" if arguments.quick else arguments.data)
    path = arguments.out / f"{dataset.name}.json"
    results = storage.read_json(path)["models"] if path.exists() else {}
    for name in arguments.models:
        plan = PLANS[name]
        model = trained(plan, dataset, arguments.quick, arguments.out / f"{dataset.name} {name}.pt")
        found = results.setdefault(name, {"trained by": plan.method, "epochs": plan.epochs, "rows": {}})
        if "accuracy" not in found:
            with torch.no_grad():
                right = model(dataset.test.inputs).argmax(1) == dataset.test.labels
            found["accuracy"] = right.double().mean().item()
        for query in plan.queries:
            ball = f"ℓ{'∞' if query.norm == 'inf' else query.norm}" + (" in [0, 1]" if query.domain else "")
            for radius in query.radii[::3] if arguments.quick else query.radii:
                key = f"{ball} {radius:.4g} {query.method}"
                if key not in found["rows"]:
                    asked = replace(query, images=min(query.images, 4 if arguments.quick else arguments.images))
                    row = answer(model, dataset, asked, radius)
                    found["rows"][key] = {"region": ball, "radius": radius} | row
                    storage.write_json(path, {"models": results})
    show(results)
    for title, region in {"inf": "ℓ∞", "inf in domain": "ℓ∞ in [0, 1]", "2": "ℓ2"}.items():
        if found := curves(results, region):
            save(draw(found, region), arguments.out / f"{dataset.name} {title}.png")


if __name__ == "__main__":
    main()
