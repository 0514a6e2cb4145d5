"""Proximal maps against grids, a general optimizer, optimality conditions, and the identities of convex analysis."""

import math
import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import implicitnets as inn
from implicitnets import prox
from implicitnets.balls import simplex_threshold

SHRINKAGES = [cls(0.7) for cls in (prox.L0, prox.L1, prox.L12, prox.L23, prox.L2)]
SEPARABLE = [
    *SHRINKAGES,
    *(prox.Binary(distance, level=0.8) for distance in SHRINKAGES),
    prox.ReverseHuber(0.7),
    prox.ReverseHuber(0.7, 1.2),
    prox.Box(-0.3, 1.2),
    prox.Box(None, 1.2),
    prox.NonNegative(),
]
ROWS = [prox.InfNormBall(0.9), prox.Simplex(1.5)]
GROUPS = [prox.GroupL1(0.7), prox.GroupL1(0.7, dim=0), prox.GroupL1(0.7, dim=(0, 1))]
SETS = [prox.Box(-0.3, 1.2), prox.NonNegative(), *ROWS]
CONVEX = [
    *(prox.L1(0.7), prox.L2(0.7), prox.ReverseHuber(0.7, 1.2), *GROUPS, prox.LInf(0.7)),
    *(prox.Nuclear(0.7, rtol=1e-12, max_steps=5000), *SETS),
]
EVERY = [*SEPARABLE, *GROUPS, *ROWS, prox.LInf(0.7), prox.Nuclear(0.7)]
SPECIAL = [0.8, -0.8, 1.2, -0.3]  # corners of the penalties
GRID = torch.tensor([*np.linspace(-6, 6, 12_001), *SPECIAL], dtype=torch.float64)
seeds = st.integers(0, 10_000)
few = settings(max_examples=25, deadline=None)
named = {"ids": repr}


def sample(seed, *shape, spread=1.0):
    """A matrix and steps that differ by up to 10^(2 spread)."""
    generator = torch.Generator().manual_seed(seed)
    v = 1.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    step = 10 ** (spread * (2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1))
    return v, step


def objective(penalty, x, v, step):
    return (penalty.penalty(x) + ((x - v).square() / (2 * step)).sum()).item()


@cache
def on_grid(penalty):
    return torch.stack([penalty.penalty(x) for x in GRID])


def inner(a, b, step):
    return (a * b / step).sum().item()


class TestSeparable:
    @pytest.mark.parametrize("penalty", SEPARABLE, **named)
    @pytest.mark.parametrize("step", [0.02, 0.3, 1.0, 7.0])
    def test_no_point_of_a_grid_is_better(self, penalty, step):
        values = on_grid(penalty)
        for v in torch.cat([torch.linspace(-5, 5, 41), torch.tensor([1e-3, 0.799, 1.3])]).double():
            x = penalty(v[None], step)
            best = (values + (GRID - v).square() / (2 * step)).min().item()
            assert objective(penalty, x, v, step) <= best + 1e-12

    @pytest.mark.parametrize("penalty", SEPARABLE, **named)
    def test_every_coordinate_has_its_own_step(self, penalty):
        assert penalty.separable
        v, step = sample(0, 4, 5, spread=2)
        alone = [penalty(a[None], s.item())[0] for a, s in zip(v.flatten(), step.flatten(), strict=True)]
        assert torch.allclose(penalty(v, step).flatten(), torch.stack(alone), rtol=1e-14, atol=0)

    @pytest.mark.parametrize(
        ("cls", "bound"),
        [
            (prox.L0, lambda t: math.sqrt(2 * t)),
            (prox.L1, lambda t: t),
            (prox.L12, lambda t: 1.5 * t ** (2 / 3)),
            (prox.L23, lambda t: 2 * (2 * t / 3) ** 0.75),
        ],
    )
    @pytest.mark.parametrize("t", [1e-3, 0.5, 40.0])
    def test_is_zero_up_to_the_threshold_and_jumps_there_where_it_is_not_convex(self, cls, bound, t):
        edge = bound(t)
        below, above = cls(t)(torch.tensor([0.999999, 1.000001], dtype=torch.float64) * edge).tolist()
        assert below == 0
        jump = {prox.L0: 1, prox.L1: 0, prox.L12: 2 / 3, prox.L23: 1 / 2}[cls]
        assert above / edge == pytest.approx(jump, abs=1e-5)

    def test_ties(self):
        # t = 1/2 has thresholds that are numbers of the machine: √(2t) = 1; and (3/2) t^⅔ is one for t = 1/8.
        one = torch.ones(1, dtype=torch.float64)
        assert prox.L0(0.5)(one).item() == 0
        assert prox.L12(0.125)(0.375 * one).item() == 0
        assert prox.Binary(prox.L1(0.1))(0 * one).item() == pytest.approx(0.1)

    @pytest.mark.parametrize("penalty", SHRINKAGES, **named)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e6])
    def test_a_tiny_step_changes_nothing_and_a_huge_one_leaves_little(self, penalty, dtype, size):
        v = torch.tensor([-size, size], dtype=dtype)
        assert torch.allclose(penalty(v, 1e-38 * size), v, rtol=1e-6, atol=0) or size == 1e-30
        assert (penalty(v, 1e30).abs() <= 1e-20 * size).all()
        assert penalty(torch.zeros(2, dtype=dtype)).tolist() == [0, 0]

    @pytest.mark.parametrize("penalty", SHRINKAGES, **named)
    def test_weight_zero_is_no_penalty(self, penalty):
        v = torch.tensor([-2.0, 0.0, 1e-20, 3.0])
        assert torch.allclose(replace(penalty, weight=0.0)(v), v, rtol=1e-6, atol=0)


class TestGroups:
    @given(seeds)
    @few
    @pytest.mark.parametrize("penalty", GROUPS, **named)
    def test_satisfies_its_optimality_condition(self, penalty, seed):
        v, step = sample(seed, 4, 6, spread=2)
        x = penalty(v, step)
        norm = torch.linalg.vector_norm(x, dim=penalty.dim, keepdim=True).expand_as(x)
        pull = (v - x) / step  # must be a subgradient
        outside = torch.where(norm > 0, pull - penalty.weight * x / norm, 0.0)
        assert (outside.abs() <= 1e-12 * (v / step).abs() + 1e-12).all()
        length = torch.linalg.vector_norm(pull, dim=penalty.dim, keepdim=True).expand_as(x)
        assert (length[norm == 0] <= penalty.weight * (1 + 1e-12)).all()

    @pytest.mark.parametrize("penalty", GROUPS, **named)
    def test_a_constant_step_is_the_closed_form(self, penalty):
        v, _ = sample(1, 4, 6)
        assert torch.allclose(
            penalty(v, torch.full((6,), 0.9, dtype=torch.float64)), penalty(v, 0.9), rtol=1e-14, atol=1e-15
        )

    def test_rows_and_columns_become_zero_as_wholes(self):
        v = torch.tensor([[3.0, 0.1, 4.0], [0.2, 0.1, 0.2]])
        assert torch.allclose(prox.GroupL1(1.0)(v)[0], v[0] * (1 - 1 / v[0].norm()))
        assert prox.GroupL1(1.0)(v)[1].tolist() == [0, 0, 0]
        assert (prox.GroupL1(1.0, dim=0)(v) == 0).all(0).tolist() == [False, True, False]

    def test_steps_may_differ_by_any_factor(self):
        v = torch.full((2, 3), 0.5)
        step = torch.tensor([[1e-25, 1.0, 1e25], [1e12, 1e12, 1e12]])
        x = prox.GroupL1(1.0)(v, step)
        norm = x[0].norm().item()  # as if the first were fixed, and the third free
        assert x[0].tolist() == pytest.approx([0.5, 0.5 * norm / (norm + 1), 0.0], abs=1e-6)
        assert x[1].tolist() == [0, 0, 0]

    def test_a_group_of_zeros_stays(self):
        v = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        for step in (1.0, torch.tensor([1.0, 0.5])):
            x = prox.GroupL1(1.0)(v, step)
            assert x[0].tolist() == [0, 0]
            assert (x[1] > 2).all()

    def test_convolutions_have_their_channels(self):
        v = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        x = prox.GroupL1(3.0, dim=(1, 2, 3))(v)
        assert torch.allclose(x.flatten(1), prox.GroupL1(3.0)(v.flatten(1)))


class TestRowMaxima:
    @pytest.mark.parametrize("weight", [1e-3, 0.7, 3.0])
    @pytest.mark.parametrize("seed", range(3))
    def test_rows_are_cut_where_what_is_cut_off_adds_up_to_the_weight(self, weight, seed):
        v, step = sample(seed, 5, 4)
        x = prox.LInf(weight)(v, step)
        cut = ((v - x).abs() / step).sum(-1)
        top = x.abs().amax(-1, keepdim=True)
        assert torch.allclose(x, torch.minimum(v.abs(), top) * v.sign(), atol=1e-12)
        assert torch.allclose(cut[top[:, 0] > 1e-12], torch.tensor(weight).double(), atol=1e-9)
        assert (cut[top[:, 0] <= 1e-12] <= weight + 1e-9).all()  # rows that are 0

    def test_a_number_is_no_row(self):
        with pytest.raises(ValueError, match="a number has none"):
            prox.LInf()(torch.tensor(1.0))

    def test_weight_zero_is_no_penalty(self):
        v, step = sample(0, 3, 4)
        assert torch.equal(prox.LInf(0.0)(v, step), v)


class TestBruteForce:
    """A general-purpose optimizer, in random diagonal metrics, finds nothing better."""

    @pytest.mark.parametrize("penalty", [*GROUPS, prox.LInf(0.7), prox.Nuclear(0.7)], **named)
    @pytest.mark.parametrize("seed", range(3))
    def test_penalties(self, penalty, seed):
        v, step = sample(seed, 3, 4)

        def value(x):
            return objective(penalty, torch.from_numpy(x).reshape(3, 4), v, step)

        x = penalty(v, step)
        found = minimize(value, x.flatten().numpy() + 0.01, method="Powell", options={"xtol": 1e-9, "ftol": 1e-13})
        assert value(x.flatten().numpy()) <= found.fun + 1e-9
        if found.success and not isinstance(
            penalty, prox.Nuclear | prox.LInf
        ):  # along axes a minimum of it is hard to find
            assert np.allclose(found.x, x.flatten().numpy(), atol=1e-3)

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("total", [0.3, 2.0])
    def test_sets(self, seed, total):
        v, step = sample(seed, 1, 5)

        def distance(x):
            return (((x - v.numpy()[0]) ** 2) / (2 * step.numpy()[0])).sum()

        start = np.full(5, total / 5)
        at_total = {"type": "eq", "fun": lambda x: x.sum() - total}
        simplex = minimize(distance, start, bounds=[(0, None)] * 5, constraints=[at_total], options={"ftol": 1e-14})
        assert prox.Simplex(total)(v, step)[0].numpy() == pytest.approx(simplex.x, abs=1e-6)
        within = {"type": "ineq", "fun": lambda x: total - x.sum()}
        signs = np.sign(v.numpy()[0])
        ball = minimize(
            lambda y: distance(signs * y), start, bounds=[(0, None)] * 5, constraints=[within], options={"ftol": 1e-14}
        )
        assert prox.InfNormBall(total)(v, step)[0].numpy() == pytest.approx(signs * ball.x, abs=1e-6)


class TestSets:
    @given(seeds)
    @few
    @pytest.mark.parametrize("penalty", SETS, **named)
    def test_projections_are_in_the_set_and_idempotent(self, penalty, seed):
        v, step = sample(seed, 4, 6, spread=2)
        x = penalty(v, step)
        assert penalty.penalty(x) == 0
        assert torch.allclose(penalty(x, step), x, rtol=0, atol=1e-14)
        assert penalty.penalty(v - 100) == math.inf or isinstance(penalty, prox.InfNormBall)
        assert penalty.penalty(100 * torch.ones_like(v)) == (0 if isinstance(penalty, prox.NonNegative) else math.inf)

    def test_the_ball_is_that_of_the_constraint(self):
        v, _ = sample(0, 5, 7)
        v[2] *= 0.01
        x = prox.InfNormBall(0.9)(v, 0.3)
        assert torch.equal(x, inn.constraints.InfNorm(kappa=0.9)(v))
        assert torch.equal(x[2], v[2])
        assert (x == 0).any()

    @pytest.mark.parametrize("size", [1e3, 1e7])
    def test_the_ball_holds_what_is_huge(self, size):
        v, step = (t.float() for t in sample(0, 20, 30, spread=2))
        for s in (1.0, step):
            x = prox.InfNormBall(0.9)(size * v, s)
            assert (x.abs().sum(-1) <= 0.9 * (1 + 1e-3)).all()
            assert (x.abs().sum(-1) > 0.5).all() or size > 1e3

    @given(seeds)
    @few
    def test_the_threshold_gives_the_total(self, seed):
        size, scale = sample(seed, 4, 6, spread=3)
        for widths in (None, scale):
            t = simplex_threshold(size, 0.8, widths)
            cut = (size - t * (1 if widths is None else widths)).clamp_min(0)
            assert torch.allclose(cut.sum(-1), torch.tensor(0.8, dtype=torch.float64), rtol=1e-12)


class TestConvexAnalysis:
    @given(seeds)
    @few
    @pytest.mark.parametrize("penalty", CONVEX, **named)
    def test_is_firmly_nonexpansive_in_the_metric(self, penalty, seed):
        (v, step), (w, _) = sample(seed, 3, 4, spread=0.7), sample(seed + 1, 3, 4)
        moved = penalty(v, step) - penalty(w, step)
        assert inner(moved, moved, step) <= inner(moved, v - w, step) + 1e-9

    @pytest.mark.parametrize("penalty", CONVEX, **named)
    def test_moreau(self, penalty):
        """V = x + s∘y with x = prox(v), y in ∂R(x): Fenchel's inequality R(z) ≥ R(x) + ⟨y, z − x⟩ holds for all z."""
        v, step = sample(3, 3, 4, spread=0.7)
        x = penalty(v, step)
        y = (v - x) / step
        for seed in range(200):
            z = sample(seed, 3, 4)[0]
            z = penalty(z) if penalty in SETS else z
            slack = penalty.penalty(z) - penalty.penalty(x) - (y * (z - x)).sum()
            assert slack >= -1e-9 * y.abs().max()

    @given(seeds)
    @few
    def test_moreau_identity_with_the_dual_ball(self, seed):
        """V = prox_R(v) + s·proj(v/s), onto the unit ball of the dual norm in the metric s: here ‖·‖₁ and the box."""
        v, step = sample(seed, 3, 4, spread=2)
        assert torch.allclose(prox.L1(0.7)(v, step) + step * prox.Box(-0.7, 0.7)(v / step), v, rtol=1e-13)
        # The support function of the ℓ1 ball is κ‖·‖∞, whose proximal map truncates at a common level.
        rest = v - step * prox.InfNormBall(0.7)(v / step, 1 / step)
        level = rest.abs().amax(-1, keepdim=True)
        assert ((rest.abs() >= level * (1 - 1e-10) - 1e-13) | ((rest - v).abs() <= 1e-13 * (1 + v.abs()))).all()

    def test_a_scalar_step_shrinks_the_spectrum(self):
        v, _ = sample(0, 5, 3)
        sizes = torch.linalg.svdvals(prox.Nuclear(0.7)(v, 2.0))
        assert torch.allclose(sizes, (torch.linalg.svdvals(v) - 1.4).clamp_min(0))

    @pytest.mark.parametrize("seed", range(5))
    def test_nuclear_is_as_near_as_it_says(self, seed):
        v, step = sample(seed, 8, 6)
        exact = prox.Nuclear(2.0, rtol=1e-12, max_steps=20_000)(v, step)
        size = inner(v, v, step) ** 0.5
        for rtol in (1e-2, 1e-5):
            off = prox.Nuclear(2.0, rtol=rtol)(v, step) - exact
            assert 0 < inner(off, off, step) ** 0.5 <= rtol * size

    def test_nuclear_tells_when_it_did_not_get_there(self):
        v, step = sample(0, 8, 6, spread=2)
        with pytest.warns(inn.ConvergenceWarning, match="larger eps of the optimizer"):
            prox.Nuclear(1.0, max_steps=2)(v, step)


class TestUse:
    @pytest.mark.parametrize("penalty", EVERY, **named)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_dtypes(self, penalty, dtype):
        v, step = sample(0, 4, 6)
        x = penalty(v.to(dtype), step.to(dtype))
        assert x.dtype == dtype
        if isinstance(penalty, (prox.L0, prox.L12, prox.L23, prox.Binary)) and dtype == torch.bfloat16:
            return  # rounding may take it over a jump
        assert torch.allclose(x.double(), penalty(v, step), atol=1e-5 if dtype == torch.float32 else 0.1)
        assert penalty(v.to(dtype), 0.5).dtype == penalty.penalty(x).dtype == dtype

    @pytest.mark.parametrize("penalty", EVERY, **named)
    def test_has_no_gradient_and_leaves_its_argument_alone(self, penalty):
        v = sample(0, 4, 6)[0].requires_grad_()
        before = v.detach().clone()
        x = penalty(v, 0.3)
        assert not x.requires_grad
        x += 1
        assert torch.equal(v, before)

    @pytest.mark.parametrize("penalty", [p for p in EVERY if not isinstance(p, prox.Nuclear)], **named)
    def test_what_is_no_number_stays_none(self, penalty):
        v, step = sample(0, 4, 6)
        v[1, 2] = torch.nan
        for s in (0.5, step):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                x = penalty(v, s)
            assert x[1, 2].isnan()
            if penalty in [*SEPARABLE, *ROWS]:
                assert not x[[0, 2, 3]].isnan().any()

    @pytest.mark.parametrize("penalty", EVERY, **named)
    def test_only_maps_of_single_coordinates_are_called_so(self, penalty):
        assert penalty.separable == (penalty in SEPARABLE)

    @pytest.mark.parametrize("penalty", EVERY, **named)
    def test_is_a_value_that_is_read_back_from_its_text(self, penalty):
        assert prox.parse(repr(penalty)) == penalty
        assert {penalty: 1}[prox.parse(repr(penalty))] == 1

    def test_names(self):
        assert prox.by_name("groupl1", weight=0.1, dim=0) == prox.GroupL1(0.1, dim=0)
        assert prox.parse("l23") == prox.L23()
        with pytest.raises(ValueError, match="did you mean 'simplex'"):
            prox.by_name("simplx")
        with pytest.raises(TypeError, match="height"):
            prox.by_name("l1", height=1)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: prox.L1(-1.0), "weight must be finite and not negative"),
            (lambda: prox.L12(math.nan), "weight must be finite and not negative"),
            (lambda: prox.GroupL1(-1.0), "weight must be finite and not negative"),
            (lambda: prox.Nuclear(-1.0), "weight must be finite and not negative"),
            (lambda: prox.Nuclear(rtol=0.0), "rtol must be"),
            (lambda: prox.Nuclear(max_steps=0), "max_steps must be"),
            (lambda: prox.L1(math.inf), "weight must be finite"),
            (lambda: prox.Box(1.0, 0.0), "low must not be above high"),
            (lambda: prox.Box(0.0, math.inf), "None for no bound"),
            (lambda: prox.Box(None, None), "None for no bound"),
            (lambda: prox.InfNormBall(0.0), "kappa must be positive"),
            (lambda: prox.Simplex(-1.0), "total must be positive"),
            (lambda: prox.Binary(level=0.0), "level must be positive"),
        ],
    )
    def test_options_that_can_not_be(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    @pytest.mark.parametrize(
        ("penalty", "v", "step", "error", "message"),
        [
            (prox.L1(), torch.ones(2), 0.0, ValueError, "step must be positive"),
            (prox.L1(), torch.ones(2), torch.tensor([1.0, -1.0]), ValueError, "step must be positive"),
            (prox.L1(), torch.ones(2), torch.ones(2, 2), ValueError, "does not broadcast"),
            (prox.L1(), torch.ones(2, dtype=torch.complex64), 1.0, TypeError, "real floating point"),
            (prox.L1(), torch.ones(2, dtype=torch.int64), 1.0, TypeError, "real floating point"),
            (prox.Nuclear(), torch.ones(2), 1.0, ValueError, "is for matrices"),
            (prox.GroupL1(dim=1), torch.ones(2), 1.0, ValueError, "must name axes"),
            (prox.GroupL1(dim=(0, -1)), torch.ones(2), 1.0, ValueError, "must name axes"),
            (prox.Simplex(), torch.tensor(1.0), 1.0, ValueError, "rows"),
        ],
    )
    def test_arguments_that_can_not_be(self, penalty, v, step, error, message):
        with pytest.raises(error, match=message):
            penalty(v, step)

    def test_binary_takes_a_shrinkage(self):
        with pytest.raises(TypeError, match="write one of L0, L1, L12, L23, L2"):
            prox.Binary(prox.NonNegative())

    def test_binary_goes_to_the_nearer_level(self):
        v = torch.tensor([-0.5, -0.3, 0.1, 2.0])
        assert torch.allclose(prox.Binary(prox.L1(0.1), level=0.5)(v), torch.tensor([-0.5, -0.4, 0.2, 1.9]))
        assert prox.Binary(prox.L12(100.0), level=0.5)(v).tolist() == [-0.5, -0.5, 0.5, 0.5]
