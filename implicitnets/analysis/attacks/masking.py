"""Whether an attack says something of a model, or only of the gradients that led it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .blackbox import SPSA, Noise
from .methods import FGSM, PGD, AttackMethod
from .result import AttackResult
from .run import attack
from .victim import Gradient, Victim, margins, quiet

__all__ = ["Check", "Masking", "check_masking"]

SLACK = 0.02
"""By this share of the samples may one attack do worse than another by chance."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing to look at.

    Attributes:
        name: What should hold.
        passed: Whether it does.
        numbers: What was measured, by name.
    """

    name: str
    passed: bool
    numbers: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Masking:
    """What ``check_masking`` found; its ``repr`` is a table.

    Attributes:
        checks: All that was looked at.
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing hints at masked gradients."""
        return all(check.passed for check in self.checks)

    def __repr__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        return "\n".join(
            f"{'ok  ' if check.passed else 'FAIL'}  {check.name:<{width}}  "
            + ", ".join(f"{name} {value:.3g}" for name, value in check.numbers.items())
            for check in self.checks
        )


def check_masking(
    model: nn.Module,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    radius: float,
    norm: float | str = "inf",
    domain: tuple[float, float] | None = None,
    method: AttackMethod = PGD(targets=9),
    gradient: Gradient = "model",
    generator: torch.Generator | None = None,
) -> Masking:
    """Look for signs that an attack fails because of the gradients it gets, not because the model is robust.

    The list is that of Athalye, Carlini and Wagner (2018, "Obfuscated gradients give a false sense of security") and
    Carlini et al. (2019, "On evaluating adversarial robustness"), and what is of implicit models: Yang, Pang and Liu
    (2022, "A closer look at the adversarial robustness of deep equilibrium models") find gradients masked where solver
    and backward go apart. By default the attack is led by the model's own solver and backward: what fails then, but not
    with gradient="exact", is due to these settings.

    Examples:
        >>> from implicitnets.models import ImplicitModel
        >>> model, x = ImplicitModel(inputs=16, states=8, outputs=3), torch.rand(20, 16)
        >>> report = check_masking(model, x, radius=0.2, gradient="exact")
        >>> report.passed
        True

    Args:
        model: As for ``attack``, and so are the next arguments.
        x: (batch, ...); a few dozen samples will do.
        labels: (batch,).
        radius: One number.
        norm: "inf", 2 or 1.
        domain: The least and the largest value of an entry.
        method: The attack in question.
        gradient: What leads it.
        generator: Of all that is random.

    Raises:
        ValueError: If an argument does not fit.
    """
    if not len(x):
        raise ValueError("x has no samples, so nothing can be checked")
    generator = generator or torch.Generator().manual_seed(0)
    how: dict[str, Any] = {"norm": norm, "domain": domain, "generator": generator}

    def run(method: AttackMethod, radius: float = radius, gradient: Gradient = gradient) -> AttackResult:
        with quiet():
            return attack(model, x, labels, radius=radius, method=method, gradient=gradient, **how)

    white = run(method)
    labels = white.labels
    victim, width = Victim(model, tuple(x.shape[1:]), torch.float64, gradient), _width(x, domain)
    u = x.detach().double().flatten(1)
    logits, _, g, _ = victim.gradient(u, labels, "margin")
    far = width * {"inf": 1.0, "2": math.sqrt(x[0].numel()), "1": float(x[0].numel())}[str(norm).removesuffix(".0")]
    far = far if domain is not None else 10 * far + 100 * radius
    return Masking(
        checks=(
            _gradients(margins(logits, labels), g, width),
            _differences(victim, u, labels, g, generator),
            _compared("many steps beat one", white, FGSM=run(FGSM()), attack=white),
            _compared("gradients beat noise", white, noise=run(Noise()), attack=white),
            _compared("gradients beat differences", white, SPSA=run(SPSA()), attack=white),
            _compared("exact gradients find no more", white, exact=run(method, gradient="exact"), attack=white),
            _unbounded(run, method, far),
            _radii(run, method, white, radius),
            _solved(white),
            _as_set(model, white),
        )
    )


def _compared(name: str, best: AttackResult, **results: AttackResult) -> Check:
    """Whether no other attack fools more samples than the best."""
    numbers = {name: result.accuracy for name, result in results.items()}
    return Check(name=name, passed=best.accuracy <= min(numbers.values()) + SLACK, numbers=numbers)


def _width(x: Tensor, domain: tuple[float, float] | None) -> float:
    """How far entries can go, or go from each other where nothing is said."""
    return float(x.max() - x.min()) if domain is None else domain[1] - domain[0]


def _gradients(margin: Tensor, g: Tensor, width: float) -> Check:
    """Whether the gradient of the margin is not so small that the whole domain would not matter."""
    gain = g.abs().sum(1) * width / margin.abs().clamp_min(torch.finfo(g.dtype).tiny)
    vanished = float((gain < 1e-6).double().mean())
    numbers = {"share vanished": vanished, "median gain over the domain": float(gain.median())}
    return Check(name="gradients do not vanish", passed=vanished <= SLACK, numbers=numbers)


def _differences(victim: Victim, u: Tensor, labels: Tensor, g: Tensor, generator: torch.Generator) -> Check:
    """Whether the gradient predicts differences of the exact margin, along itself and along a random direction."""
    random = torch.randn(u.shape, generator=generator, dtype=u.dtype).to(u.device)
    errors = []
    for direction in (random, torch.where(g.abs().amax(1, keepdim=True) > 1e-100, g, random)):
        way = 1e-5 * direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True)
        down, up = (margins(victim.logits(v)[0], labels) for v in (u - way, u + way))
        found, told = (down - up) / 2, (g * way).sum(1)
        errors.append((found - told).abs() / torch.maximum(found.abs(), told.abs()).clamp_min(1e-12))
    error = float(torch.maximum(*errors).median())
    return Check(name="gradients predict differences", passed=error < 1e-2, numbers={"median relative error": error})


def _unbounded(run: Callable[..., AttackResult], method: AttackMethod, size: float) -> Check:
    left = run(method, radius=size).accuracy
    return Check(name="without a bound nothing is left", passed=left == 0, numbers={"accuracy": left})


def _radii(run: Callable[..., AttackResult], method: AttackMethod, white: AttackResult, radius: float) -> Check:
    results = {radius / 2: run(method, radius=radius / 2), radius: white, 2 * radius: run(method, radius=2 * radius)}
    left = [result.accuracy for result in results.values()]
    numbers = {f"accuracy at {size:.3g}": result.accuracy for size, result in results.items()}
    falls = all(b <= a + SLACK for a, b in pairwise(left))
    return Check(name="larger radii are not safer", passed=falls, numbers=numbers)


def _solved(white: AttackResult) -> Check:
    missed = float(white.unconverged.sum()) / float(white.evaluations.sum())
    return Check(
        name="equilibria and gradients are found",
        passed=missed == 0,
        numbers={"share missed": missed, "samples unknown": float(white.unknown.sum())},
    )


@torch.no_grad()
def _as_set(model: nn.Module, white: AttackResult) -> Check:
    """Whether the model with its own solver says of the adversarial inputs what it says at its equilibria."""
    twin = copy.deepcopy(model).eval()
    with quiet():
        said = twin(white.inputs).argmax(1)
    differ = float(((said == white.labels) & white.success).double().mean())
    return Check(name="the model as it is set agrees", passed=differ <= SLACK, numbers={"share otherwise": differ})
