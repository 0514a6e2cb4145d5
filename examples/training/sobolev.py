"""Values and derivatives of the classical test functions, learned from a few points by an implicit model.

    python examples/training/sobolev.py [--quick] [--out runs/sobolev]

x = tanh(Ax + Bu + b), y = Cx + Du + c with 50 states is fitted to a function of two variables, given at 20 or 100
random points: to its values, to values and gradients (``sobolev_loss``), or to values and gradients along one random
direction a step. What counts is the error of the values on a grid, in units of their standard deviation. As many steps
of AdamW each, three seeds; runs that were done are not done again.
"""

import argparse
import statistics
from pathlib import Path

import torch
from matplotlib.figure import Figure

from implicitnets import storage
from implicitnets.models import ImplicitModel
from implicitnets.plots import BLUE, GREEN, ORANGE, save
from implicitnets.training import sobolev_loss

FUNCTIONS = {
    "Styblinski-Tang": (lambda x, y: (x**4 - 16 * x**2 + 5 * x + y**4 - 16 * y**2 + 5 * y) / 2, 5.0),
    "Ackley": (
        lambda x, y: (
            -20 * torch.exp(-0.2 * torch.sqrt((x**2 + y**2) / 2 + 1e-12))
            - torch.exp((torch.cos(2 * torch.pi * x) + torch.cos(2 * torch.pi * y)) / 2)
        ),
        5.0,
    ),
    "Beale": (
        lambda x, y: (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2,
        4.5,
    ),
    "Booth": (lambda x, y: (x + 2 * y - 7) ** 2 + (2 * x + y - 5) ** 2, 10.0),
    "McCormick": (lambda x, y: torch.sin(x + y) + (x - y) ** 2 - 1.5 * x + 2.5 * y + 1, 4.0),
    "Rosenbrock": (lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2, 2.0),
}
WAYS = {"values": None, "values and gradients": "all", "along a direction": 1}
COLORS = dict(zip(WAYS, (BLUE, ORANGE, GREEN), strict=True))
FULL = {"points": [20, 100], "steps": 1000, "seeds": 3}
QUICK = {"points": [20], "steps": 20, "seeds": 1}


def sample(name, points):
    """Values and gradients at points of the square [−1, 1]², to which its domain is scaled; in standard deviations."""
    f, half = FUNCTIONS[name]
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 41)] * 2)
    reference = f(*(half * grid).T)
    x = points.clone().requires_grad_()
    values = (f(*(half * x).T) - reference.mean()) / reference.std()
    (gradients,) = torch.autograd.grad(values.sum(), x)
    return values.detach()[:, None], gradients[:, None]


def error(name, way, points, seed, steps):
    """Root mean square error on a grid after training."""
    torch.manual_seed(seed)
    x = 2 * torch.rand(points, 2) - 1
    values, gradients = sample(name, x)
    model = ImplicitModel(2, 50, 1, activation="tanh")
    with torch.no_grad():
        model.B.mul_(3)  # features that vary within the square
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        given = (values,) if WAYS[way] is None else (values, gradients)
        directions = WAYS[way] if isinstance(WAYS[way], int) else None
        loss = sobolev_loss(model, x, *given, directions=directions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 41)] * 2)
    values, _ = sample(name, grid)
    with torch.no_grad():
        return (model(grid) - values).square().mean().sqrt().item()


def measure(options, out):
    path = out / "results.json"
    record = storage.read_json(path) if path.exists() else {"options": options, "errors": {}}
    if record["options"] != options:
        raise SystemExit(f"{path} is of other options: {record['options']}. Say --out for another folder")
    for seed in range(options["seeds"]):
        for points in options["points"]:
            for name in FUNCTIONS:
                for way in WAYS:
                    key = f"{name}, {points}, {way}, {seed}"
                    if key not in record["errors"]:
                        record["errors"][key] = error(name, way, points, seed, options["steps"])
                        storage.write_json(path, record)
    return {
        (name, points, way): [record["errors"][f"{name}, {points}, {way}, {seed}"] for seed in range(options["seeds"])]
        for name in FUNCTIONS
        for points in options["points"]
        for way in WAYS
    }


def draw(errors, points):
    figure = Figure(figsize=(5 * len(points), 4), layout="constrained")
    for axes, count in zip(figure.subplots(1, len(points), sharey=True, squeeze=False)[0], points, strict=True):
        for shift, (way, color) in enumerate(COLORS.items()):
            places = [i + 0.25 * (shift - 1) for i in range(len(FUNCTIONS))]
            axes.bar(places, [statistics.mean(errors[n, count, way]) for n in FUNCTIONS], 0.25, color=color, label=way)
        axes.set_xticks(range(len(FUNCTIONS)), FUNCTIONS, rotation=30, ha="right")
        axes.set(title=f"{count} points", yscale="log")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("error on a grid, in standard deviations")
    figure.axes[-1].legend(frameon=False, fontsize=8)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps")
    parser.add_argument("--out", type=Path, default=Path("runs/sobolev"), help="where results and figure go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    options = QUICK if arguments.quick else FULL
    errors = measure(options, arguments.out)
    print("| function | points | " + " | ".join(WAYS) + " |\n|---|--:|" + "--:|" * len(WAYS))
    for name in FUNCTIONS:
        for points in options["points"]:
            cells = [f"{statistics.mean(errors[name, points, way]):.3f}" for way in WAYS]
            print(f"| {name} | {points} | " + " | ".join(cells) + " |")
    save(draw(errors, options["points"]), arguments.out / "sobolev.png")


if __name__ == "__main__":
    main()
