"""``implicitnets sparsify``."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from .. import data, plots, storage
from ..analysis import Region, Sparsity, compress, region, sparsity
from ..analysis.structure import Exact, Inputs, LowRank, Magnitude, Match, Quantize, Reduction, Salience, Share, States
from ..data import Dataset
from ..run import accuracy
from ..solution import ConvergenceWarning
from .console import say, table
from .runs import recorded

__all__ = ["sparsify"]

SHARES = (0.5, 0.3, 0.2, 0.1, 0.05)
SAMPLES, BOXES, RADIUS = 2000, 20, 0.01
"""Training samples that methods look at; held-out ones around which the change of the outputs is bounded, and how far."""


def sparsify(run: Path, /) -> int:
    """Tell how sparse a run's model is, and how small it can be made: accuracy against what is kept, without training.

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
        [(point["method"], _line(point)) for points in curves.values() for point in points],
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
    boxes = region(dataset.test.inputs[:BOXES], RADIUS)
    return {
        name: [_point(model, method, dataset, boxes) for method in methods]
        for name, methods in _ways(structure).items()
    }


def _point(model: nn.Module, method: Reduction, dataset: Dataset, boxes: Region) -> dict[str, Any]:
    result = compress(model, method, x=dataset.train.inputs[:SAMPLES], region=boxes)
    bound = result.bound
    return {
        "method": repr(method),
        "states": result.sizes[1],
        "weights": result.weights[1] / max(1, result.weights[0]),
        "bits": result.bits[1] / max(1, result.bits[0]),
        "accuracy": accuracy(result.model, dataset.test),
        "bound": None if bound is None else float(bound.median()),
    }


def _line(point: dict[str, Any]) -> str:
    return (
        f"{point['accuracy']:.2%} with {point['states']} states, {point['weights']:.1%} of the weights, "
        f"{point['bits']:.1%} of the bits; outputs within {point['bound']:.2g}"
    )


def _summary(structure: Sparsity) -> dict[str, Any]:
    return {
        "table": dict(structure.rows()),
        "spectra": {name: asdict(spectrum) for name, spectrum in structure.spectra.items()},
        "order": {"sizes": structure.order.sizes, "cyclic": structure.order.cyclic},
    }
