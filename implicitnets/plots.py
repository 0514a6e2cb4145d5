"""The plots of a report, each a function from records to a figure; matplotlib's global state is not used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, MaxNLocator, PercentFormatter
from torch import Tensor

from .analysis import Sensitivity
from .experiment import Epoch
from .solution import Solution

__all__ = [
    "compression",
    "learning",
    "residuals",
    "robustness",
    "save",
    "sensitivity_images",
    "steps",
    "structure",
]

BLUE, ORANGE, GREEN, GRAY = "#0072b2", "#d55e00", "#009e73", "#5f6b76"  # told apart by color-blind eyes too


def learning(history: Sequence[Epoch]) -> Figure:
    """Loss and accuracy over the epochs, side by side."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row.epoch for row in history]
    test = [row.test_accuracy for row in history]
    _dress(left, "Training loss", "epoch", "cross entropy (nats, log scale)")
    left.semilogy(epochs, [row.loss for row in history], color=BLUE)
    _dress(right, f"Accuracy: {test[-1]:.2%} held out", "epoch", "samples classified rightly")
    right.plot(epochs, [row.train_accuracy for row in history], color=BLUE, label="training, while learning")
    right.plot(epochs, test, color=ORANGE, label="held out")
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.set_ylim(max(0.0, min(test) - 0.05), 1.005)
    right.legend(frameon=False, loc="lower right")
    return figure


def steps(history: Sequence[Epoch]) -> Figure:
    """The work of the solvers over the epochs: their steps for a sample, and what they evaluate for a batch."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row.epoch for row in history]
    _dress(left, "Solver steps", "epoch", "steps per sample")
    left.plot(epochs, [row.forward_steps for row in history], color=BLUE, label="forward, mean")
    left.plot(epochs, [row.forward_steps_max for row in history], color=BLUE, ls=":", label="forward, largest")
    _dress(right, "Evaluations", "epoch", "evaluations per batch")
    right.plot(epochs, [row.forward_evaluations for row in history], color=BLUE, label="forward: f(z)")
    if history[-1].backward_steps is not None:
        left.plot(epochs, [row.backward_steps for row in history], color=ORANGE, label="backward, mean")
        right.plot(epochs, [row.backward_evaluations for row in history], color=ORANGE, label="backward: Jᵀw")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
    return figure


def residuals(solutions: Mapping[str, Solution]) -> Figure:
    """The residual of each solver after each iteration: the median over the samples, and the largest.

    Raises:
        ValueError: If a solution has no trace.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    samples = max(len(solution.residual) for solution in solutions.values())
    _dress(axes, f"Convergence on {samples} held-out samples", "solver iteration", "‖f(z) − z‖₂ (log scale)")
    for color, (name, solution) in zip((GRAY, BLUE, ORANGE, GREEN), solutions.items(), strict=False):
        if solution.trace is None:
            raise ValueError(f"the solution of {name} has no trace: solve with record=True")
        median = solution.trace.median(dim=1).values
        axes.semilogy(median.tolist(), color=color, label=f"{name}, median")
        axes.semilogy(solution.trace.amax(dim=1).tolist(), color=color, ls=":", label=f"{name}, largest")
    axes.legend(frameon=False)
    return figure


def structure(before: Tensor, after: Tensor, states: int) -> Figure:
    """The matrix |A B; C D|, and the same with the states in the order in which they depend on each other.

    Args:
        before: (rows + outputs, states + inputs).
        after: Likewise.
        states: How many columns are those of states, and how many rows at least.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    largest = max(float(before.max()), torch.finfo(before.dtype).tiny)
    norm = LogNorm(vmin=1e-4 * largest, vmax=largest)
    for axes, matrix, title in zip(
        figure.subplots(1, 2), (before, after), ("|A B; C D|", "States reordered, last ones first"), strict=True
    ):
        shown = matrix.clamp_min(1e-4 * largest).numpy()
        image = axes.imshow(shown, norm=norm, cmap="Greys", aspect="auto")
        image.set_interpolation("nearest")
        axes.axvline(states - 0.5, color=ORANGE, linewidth=1)
        axes.axhline(states - 0.5, color=ORANGE, linewidth=1)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel("states | inputs")
        axes.set_ylabel("outputs | states")
    figure.colorbar(image, ax=figure.axes, label="size of the entry, log scale")
    return figure


def compression(curves: Mapping[str, Sequence[Mapping[str, Any]]], whole: float) -> Figure:
    """Held-out accuracy against the share of the weights and of the bits that are kept.

    Args:
        curves: By name, points with "weights", "bits" and "accuracy", all shares.
        whole: The accuracy of the whole model.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, kept in zip(figure.subplots(1, 2, sharey=True), ("weights", "bits"), strict=True):
        _dress(axes, f"Accuracy by {kept} kept", f"share of the {kept}", "samples classified rightly")
        for name, points in curves.items():
            axes.plot([p[kept] for p in points], [p["accuracy"] for p in points], "o-", ms=4, label=name)
        axes.axhline(whole, color=GRAY, linewidth=0.8)
        axes.xaxis.set_major_locator(AutoLocator())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.axes[1].legend(frameon=False, loc="lower right", fontsize=8)
    return figure


def sensitivity_images(found: Sensitivity, shape: tuple[int, int]) -> Figure:
    """One image for each output, and one of the largest: how far it can move for one unit of each pixel.

    Args:
        found: Of a model whose inputs are images of one channel.
        shape: Their height and width.

    Raises:
        ValueError: If the model has not so many inputs.
    """
    outputs, inputs = found.matrix.shape
    if inputs != shape[0] * shape[1]:
        raise ValueError(f"shape={shape}: the model has {inputs} inputs, which are no image of this height and width")
    columns = min(6, outputs + 1)
    figure = Figure(figsize=(1.7 * columns, 1.9 * -(-(outputs + 1) // columns)), layout="constrained")
    panels = figure.subplots(-(-(outputs + 1) // columns), columns, squeeze=False).flatten()
    images = [found.input_scores(k) for k in range(outputs)] + [found.input_scores()]
    for axes, image, title in zip(panels, images, [*(f"output {k}" for k in range(outputs)), "any"], strict=False):
        shown = axes.imshow(image.unflatten(0, shape).numpy(), vmin=0, vmax=float(found.matrix.max()), cmap="viridis")
        axes.set_title(title, fontsize=9)
    for axes in panels:
        axes.set_axis_off()
    figure.colorbar(shown, ax=list(panels), label="bound of |∂ output / ∂ pixel|", shrink=0.8)
    return figure


def robustness(radii: Sequence[float], attacked: Sequence[float], certified: Sequence[float]) -> Figure:
    """Shares of the samples that are classified rightly, by radius: what an attack leaves, and what is proved."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    _dress(axes, "The truth is between the two", "radius", "samples classified rightly")
    axes.plot(radii, attacked, "o-", ms=4, color=ORANGE, label="after an attack, at most")
    axes.plot(radii, certified, "o-", ms=4, color=BLUE, label="proved, at least")
    axes.fill_between(radii, certified, attacked, color=GRAY, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(AutoLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(0, 1.005)
    axes.legend(frameon=False, loc="lower left")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=150, format="png")


def _dress(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#d9dee3", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # epochs and iterations are whole
