"""Fenchel-Young losses: their potentials and conjugates against the definitions, and what they are good for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from implicitnets.activations import ACTIVATIONS, MaxPool, Softmax, as_activation
from implicitnets.training import FenchelYoung, Unsupported

F64 = torch.float64
NAMES = ["relu", "leaky_relu", "tanh", "sigmoid", "elu", "hardtanh", "identity"]
KINDS = [*NAMES, Softmax(size=3)]
EACH = pytest.mark.parametrize("phi", KINDS, ids=str)
COMPONENTWISE = pytest.mark.parametrize("phi", NAMES)
numbers = st.lists(st.floats(-30, 30), min_size=6, max_size=6).map(lambda v: torch.tensor(v, dtype=F64))


def inner(phi, size=6):
    """Pre-activations, and states inside the domain, away from the kinks."""
    generator = torch.Generator().manual_seed(1)
    h, g = torch.randn(2, 4, size, dtype=F64, generator=generator)
    return as_activation(phi)(g), h


@COMPONENTWISE
def test_the_derivative_of_the_potential_is_the_activation(phi):
    h = torch.linspace(-40, 40, 999, dtype=F64).requires_grad_()
    (slope,) = torch.autograd.grad(FenchelYoung(phi).potential(h).sum(), h)
    torch.testing.assert_close(slope, as_activation(phi)(h.detach()), rtol=1e-13, atol=1e-15)


@COMPONENTWISE
def test_the_conjugate_is_the_largest_of_xh_minus_the_potential(phi):
    F, h = FenchelYoung(phi), torch.linspace(-20, 20, 400_001, dtype=F64)
    x = as_activation(phi)(torch.linspace(-0.15, 5, 9, dtype=F64))
    brute = (x[:, None] * h - F.potential(h)).amax(1)
    torch.testing.assert_close(F.conjugate(x), brute, rtol=0, atol=1e-7)


def test_the_conjugate_for_softmax_is_the_negative_entropy():
    x = torch.tensor([[0.2, 0.3, 0.5], [0.0, 0.4, 0.6]], dtype=F64)
    h = torch.log(x.clamp_min(1e-300))
    value = FenchelYoung(Softmax(size=3)).conjugate(x)
    torch.testing.assert_close(value, ((x * h).sum(1) - h.logsumexp(1))[:, None])


@COMPONENTWISE
def test_it_is_infinite_outside_the_domain_and_finite_at_its_ends(phi):
    F, h = FenchelYoung(phi), torch.tensor([0.3], dtype=F64)
    for end, away in ((F.project(-torch.ones(1, dtype=F64) * 1e9), -1), (F.project(torch.ones(1, dtype=F64) * 1e9), 1)):
        assert F(end, h).isfinite()
        if end.abs() < 1e9:
            assert F(end + 1e-9 * away, h) == math.inf
    if phi in ("tanh", "sigmoid"):  # where the derivative is infinite, and not undefined
        x = F.project(torch.tensor([-9.0, 9.0], dtype=F64)).requires_grad_()
        assert torch.autograd.grad(F(x, h).sum(), x)[0].tolist() == [-math.inf, math.inf]


def test_softmax_is_infinite_off_the_simplex():
    F, h = FenchelYoung(Softmax(size=3)), torch.zeros(3, dtype=F64)
    assert F(torch.tensor([0.5, 0.5, 0.1], dtype=F64), h) == math.inf
    assert F(torch.tensor([0.5, 0.6, -0.1], dtype=F64), h) == math.inf
    assert F(torch.tensor([0.0, 0.0, 1.0], dtype=F64), h).isfinite()


@EACH
@settings(max_examples=60, deadline=None)
@given(h=numbers, g=numbers)
def test_it_is_nonnegative_and_zero_where_the_state_is_the_activation(phi, h, g):
    F = FenchelYoung(phi)
    x = as_activation(phi)(g)
    scale = 1 + F.potential(h).abs() + F.conjugate(x).abs()
    assert (F(x, h) >= 0).all()
    assert (F(as_activation(phi)(h), h) <= 1e-14 * scale).all()


@EACH
@settings(max_examples=60, deadline=None)
@given(h=numbers, g=numbers)
def test_it_is_at_least_half_the_squared_distance(phi, h, g):  # so that it is zero nowhere else
    F, x = FenchelYoung(phi), as_activation(phi)(g)
    distance = (x - as_activation(phi)(h)).square() / 2
    distance = distance.unflatten(-1, (-1, F.size)).sum(-1)
    assert (F(x, h) >= distance - 1e-12 * (1 + F.potential(h).abs())).all()


@EACH
@settings(max_examples=60, deadline=None)
@given(h=numbers, g=numbers, other=numbers, t=st.floats(0, 1))
def test_it_is_convex_in_the_state_and_in_the_pre_activation(phi, h, g, other, t):
    F, f = FenchelYoung(phi), as_activation(phi)
    x, y = f(g), f(other)
    slack = 1e-11 * (1 + F.potential(g).abs() + F.potential(other).abs() + F.conjugate(x).abs())
    slack = slack + 1e-11 * F.spread(F.conjugate(y).abs()).unflatten(-1, (-1, F.size)).amax(-1)
    assert (F(x, t * g + (1 - t) * other) <= t * F(x, g) + (1 - t) * F(x, other) + slack).all()
    if F.size == 1:
        assert (F(t * x + (1 - t) * y, h) <= t * F(x, h) + (1 - t) * F(y, h) + slack).all()


@EACH
def test_its_gradients_are_those_of_the_formula(phi):
    F = FenchelYoung(phi)
    x, h = (t.requires_grad_() for t in inner(phi))
    in_x, in_h = torch.autograd.grad(F(x, h).sum(), (x, h))
    torch.testing.assert_close(in_h, as_activation(phi)(h) - x)
    if phi in ("tanh", "sigmoid"):
        torch.testing.assert_close(in_x, (x.atanh() if phi == "tanh" else x.logit()) - h)
    if F.size == 1:  # the simplex has no inside in which one entry could be varied
        inside = {"relu": x + 0.1, "hardtanh": x / 2}.get(phi, x)
        assert gradcheck(F, (inside, h))
        assert gradgradcheck(lambda h: F(x.detach(), h), (h,))


def lpom(phi, x, h):
    """f(x) + g(h) + (x − h)²/2 with f = ∫₀ˣ (φ⁻¹(y) − y) dy and g = ∫₀ʰ (φ(y) − y) dy, by Simpson's rule."""
    inverse = {"tanh": torch.atanh, "leaky_relu": lambda y: torch.where(y > 0, y, 100 * y), "relu": lambda y: y}[phi]

    def integral(f, end):
        s = torch.linspace(0, 1, 2001, dtype=F64)
        weights = torch.full_like(s, 2 / 3)
        weights[1::2], weights[[0, -1]] = 4 / 3, 1 / 3
        y = end[..., None] * s
        return (f(y) * weights).sum(-1) / 2000 * end

    return integral(lambda y: inverse(y) - y, x) + integral(lambda y: as_activation(phi)(y) - y, h) + (x - h) ** 2 / 2


@pytest.mark.parametrize("phi", ["relu", "leaky_relu", "tanh"])
def test_it_is_the_penalty_of_lpom(phi):
    x, h = inner(phi)
    torch.testing.assert_close(FenchelYoung(phi)(x, h), lpom(phi, x, h), rtol=1e-8, atol=1e-9)


def test_for_sigmoid_it_is_the_cross_entropy_less_the_entropy():
    x, h = inner("sigmoid")
    kl = x * (x / h.sigmoid()).log() + (1 - x) * ((1 - x) / (1 - h.sigmoid())).log()
    torch.testing.assert_close(FenchelYoung("sigmoid")(x, h), kl)


@settings(max_examples=60, deadline=None)
@given(v=numbers)
def test_the_projection_on_the_simplex_is_the_nearest_point(v):
    x = FenchelYoung(Softmax(size=3)).project(v).unflatten(-1, (-1, 3))
    assert (x >= 0).all()
    torch.testing.assert_close(x.sum(1), torch.ones(2, dtype=F64))
    gap = v.unflatten(-1, (-1, 3)) - x
    assert (gap @ torch.eye(3, dtype=F64) - (gap * x).sum(1, keepdim=True) <= 1e-9).all()  # for every corner


@COMPONENTWISE
def test_the_projection_on_an_interval_is_the_identity_inside(phi):
    x, _ = inner(phi)
    assert torch.equal(FenchelYoung(phi).project(x), x)


@EACH
def test_single_precision_is_kept(phi):
    x, h = (t.float() for t in inner(phi))
    assert FenchelYoung(phi)(x, h).dtype == torch.float32


@pytest.mark.parametrize(
    "phi", ["softplus", "gelu", MaxPool(size=2), torch.sin], ids=lambda value: getattr(value, "__name__", str(value))
)
def test_others_are_refused_with_what_there_is(phi):
    with pytest.raises(Unsupported, match=r"relu, leaky_relu, tanh, sigmoid.*Softmax"):
        FenchelYoung(phi)


def test_a_name_and_its_value_are_the_same():
    assert FenchelYoung("relu") == FenchelYoung(ACTIVATIONS["relu"])
