"""What proximal maps cost: beside the step of an optimizer, together or one by one, and for the nuclear norm.

    python benchmarks/proximal.py

Times are of the processor, in float32, on one thread; each is a median.
"""

import statistics
import time
from unittest import mock

import torch
from torch.nn.functional import cross_entropy

from implicitnets import models, prox, training
from implicitnets.prox import groups

PENALTIES = (prox.L1(1e-4), prox.L0(1e-4), prox.L12(1e-4), prox.L23(1e-4), prox.GroupL1(1e-4))


def milliseconds(call, repeats=50):
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        times.append(1000 * (time.process_time() - begin))
    return statistics.median(times)


def optimizers(batch=200):
    """One step on ImplicitModel(784, 100, 10): forward and backward, and of each optimizer."""
    torch.manual_seed(0)
    model = models.ImplicitModel(784, 100, 10, constraint=None)
    inputs, labels = torch.rand(batch, 784), torch.randint(10, (batch,))

    def gradients():
        model.zero_grad()
        cross_entropy(model(inputs), labels).backward()

    print(f"| of a step at batch {batch} | ms |\n|---|--:|\n| forward and backward | {milliseconds(gradients):.2f} |")
    print(f"| Adam | {milliseconds(torch.optim.Adam(model.parameters(), lr=1e-5).step):.2f} |")
    for penalty in PENALTIES:
        optimizer = training.ProxAdam(penalize(model, penalty), lr=1e-5)
        print(f"| ProxAdam, {type(penalty).__name__} | {milliseconds(optimizer.step):.2f} |")


def penalize(model, penalty):
    return training.penalize(model, {"A": prox.InfNormBall(0.95), "[BCD]": penalty})


def together(count=20, size=32):
    """ProxSGD on many small matrices, which foreach takes together."""
    print(f"\n| {count} matrices of {size} × {size}, ProxSGD | one by one, ms | together, ms |\n|---|--:|--:|")
    for penalty in PENALTIES[:4]:
        found = []
        for foreach in (False, True):
            matrices = [torch.nn.Parameter(torch.randn(size, size)) for _ in range(count)]
            for p in matrices:
                p.grad = torch.zeros_like(p)
            optimizer = training.ProxSGD(matrices, lr=1e-3, penalty=penalty, foreach=foreach)
            found.append(milliseconds(optimizer.step))
        print(f"| {type(penalty).__name__} | {found[0]:.2f} | {found[1]:.2f} |")


def nuclear():
    """Singular value decompositions that Nuclear takes in a metric, by the ratio of its steps."""
    print("\n| ratio of steps | decompositions, 40 × 30 |\n|--:|--:|")
    for exponent in range(5):
        torch.manual_seed(0)
        v = torch.randn(40, 30)
        step = 0.01 * 10.0 ** (exponent * torch.rand(40, 30))
        with mock.patch.object(groups, "_shrink_spectrum", wraps=groups._shrink_spectrum) as shrink:
            prox.Nuclear(10.0)(v, step)
        print(f"| {10**exponent} | {shrink.call_count} |")


torch.set_num_threads(1)
optimizers()
together()
nuclear()
