"""Regions of inputs: supports, maximizers, projections and samples agree with each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import normal

from implicitnets.analysis.regions import region

KINDS = {
    "box": {"norm": "inf"},
    "ball": {"norm": 2},
    "diamond": {"norm": 1},
    "a few entries": {"norm": "inf", "cardinality": 2},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def inputs():
    return normal(4, 6, dtype=torch.float64).sigmoid()


def make(kind, radius=0.3, domain=None):
    return region(inputs(), radius, **KINDS[kind], domain=domain)


@each_kind
@pytest.mark.parametrize("domain", [None, (0.0, 1.0), (0.12, 0.93)])
def test_support_is_reached_and_not_exceeded(kind, domain):
    space = make(kind, domain=domain)
    w = normal(4, 5, 6, dtype=torch.float64, seed=3)
    support = space.support(w)
    points = torch.stack([space.sample() for _ in range(200)], 1)
    best = torch.stack([space.maximizer(w[:, i]) for i in range(5)], 1)
    for u in (points, best):
        reached = torch.einsum("bki,bni->bkn", w, u - space.centre[:, None]).amax(-1)
        assert (reached <= support + 1e-12).all()
    torch.testing.assert_close(torch.linalg.vecdot(w, best - space.centre[:, None]), support)


@each_kind
def test_shared_functionals_are_those_of_every_sample(kind):
    space = make(kind)
    w = normal(5, 6, dtype=torch.float64, seed=3)
    torch.testing.assert_close(space.support(w), space.support(w.expand(4, 5, 6)))


@each_kind
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**30), size=st.floats(0, 3), bounded=st.booleans())
def test_points_are_inside_and_stay_where_they_are(kind, seed, size, bounded):
    space = make(kind, domain=(0, 1) if bounded else None)
    draw = torch.Generator().manual_seed(seed)
    near = space.project(space.centre + size * torch.randn(4, 6, generator=draw, dtype=torch.float64))
    for u in (near, space.sample(draw), space.maximizer(torch.randn(4, 6, generator=draw, dtype=torch.float64))):
        assert space.contains(u).all()
        torch.testing.assert_close(space.project(u), u, rtol=0, atol=1e-12)
        assert (u >= space.low).all()
        assert (u <= space.high).all()
    step = near - space.centre
    norm = {"box": torch.inf, "ball": 2, "diamond": 1, "a few entries": torch.inf}[kind]
    assert (torch.linalg.vector_norm(step, norm, dim=1) <= 0.3 + 1e-12).all()
    assert kind != "a few entries" or ((step != 0).sum(1) <= 2).all()


def test_a_radius_for_each_feature_or_sample():
    x = inputs()
    per_feature = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]).double()
    box = region(x, per_feature)
    torch.testing.assert_close(box.high - box.centre, per_feature.expand(4, 6))
    ball = region(x, torch.arange(4.0).double()[:, None], norm=2)
    torch.testing.assert_close(ball.radius, torch.arange(4.0).double())
    assert not ball.contains(x + 1.0)[:3].any()
    assert torch.equal(ball.take(torch.tensor([2, 0])).radius, torch.tensor([2.0, 0.0]).double())


def test_images_are_flattened():
    box = region(torch.rand(2, 1, 3, 3), torch.full((1, 1, 3, 1), 0.1))
    assert box.centre.shape == (2, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"radius": -0.1}, "radius=-0.1: it must be at least 0"),
        ({"norm": 3}, 'the norms are "inf", 2 and 1'),
        ({"cardinality": 2, "norm": 2}, "is for norm='inf'"),
        ({"domain": (0.0, 0.2)}, "domain="),
        ({"radius": torch.ones(5)}, "does not broadcast"),
        ({"x": torch.zeros(3, 2, dtype=torch.int64)}, "floating point"),
        ({"x": torch.tensor([[torch.nan]])}, "not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        region(**{"x": inputs(), "radius": 0.1, **arguments})
