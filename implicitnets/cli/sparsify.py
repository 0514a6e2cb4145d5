"""``implicitnets sparsify``."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import data, plots, storage
from ..analysis import Region, Sparsity, compress, region, sparsity
from ..analysis.structure import Exact, Inputs, LowRank, Magnitude, Match, Quantize, Reduction, Salience, Share, States
from ..data import Dataset
from ..run import accuracy
from ..solution import ConvergenceWarning
from .console import say, steps, table
from .runs import recorded

__all__ = ["sparsify"]

SHARES = (0.5, 0.3, 0.2, 0.1, 0.05)
SAMPLES = 2000
"""Training samples that methods look at."""
BOXES, RADIUS = 20, 0.01
"""The change of the outputs is bounded around so many held-out samples, so far from each."""
HEADER = ("method", "accuracy", "states", "weights", "bits", "bound")


def sparsify(run: Path, /) -> int:
    """Tell how sparse a run's model is, and how small it can be made: accuracy against what is kept, without training.

    The bound is of the change of any output, on boxes of radius 0.01 around 20 held-out samples, the median of these;
    for "exact" on all inputs within the range of the training samples.

    Args:
        run: The folder of the run, the --out of implicitnets train. sparsity.json and plots are written there.
    """
    found = recorded(run)
    dataset = data.load(found.experiment.data)
    with warnings.catch_warnings():  # rows that are matched nearly are good enough
        warnings.simplefilter("ignore", ConvergenceWarning)
        structure = sparsity(found.model, dataset.train.inputs[:SAMPLES])
        table(f"{run}: structure of the model", structure.rows())
        curves = _curves(found.model, structure, dataset)
    whole = accuracy(found.model, dataset.test)
    table(
        f"What stays of {whole:.2%} on {len(dataset.test)} held-out samples of {dataset.name}",
        [_row(point) for points in curves.values() for point in points],
        HEADER,
    )
    plots.save(
        plots.structure(structure.matrix, structure.ordered_matrix, structure.form.states), run / "structure.png"
    )
    plots.save(plots.compression(curves, whole), run / "sparsity.png")
    storage.write_json(run / "sparsity.json", {"accuracy": whole, "structure": _summary(structure), "curves": curves})
    say(f"Written: {run}/ (sparsity.json, sparsity.png, structure.png)")
    return 0


def _ways(structure: Sparsity) -> dict[str, list[Reduction]]:
    """What is tried, by the name of a curve."""
    states, inputs = (
        sorted({max(1, round(share * size)) for share in SHARES}, reverse=True)
        for size in (structure.form.states, structure.form.inputs)
    )
    return {
        "exact": [Exact()],
        "magnitude": [Magnitude(keep=share) for share in SHARES],
        "salience": [Salience(keep=share) for share in SHARES],
        "states": [States(keep=count) for count in states],
        "inputs": [Inputs(keep=count) for count in inputs],
        "low rank": [LowRank(rank=count) for count in states[1:]],
        "matching": [Match(max_steps=1000)],
        "quantization": [Quantize(bits=bits) for bits in (8, 6, 4, 3)],
        "shared values": [Share(values=count) for count in (32, 16, 8, 4)],
    }


def _curves(model: nn.Module, structure: Sparsity, dataset: Dataset) -> dict[str, list[dict[str, Any]]]:
    boxes, hull = region(dataset.test.inputs[:BOXES], RADIUS), _hull(dataset.train.inputs)
    ways = _ways(structure)
    return {
        name: [_point(model, method, dataset, hull if name == "exact" else boxes) for method in ways[name]]
        for name in steps(tuple(ways), "trying:")
    }


def _hull(inputs: Tensor) -> Region:
    """All inputs within the range of these."""
    low, high = inputs.amin(0, keepdim=True), inputs.amax(0, keepdim=True)
    return region((low + high) / 2, (high - low) / 2)


def _point(model: nn.Module, method: Reduction, dataset: Dataset, where: Region) -> dict[str, Any]:
    result = compress(model, method, x=dataset.train.inputs[:SAMPLES], region=where)
    bound = result.bound
    assert bound is not None  # there is a region
    return {
        "method": repr(method),
        "states": result.sizes[1],
        "weights": result.weights[1] / max(1, result.weights[0]),
        "bits": result.bits[1] / max(1, result.bits[0]),
        "accuracy": accuracy(result.model, dataset.test),
        "bound": float(bound.median()),
    }


def _row(point: dict[str, Any]) -> tuple[str, ...]:
    shares = (f"{point[name]:.1%}" for name in ("weights", "bits"))
    method = point["method"].replace(", matrices='ABCD'", "")
    return method, f"{point['accuracy']:.2%}", str(point["states"]), *shares, f"{point['bound']:.2g}"


def _summary(structure: Sparsity) -> dict[str, Any]:
    return {
        "table": dict(structure.rows()),
        "spectra": {name: asdict(spectrum) for name, spectrum in structure.spectra.items()},
        "order": {"sizes": structure.order.sizes, "cyclic": structure.order.cyclic},
    }
