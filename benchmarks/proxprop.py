"""What an exact proximal step costs in its dual and its primal form, and whether "auto" takes the cheaper one.

    python benchmarks/proxprop.py [--quick]

First the time of a multiplication in a Cholesky factorization in that of one in a product, which CHOLESKY stands for;
then, for layers with q inputs, m outputs and n rows, the processor time of a system on one thread in both forms, and
what the choice loses against the faster one.
"""

import sys
import time
from functools import partial

import torch

from implicitnets.training.proximal.metric import CHOLESKY, Metric, cheaper

CASES = [
    (n, q, m)
    for q, m in ((101, 100), (301, 300), (885, 100), (785, 500), (1025, 256))
    for n in (q // 8, q // 2, q, 2 * q)
]


def seconds(function, repeats):
    """The least processor time of a call."""
    function()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        found.append(time.process_time() - start)
    return min(found)


def solve(rows, g, form):
    return Metric(10.0, rows=rows).solve(g, form)


def cholesky(size, repeats):
    """Time per multiplication of a factorization (n³/6) over that of a product (n³)."""
    a = torch.randn(size, size, dtype=torch.float64)
    gram = a @ a.T + size * torch.eye(size, dtype=torch.float64)
    return 6 * seconds(lambda: torch.linalg.cholesky(gram), repeats) / seconds(lambda: a @ a.T, repeats)


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quick = "--quick" in sys.argv
    repeats, cases = (2, CASES[:3]) if quick else (5, CASES)
    sizes = (64, 128) if quick else (128, 256, 512, 1024)
    ratios = [cholesky(size, repeats) for size in sizes]
    print("Cholesky to product, ratio per multiplication:", ", ".join(f"{r:.1f}" for r in ratios))
    print(f"used: {CHOLESKY}\n\n| n | q | m | dual ms | primal ms | auto | lost |\n|---|---|---|---|---|---|---|")
    for n, q, m in cases:
        rows, g = torch.randn(n, q), torch.randn(m, q)
        times = {form: seconds(partial(solve, rows, g, form), repeats) for form in ("dual", "primal")}
        chosen = cheaper(n, q, m)
        lost = times[chosen] / min(times.values()) - 1
        print(f"| {n} | {q} | {m} | {1e3 * times['dual']:.2f} | {1e3 * times['primal']:.2f} | {chosen} | {lost:.0%} |")


if __name__ == "__main__":
    main()
