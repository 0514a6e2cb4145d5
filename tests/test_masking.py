"""Checks for masked gradients find them where they are, and nothing else."""

import pytest
import torch
from torch import nn

from implicitnets import Unroll
from implicitnets.analysis import PGD, Check, Masking, check_masking
from implicitnets.models import ImplicitModel
from implicitnets.solvers import Picard


class Around(nn.Module):
    """A model in a wrapping."""

    def __init__(self, model):
        super().__init__()
        self.model = model


class Saturated(Around):
    """Says the same as the model, in probabilities of which most are 0 or 1."""

    def forward(self, x):
        return (1e3 * self.model(x)).softmax(1)


class Detached(Around):
    """Says the same as the model, whose gradient is lost."""

    def forward(self, x):
        return self.model(x.detach()) + 0 * x.sum(1, keepdim=True)


class Rounded(Around):
    """Rounds its inputs, and has the gradient of one that does not in their place: zero."""

    def forward(self, x):
        return self.model((20 * x).round() / 20)


def model(**options):
    torch.manual_seed(0)
    made = ImplicitModel(8, 10, 3, constraint=None, **options)
    with torch.no_grad():
        made.C.mul_(4)
        made.A.mul_(1.8)  # to a contraction of 0.9
    return made


def loose():
    return model(solver=Picard(max_steps=1))


def failed(made, **how):
    x = torch.rand(20, 8, generator=torch.Generator().manual_seed(1))
    report = check_masking(made, x, radius=0.1, domain=(0, 1), method=PGD(steps=5), **how)
    assert report.passed == (not any(not check.passed for check in report.checks))
    assert repr(report).count("\n") == len(report.checks) - 1
    return {check.name for check in report.checks if not check.passed}


@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_a_sound_model_passes(norm):
    x = torch.rand(20, 8, generator=torch.Generator().manual_seed(1))
    report = check_masking(model(), x, radius={"inf": 0.1, 2: 0.3, 1: 0.6}[norm], norm=norm, method=PGD(steps=10))
    assert report.passed, report


MASKED = {
    "saturated": (lambda: Saturated(model()), {"gradients do not vanish", "without a bound nothing is left"}),
    "detached": (
        lambda: Detached(model()),
        {"gradients do not vanish", "gradients predict differences", "gradients beat noise"},
    ),
    "rounded": (lambda: Rounded(model()), {"gradients do not vanish", "gradients beat noise"}),
    "jacobian-free": (lambda: model(backward=Unroll()), {"gradients predict differences"}),
    "loose solver": (loose, {"equilibria and gradients are found", "the model as it is set agrees"}),
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_gradients_are_found(name):
    make, signs = MASKED[name]
    assert signs <= failed(make())


def test_exact_gradients_are_not_masked_by_the_backward():
    assert failed(model(backward=Unroll()), gradient="exact") == set()


def test_exact_gradients_leave_the_settings_to_be_blamed():
    assert failed(loose(), gradient="exact") == {"the model as it is set agrees"}


def test_a_report_is_a_table():
    checks = (
        Check(name="one", passed=True, numbers={"a": 0.5, "b": 2.0}),
        Check(name="another", passed=False, numbers={"c": 1e-9}),
    )
    assert repr(Masking(checks=checks)) == "ok    one      a 0.5, b 2\nFAIL  another  c 1e-09"
    assert not Masking(checks=checks).passed
