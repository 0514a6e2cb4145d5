"""Certificates hold: equilibria do not leave the bounds, whoever looks for them, and wrong bounds are found out."""

import pytest
from certificates import MODELS, REGIONS, equilibria, escapes, form_of, problem_of

from implicitnets.analysis.certify import ClosedForm, Crown, Interval, MonotoneBall

BOUNDERS = {
    "closed form": ClosedForm(),
    "local closed form": ClosedForm(rounds=3),
    "ball": MonotoneBall(),
    "interval": Interval(),
    "crown": Crown(),
    "crown, from outside, one step": Crown(tries=0, steps=1),
}
TOLERANCE = 1e-9  # of the equilibria that are found


@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("name", MODELS)
def test_equilibria_stay_within_the_bounds(name, kind):
    form, problem = form_of(name), problem_of(name, kind)
    points = equilibria(form, problem.region, 100)
    for bounder in BOUNDERS.values():
        assert escapes(bounder, problem, form, points) <= TOLERANCE, bounder
