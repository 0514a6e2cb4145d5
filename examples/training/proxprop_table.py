"""How large may the step be? Table 1 of "Proximal Backpropagation" (Frerix et al., ICLR 2018), scaled down.

    python examples/training/proxprop_table.py [--data cifar10.npz] [--full-batch] [--out runs/proxprop] [--quick]

A multilayer perceptron, as wide as 1/40 of the paper's, learns by Nesterov's momentum of 0.95 with steps of size τ:
along the gradient, along ProxProp's direction with k steps of conjugate gradients, or along the exact one. What counts
is the loss of the whole training part after a fixed number of epochs. The proximal parameter is the paper's τ_θ = 1,
which is tau = n, the size of a batch, here. With --full-batch an epoch is one step.

The data are CIFAR-10 as an .npz file with x_train and y_train, named by --data or by the environment variable
IMPLICITNETS_CIFAR10; else a data set of the library by name. Results are kept as they come, in results.json in the
folder --out, and what is there is not run again.
"""

import argparse
import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import cross_entropy

from implicitnets import data
from implicitnets.plots import save
from implicitnets.training import proxprop

TAUS = (50, 10, 5, 1, 0.5, 0.1, 0.05, 5e-3, 5e-4)
METHODS = {
    "backprop": None,
    "cg1": {"method": "cg", "cg_steps": 1},
    "cg3": {"method": "cg", "cg_steps": 3},
    "cg5": {"method": "cg", "cg_steps": 5},
    "exact": {"method": "auto"},
}
WIDTHS, SAMPLES, BATCH, EPOCHS, SEEDS = (100, 25, 100), 500, 50, 50, (0, 1, 2)


def samples(name, count):
    """So many training images, pixels in [0, 1] as the paper has them, and labels."""
    if name.endswith(".npz"):
        with np.load(name) as arrays:
            x, y = arrays["x_train"][:count], arrays["y_train"][:count]
        x, y = torch.from_numpy(x).float(), torch.from_numpy(y).long()
    else:
        part = data.load(name).train
        x, y = part.inputs[:count], part.labels[:count]
    return x.flatten(1) / x.max(), y


def network(inputs, seed):
    torch.manual_seed(seed)
    sizes = [inputs, *WIDTHS]
    layers = [[nn.Linear(a, b), nn.ReLU()] for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*itertools.chain(*layers), nn.Linear(WIDTHS[-1], 10))


def final_loss(x, y, method, tau, seed, epochs, batch):
    """The loss after so many epochs; None if it was not finite on the way."""
    net = network(x.shape[1], seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=tau, momentum=0.95, nesterov=True)
    if METHODS[method] is not None:
        proxprop(net, tau=batch, **METHODS[method])
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            loss = cross_entropy(net(x[part]), y[part])
            if not loss.isfinite():
                return None
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        loss = cross_entropy(net(x), y).item()
    return loss if math.isfinite(loss) else None


def run(x, y, path, taus, seeds, epochs, batch):
    """The losses by "method tau seed", read from and written to a file."""
    results = json.loads(path.read_text()) if path.exists() else {}
    for seed, tau, method in itertools.product(seeds, taus, METHODS):
        key = f"{method} {tau} {seed}"
        if key not in results:
            results[key] = final_loss(x, y, method, tau, seed, epochs, batch)
            path.write_text(json.dumps(results, indent=1))
    return results


def over_seeds(results, method, tau, seeds):
    """The losses of all seeds; none if one of them has none."""
    losses = [results[f"{method} {tau} {seed}"] for seed in seeds]
    return [] if None in losses else losses


def table(results, taus, seeds):
    """Markdown: the mean over the seeds, and — where a run was not finite."""
    lines = ["| τ | " + " | ".join(map(str, taus)) + " |", "|---" * (len(taus) + 1) + "|"]
    for method in METHODS:
        cells = [over_seeds(results, method, tau, seeds) for tau in taus]
        lines.append(f"| {method} | " + " | ".join(f"{np.mean(c):.3g}" if c else "—" for c in cells) + " |")
    return "\n".join(lines)


def draw(results, taus, seeds):
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for method in METHODS:
        points = [(tau, losses) for tau in taus if (losses := over_seeds(results, method, tau, seeds))]
        if points:
            x, losses = zip(*points, strict=True)
            (line,) = axes.loglog(x, [np.mean(c) for c in losses], "o-", ms=4, label=method)
            axes.fill_between(x, [min(c) for c in losses], [max(c) for c in losses], color=line.get_color(), alpha=0.15)
    axes.set(xlabel="step size τ", ylabel="training loss at the end")
    axes.grid(color="#d9dee3", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", default=os.environ.get("IMPLICITNETS_CIFAR10", "digits"), help="an .npz file, or a name"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/proxprop"), help="where table, figure and results go")
    parser.add_argument("--full-batch", action="store_true", help="one step an epoch")
    parser.add_argument("--quick", action="store_true", help="digits, three step sizes, a few epochs")
    arguments = parser.parse_args()
    taus, seeds, epochs = (TAUS[::4], SEEDS[:1], 8) if arguments.quick else (TAUS, SEEDS, EPOCHS)
    x, y = samples("digits" if arguments.quick else arguments.data, 100 if arguments.quick else SAMPLES)
    arguments.out.mkdir(parents=True, exist_ok=True)
    batch = len(x) if arguments.full_batch else BATCH
    results = run(x, y, arguments.out / "results.json", taus, seeds, epochs, batch)
    text = table(results, taus, seeds)
    print(text)
    (arguments.out / "table.md").write_text(text + "\n", encoding="utf-8")
    save(draw(results, taus, seeds), arguments.out / "proxprop_table.png")


if __name__ == "__main__":
    main()
