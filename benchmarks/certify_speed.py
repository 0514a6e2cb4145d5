"""How long it takes to certify all test images.

    implicitnets train --data mnist --epochs 2 --out runs/plain
    python benchmarks/certify_speed.py runs/plain --single-thread

For each run, the first ``--samples`` test images and pixels in [0, 1]: how many are proved, refuted and left open
within the radius of the maximum norm, and the seconds in all, the search for adversarial inputs included.
"""

import argparse
from pathlib import Path

from measure import clock, single_thread, table

from implicitnets import data, report
from implicitnets.analysis import certify


def row(run, method, radius, samples):
    found = report.read(run)
    test = data.load(found.experiment.data).test
    start = clock()
    proved = certify(
        found.model, test.inputs[:samples], test.labels[:samples], radius=radius, domain=(0.0, 1.0), method=method
    )
    spent, count = clock() - start, len(proved)
    robust, falsified = int(proved.robust.sum()), int(proved.falsified.sum())
    states = len(proved[0].states.low)
    unknown = count - robust - falsified
    return [run.name, states, method, radius, robust, falsified, unknown, f"{spent:.1f}", f"{1e3 * spent / count:.2g}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders that implicitnets train made")
    parser.add_argument("--methods", nargs="+", default=["interval", "crown"])
    parser.add_argument("--radius", type=float, default=0.01)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--single-thread", action="store_true", help="one thread and its processor time")
    arguments = parser.parse_args()
    if arguments.single_thread:
        single_thread()
    head = ["run", "states", "method", "radius", "robust", "falsified", "unknown", "seconds", "ms an image"]
    rows = [row(run, m, arguments.radius, arguments.samples) for run in arguments.runs for m in arguments.methods]
    print(table(head, rows))


if __name__ == "__main__":
    main()
