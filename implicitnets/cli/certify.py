"""``implicitnets certify``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import Parameter
from torch import nn

from .. import data, plots, storage
from ..analysis import attack
from ..analysis import certify as prove
from ..data import Split
from .console import say, steps, table
from .flags import UsageError
from .runs import recorded

__all__ = ["certify"]

RADII = {"inf": (0.01, 0.02, 0.03, 0.05, 0.1), "2": (0.1, 0.2, 0.3, 0.5, 1.0), "1": (0.2, 0.5, 1.0, 2.0, 4.0)}
"""What is asked by default, in units of pixels from 0 to 1."""
FILE = "robustness.json"


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is known at a radius, as shares of the samples.

    Attributes:
        radius: Of the uncertainty.
        attacked: Classified rightly whatever the attack found: the true share is at most this.
        certified: Proved to be classified rightly: it is at least this.
        seconds: Of proof, for a sample.
    """

    radius: float
    attacked: float
    certified: float
    seconds: float


def certify(
    run: Path,
    /,
    *,
    radius: Annotated[tuple[float, ...], Parameter(negative=(), consume_multiple=True)] = (),
    norm: Literal["inf", "2", "1"] = "inf",
    samples: int = 100,
    method: str = "crown",
) -> int:
    """Prove how many held-out samples a run's model classifies rightly however they are changed within a radius.

    Beside it stands what an attack leaves: the truth is between the two. Pixels stay between 0 and 1. What is done is
    kept in the folder of the run, in robustness.json, and not done again.

    Args:
        run: The folder of the run, the --out of implicitnets train. A plot is written there too.
        radius: One or more radii, of pixels from 0 to 1. If not given, five that suit the norm.
        norm: Norm of the change: inf (every pixel by so much), 2 or 1.
        samples: So many of the held-out samples, the first ones.
        method: How to prove it: interval, crown, lp, milp, ... or auto, from cheap to exact, about a second a sample.

    Raises:
        UsageError: If there is no report in that folder, or an argument is out of range.
    """
    found = recorded(run)
    whole = data.load(found.experiment.data).test
    if samples < 1:
        raise UsageError(f"--samples: must be at least 1, not {samples}")
    part = Split(inputs=whole.inputs[:samples], labels=whole.labels[:samples])
    radii = sorted(set(radius or RADII[norm]))
    key = f"{method}, norm {norm}, {len(part)} samples"
    path = run / FILE
    record = storage.read_json(path) if path.exists() else {}
    kept = record.setdefault(key, {})
    try:
        for size in steps([r for r in radii if f"{r:g}" not in kept], "radius"):
            kept[f"{size:g}"] = asdict(_measure(found.model, part, size, norm, method))
            storage.write_json(path, record)
    except ValueError as error:  # a method or a radius that can't be
        raise UsageError(str(error)) from error
    points = [Point(**kept[f"{size:g}"]) for size in radii]
    with torch.no_grad():
        clean = float((found.model(part.inputs).argmax(1) == part.labels).double().mean())
    table(f"{run}: {len(part)} held-out samples of {found.experiment.data}, norm {norm}", _rows(clean, points))
    attacked, proved = ([clean, *shares] for shares in ([p.attacked for p in points], [p.certified for p in points]))
    plots.save(plots.robustness([0.0, *radii], attacked, proved), run / f"robustness-{norm}.png")
    say(f"Written: {run}/ ({FILE}, robustness-{norm}.png)")
    return 0


def _measure(model: nn.Module, part: Split, radius: float, norm: str, method: str) -> Point:
    """Attack, and prove, the same samples."""
    how: dict[str, Any] = {"radius": radius, "norm": norm, "domain": (0.0, 1.0)}
    proved = prove(model, part.inputs, part.labels, method=method, **how)
    attacked = attack(model, part.inputs, part.labels, **how)
    survived = ~(attacked.success | proved.falsified)
    return Point(
        radius=radius,
        attacked=float(survived.double().mean()),
        certified=float(proved.robust.double().mean()),
        seconds=sum(certificate.seconds for certificate in proved) / len(part),
    )


def _rows(clean: float, points: list[Point]) -> list[tuple[str, str]]:
    return [("as they are", f"{clean:.1%} classified rightly")] + [
        (
            f"within {p.radius:g}",
            f"{p.certified:.1%} proved, at most {p.attacked:.1%} by attack, {p.seconds:.2g} s a sample",
        )
        for p in points
    ]
