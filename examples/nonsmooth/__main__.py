"""The experiments of "Nonsmooth Implicit Differentiation for Machine-Learning and Optimization", each with a figure.

    python examples/nonsmooth [network lasso quadratic cycle lorenz] [--quick] [--out runs/nonsmooth]

Bolte, Le, Pauwels and Silveti-Falls, NeurIPS 2021. The Lorenz attractor is a construction of our own.
"""

import argparse
from pathlib import Path

import cycle
import lasso
import lorenz
import network
import quadratic

from implicitnets.plots import save

EXPERIMENTS = {"network": network, "lasso": lasso, "quadratic": quadratic, "cycle": cycle, "lorenz": lorenz}

parser = argparse.ArgumentParser(prog="python examples/nonsmooth", description=__doc__.splitlines()[0])
parser.add_argument("names", nargs="*", metavar="name", help=f"which of {', '.join(EXPERIMENTS)}; all by default")
parser.add_argument("--quick", action="store_true", help="a few steps of each")
parser.add_argument("--out", type=Path, default=Path("runs/nonsmooth"), help="where the figures go")
arguments = parser.parse_args()
if unknown := sorted(set(arguments.names) - set(EXPERIMENTS)):
    parser.error(f"no experiment is called {', '.join(unknown)}. There are: {', '.join(EXPERIMENTS)}")

arguments.out.mkdir(parents=True, exist_ok=True)
for name in arguments.names or EXPERIMENTS:
    print(f"{name}:")
    path = arguments.out / f"{name}.png"
    save(EXPERIMENTS[name].main(arguments.quick), path)
    print(f"  {path}")
