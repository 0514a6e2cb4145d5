"""How the figures of these experiments look."""

from matplotlib.figure import Figure

from implicitnets.plots import BLUE, GRAY, GREEN, ORANGE

__all__ = ["BLUE", "GRAY", "GREEN", "ORANGE", "panels"]


def panels(*labels, width=5.2):
    """A figure with one panel for each (title, x label, y label), side by side."""
    figure = Figure(figsize=(width * len(labels), 4.4), layout="constrained")
    row = figure.subplots(1, len(labels), squeeze=False)[0]
    for axes, (title, x, y) in zip(row, labels, strict=True):
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set(xlabel=x, ylabel=y)
        axes.grid(color="#d9dee3", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, row
