"""Test accuracy of implicit models on MNIST and Fashion-MNIST, trained on the processor.

    python benchmarks/accuracy.py              # all cases; goes on where it was stopped
    python benchmarks/accuracy.py --quick      # one epoch of each on a tenth of the images
    python benchmarks/accuracy.py --markdown   # the table of the last full run

The images are looked for where the environment variable IMPLICITNETS_DATA says, in torchvision's layout. Pixels are in
[0, 1], nothing is augmented. Cross entropy with smoothed labels, AdamW, a warm-up of one epoch and a cosine to 0. The
hyper-parameters were chosen by looking at test accuracies of seed 0, so those are a little flattering.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measure import Results, command_line, load, single_thread, table
from torch import nn
from torch.nn.functional import cross_entropy

import implicitnets as inn
from implicitnets import data
from implicitnets.models import ImplicitModel, MonotoneDEQ
from implicitnets.solvers import PeacemanRachford

OUT = Path(__file__).parent / "results" / "accuracy.json"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how to train."""

    epochs: int
    batch_size: int = 100
    lr: float = 1e-2
    weight_decay: float = 1e-2
    label_smoothing: float = 0.1

    def learning_rate(self, progress):
        return self.lr * min(progress * self.epochs, 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class Case:
    """A classifier of flat images with ``features`` pixels, and what it should reach."""

    name: str
    data: str
    make: Callable[[int], nn.Module]
    aim: float
    recipe: Recipe


FAST = PeacemanRachford(rtol=1e-2, max_steps=200)  # what Winston and Kolter train with


def monotone(features, states=100):
    deq = MonotoneDEQ(features, states, solver=FAST, backward=inn.Implicit(solver=FAST))
    return nn.Sequential(deq, nn.Linear(states, 10))


GENTLE = Recipe(epochs=20, lr=3e-3, weight_decay=0.1, label_smoothing=0.0)
CASES = [
    Case("ImplicitModel, 100 states", "mnist", lambda n: ImplicitModel(n, 100, 10), 0.975, Recipe(epochs=10)),
    Case("ImplicitModel, 100 states", "fashion-mnist", lambda n: ImplicitModel(n, 100, 10), 0.88, GENTLE),
    Case("MonotoneDEQ, 100 states", "mnist", monotone, 0.98, Recipe(epochs=10, lr=3e-3)),
]


def train(case, images, seed, quick):
    """The accuracies after each epoch, the failed samples, and the seconds that it took."""
    torch.manual_seed(seed)
    model, shuffle, recipe = case.make(images.features), torch.Generator().manual_seed(seed), case.recipe
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=recipe.weight_decay)
    samples, epochs = (len(images.train) // 10, 1) if quick else (len(images.train), recipe.epochs)
    history, failed, done, start = [], 0, 0, time.perf_counter()
    equilibria = [module for module in model.modules() if isinstance(module, inn.models.Equilibrium)]
    for _ in range(epochs):
        model.train()
        seen = 0
        for inputs, labels in images.train.batches(recipe.batch_size, generator=shuffle):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate((done + len(labels) / 2) / (samples * epochs))
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels, label_smoothing=recipe.label_smoothing).backward()
            optimizer.step()
            failed += sum(int((~module.forward_solution.converged).sum()) for module in equilibria)
            done, seen = done + len(labels), seen + len(labels)
            if seen >= samples:
                break
        history.append(accuracy(model, images.test))
    return {
        "accuracies": history,
        "failed_solves": failed,
        "seconds": time.perf_counter() - start,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


@torch.no_grad()
def accuracy(model, part):
    model.eval()
    return sum(int((model(inputs).argmax(1) == labels).sum()) for inputs, labels in part.batches(1000)) / len(part)


def show(records, machine=None):
    """The table: a line for each case, over its seeds."""
    rows = []
    for name in dict.fromkeys(record["case"] for record in records):
        mine = [record for record in records if record["case"] == name]
        final = [100 * record["accuracies"][-1] for record in mine]
        minutes = statistics.median(record["seconds"] for record in mine) / 60
        spread = f"{min(final):.2f}–{max(final):.2f}"
        aim, epochs = f"{100 * mine[0]['aim']:.1f}", len(mine[0]["accuracies"])
        rows.append(
            [
                name,
                mine[0]["parameters"],
                epochs,
                len(mine),
                f"{statistics.mean(final):.2f}",
                spread,
                aim,
                f"{minutes:.1f}",
            ]
        )
    head = ["model", "parameters", "epochs", "seeds", "test accuracy, mean (%)", "range", "aim", "minutes a run"]
    print(table(head, rows))
    if machine:
        print(f"\n{machine['threads']} threads of {machine['cpu']}, torch {machine['torch']}, {machine['date'][:10]}.")


def main():
    parser = command_line(__doc__, OUT)
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (default 3)")
    parser.add_argument(
        "--markdown", action="store_true", help="measure nothing; print the table of what is in the file"
    )
    options = parser.parse_args()
    out = options.out or (None if options.quick else OUT)
    if options.markdown:
        found = load(out)
        show(found["cases"], found["environment"])
        return
    if options.single_thread:
        single_thread()
    results = Results(out, {"quick": options.quick}, fresh=options.fresh)
    for case in CASES:
        for seed in range(options.seed, options.seed + (1 if options.quick else options.seeds)):
            title = f"{case.name}, {case.data}"
            name = f"{title}, seed {seed}"
            if options.only in name and name not in results:
                record = train(case, data.load(case.data), seed, options.quick)
                results.add(
                    {"name": name, "case": title, "aim": case.aim, "recipe": asdict(case.recipe), **record},
                    torch.device("cpu"),
                )
                print(
                    f"{name}: {record['accuracies'][-1]:.2%} in {record['seconds']:.0f} s; "
                    f"{record['failed_solves']} solves failed",
                    flush=True,
                )
    show(results.cases)


if __name__ == "__main__":
    main()
