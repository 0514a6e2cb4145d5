"""What it costs to have a feed-forward network as one implicit model.

    python benchmarks/conversion.py --single-thread   # a table; the figures go to results/conversion.json

By network: the size of the model and its nonzeros, the time of the conversion, and those of one evaluation and of one
training step on a batch of 100, for the network and for the model; medians of seven. All in float32.
"""

import argparse
from pathlib import Path

import torch
from measure import Results, clock, median, seconds, single_thread, table
from torch import nn

from implicitnets.models import from_sequential

OUT = Path(__file__).with_name("results") / "conversion.json"
BATCH, REPEATS = 100, 7


class Residual(nn.Module):
    """The basic block of He et al. (2016)."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()),
            *(nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)),
        )
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x):
        return torch.relu(self.branch(x) + self.shortcut(x))


def perceptron():
    return nn.Sequential(
        *(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh()),
        *(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def lenet():
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def resnet():
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(Residual(8, 8, 1), Residual(8, 16, 2), Residual(16, 16, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )


CASES = {
    "MLP 784-64-64-32-10": (perceptron, (784,)),
    "LeNet-5": (lenet, (1, 28, 28)),
    "ResNet, 16 × 16": (resnet, (1, 16, 16)),
}


def step(model, inputs):
    def run():
        model.zero_grad()
        model(inputs).square().mean().backward()

    return run


def measure(name, make, shape, device):
    torch.manual_seed(0)
    network = make().to(device).eval()
    start = clock()
    model = from_sequential(network, shape)
    spent = clock() - start
    images = torch.randn(BATCH, *shape, device=device)
    flat = images.flatten(1)
    with torch.no_grad():
        wanted = network(images)
        difference = float((model(flat) - wanted).abs().max() / wanted.abs().max())
        runs = {"network": lambda: network(images), "model": lambda: model(flat)}
        forward = {key: median(seconds(run, device) for _ in range(REPEATS)) for key, run in runs.items()}
    runs = {"network": step(network, images), "model": step(model, flat)}
    training = {key: median(seconds(run, device) for _ in range(REPEATS)) for key, run in runs.items()}
    return {
        "name": name,
        "states": model.states,
        "rows": model.rows,
        "nonzeros": {key: getattr(model, key)._nnz() for key in "ABCD"},
        "parameters": sum(p.numel() for p in network.parameters()),
        "difference": difference,
        "conversion": spent,
        "forward": forward,
        "step": training,
    }


def rows(cases):
    for case in cases:
        nonzeros, forward, training = case["nonzeros"]["A"], case["forward"], case["step"]
        yield [
            *(case["name"], f"{case['parameters']:,}", f"{case['rows']:,} × {case['states']:,}", f"{nonzeros:,}"),
            *(f"{nonzeros / case['rows'] / case['states']:.2%}", f"{case['difference']:.0e}"),
            f"{case['conversion']:.2f} s",
            *(f"{1e3 * times['network']:.1f} / {1e3 * times['model']:.1f} ms" for times in (forward, training)),
        ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest case, and no file")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--single-thread", action="store_true", help="one thread and its processor time")
    options = parser.parse_args()
    if options.single_thread:
        single_thread()
    settings = {"device": options.device, "single_thread": options.single_thread, "batch": BATCH, "repeats": REPEATS}
    results, device = Results(None if options.quick else OUT, settings, fresh=True), torch.device(options.device)
    from_sequential(nn.Linear(1, 1), 1)  # so that what PyTorch does once is not counted
    for name, (make, shape) in list(CASES.items())[: 1 if options.quick else None]:
        results.add(measure(name, make, shape, device), device)
    header = ["network", "parameters", "A", "nonzeros of A", "share", "difference", "conversion", "evaluation", "step"]
    print(table(header, rows(results.cases)))
