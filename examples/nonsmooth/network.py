"""Equilibrium networks with relu, trained while all their Clarke elements stay invertible.

x = relu(Ax + Bu + b) is differentiated by the implicit function theorem, with a chosen slope of relu at its kink. That
is justified if I − DA is invertible for every diagonal D in [0, 1] (Bolte, Le, Pauwels and Silveti-Falls 2021). Two
ways to make sure of it: ‖A‖∞ < 1, and the monotone network A = (1 − m) I − LᵀL + U − Uᵀ of Winston and Kolter (2020),
whose norms may be large. A network with neither can lose it in training, and learns on as if nothing had happened.
"""

import warnings
from dataclasses import dataclass

import torch
from drawing import BLUE, GREEN, ORANGE, panels
from torch.nn.functional import cross_entropy

import implicitnets as inn
from implicitnets import data
from implicitnets.analysis import Invertibility, invertibility
from implicitnets.constraints import InfNorm, Monotone
from implicitnets.nonsmooth import Midpoint
from implicitnets.solvers import Anderson

CONSTRAINTS = {"infinity norm": InfNorm(kappa=0.95), "monotone": Monotone(m=0.1), "unconstrained": None}


@dataclass(frozen=True, kw_only=True)
class Record:
    """After an epoch: the held-out accuracy, what is proved of the model, and how often a solve did not converge."""

    accuracy: float
    answer: Invertibility
    warnings: int


def network(constraint, states=40):
    torch.manual_seed(0)
    strategies = {"solver": Anderson(max_steps=300), "backward": inn.Implicit(selection=Midpoint())}
    return inn.models.ImplicitModel(64, states, 10, constraint=constraint, **strategies)


def train(model, digits, epochs, rate=1e-2):
    """One record for each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    shuffle = torch.Generator().manual_seed(0)
    records = []
    for _ in range(epochs):
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always", inn.ConvergenceWarning)
            for inputs, labels in digits.train.batches(64, generator=shuffle):
                loss = cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            held_out = accuracy(model, digits.test)
        answer = invertibility(model, time_limit=0.5)
        records.append(Record(accuracy=held_out, answer=answer, warnings=len(raised)))
    return records


def accuracy(model, part):
    with torch.no_grad():
        return (model(part.inputs).argmax(1) == part.labels).double().mean().item()


def main(quick):
    digits, histories = data.digits(), {}
    for name, constraint in CONSTRAINTS.items():
        histories[name] = train(network(constraint), digits, epochs=1 if quick else 10)
        for epoch, record in enumerate(histories[name], 1):
            answer = record.answer
            print(
                f"  {name:>13}, epoch {epoch:2}: {record.accuracy:.1%}, {answer.verdict} by {answer.criterion},"
                f" margin {answer.margin:.1e}, solves that failed: {record.warnings}"
            )
    return draw(histories)


def draw(histories):
    figure, (left, right) = panels(
        ("Held-out digits", "epoch", "classified rightly"),
        ("Certificate", "epoch", "margin of the criterion that holds"),
    )
    for color, (name, records) in zip((BLUE, GREEN, ORANGE), histories.items(), strict=True):
        epochs = range(1, len(records) + 1)
        margins = [r.answer.margin if r.answer.verdict == "proved" else 0.0 for r in records]
        left.plot(epochs, [r.accuracy for r in records], color=color, label=name)
        right.plot(epochs, margins, color=color)
        for epoch, record in zip(epochs, records, strict=True):
            mark = {"proved": "o", "unknown": "$?$", "refuted": "X"}[record.answer.verdict]
            right.plot(epoch, margins[epoch - 1], mark, color=color, ms=7)
    left.legend(frameon=False)
    right.set_title("Certificate: ● proved, ? unknown, ✖ refuted", loc="left", fontweight="bold")
    return figure
