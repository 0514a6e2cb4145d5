"""The mathematics of examples/nonsmooth: closed forms, finite differences, other programs, and what is proved."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import implicitnets as inn
from implicitnets import ConvergenceWarning, data, nonsmooth
from implicitnets.solvers import GMRES, Dense

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "nonsmooth"))
cycle, lasso, lorenz, network, quadratic = map(import_module, ("cycle", "lasso", "lorenz", "network", "quadratic"))


def vector(*entries):
    return torch.tensor([entries], dtype=torch.float64)


class TestNetwork:
    @pytest.mark.parametrize("name", ["infinity norm", "monotone"])
    def test_certificate_holds_after_every_epoch(self, name):
        model = network.network(network.CONSTRAINTS[name])
        records = network.train(model, data.digits(), epochs=2)
        assert [(r.answer.verdict, r.answer.criterion, r.warnings) for r in records] == [("proved", name, 0)] * 2
        assert records[-1].accuracy > 0.8

    def test_monotone_matrix_has_its_margin_whatever_the_free_one(self):
        a = network.Monotone(m=0.3)(3 * torch.randn(20, 20, dtype=torch.float64))
        assert torch.linalg.eigvalsh(torch.eye(20) - (a + a.T) / 2)[0] == pytest.approx(0.3, abs=0.05)
        assert torch.linalg.matrix_norm(a, 2) > 5


class TestLasso:
    fit, held_out = lasso.diabetes()

    @pytest.mark.parametrize("penalty", [1.1, 1.9, 2.6])
    def test_coefficients_are_those_of_scikit_learn(self, penalty):
        b = lasso.solve(vector(penalty), *self.fit)[0]
        assert 0 < (b != 0).sum() < len(b)
        assert b == pytest.approx(lasso.scikit(vector(penalty), *self.fit), abs=1e-9)

    @pytest.mark.parametrize("penalty", [1.1, 1.9, 2.6])
    def test_derivative_is_the_closed_form(self, penalty):
        at = vector(penalty).requires_grad_()
        b = lasso.solve(at, *self.fit)[0]
        weights = torch.randn(len(b), dtype=torch.float64)
        (found,) = torch.autograd.grad(b @ weights, at)
        expected = lasso.closed_form(b.detach(), at.detach(), self.fit[0]) @ weights
        assert found.item() == pytest.approx(expected.item(), rel=1e-8)

    def test_gradient_of_the_validation_loss_is_the_finite_difference(self):
        at = vector(1.45).requires_grad_()
        (found,) = torch.autograd.grad(lasso.validation(at, self.fit, self.held_out).sum(), at)
        with torch.no_grad():
            ahead, behind = lasso.validation(vector(1.45 + 1e-4, 1.45 - 1e-4).T, self.fit, self.held_out)
        assert found.item() == pytest.approx((ahead - behind).item() / 2e-4, rel=1e-5)

    def test_tuning_from_both_sides_ends_at_the_least_loss(self):
        path, losses = lasso.tune(torch.tensor([[1.5], [2.5]], dtype=torch.float64), self.fit, self.held_out, steps=20)
        assert (path[-1, 0] - path[-1, 1]).abs() < 0.05
        with torch.no_grad():
            grid = torch.linspace(1.2, 3.0, 19, dtype=torch.float64)[:, None]
            assert (losses[-1] <= lasso.validation(grid, self.fit, self.held_out).min() + 1e-3).all()

    def test_certificate_is_the_rank_of_the_support(self):
        x, y = self.fit
        penalty = torch.tensor([1.9], dtype=torch.float64)
        b = lasso.solve(penalty[None], x, y)[0]
        assert lasso.certificate(b, penalty, x, y).verdict == "proved"
        twice = torch.cat([x, x[:, b.abs().argmax(), None]], dim=1)  # the strongest feature once more
        b = lasso.solve(penalty[None], twice, y)[0]
        assert torch.linalg.matrix_rank(twice[:, b != 0]) < (b != 0).sum()
        assert lasso.certificate(b, penalty, twice, y).verdict == "refuted"


class TestQuadratic:
    h = quadratic.H[None]

    @pytest.mark.parametrize("t", [0.2, 0.7, 1.5, 3.0])  # on an edge, in a corner, inside, in the corner at the left
    def test_derivatives_are_those_of_the_optimality_conditions(self, t):
        q = quadratic.path(vector(t))
        in_q, in_h = torch.autograd.functional.jacobian(quadratic.solve, (q, self.h))
        expected = quadratic.by_conditions(quadratic.multipliers(q, self.h, quadratic.G)[0])
        assert torch.allclose(in_q[0, :, 0], expected[0], atol=1e-8)
        assert torch.allclose(in_h[0, :, 0], expected[1], atol=1e-8)

    def test_derivatives_are_finite_differences(self):
        q = torch.randn(4, 3, dtype=torch.float64, requires_grad=True) * 2
        h = torch.rand(4, 6, dtype=torch.float64, requires_grad=True) + 0.5
        g, root = torch.randn(6, 3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
        p = root @ root.T + torch.eye(3)
        assert torch.autograd.gradcheck(lambda q, h: quadratic.solve(q, h, g, p), (q, h), atol=1e-5)

    def test_solution_is_feasible_and_optimal(self):
        q = quadratic.path(torch.linspace(0, 6, 30, dtype=torch.float64)[:, None])
        h = self.h.expand(30, -1)
        x, y = quadratic.solve(q, h), quadratic.multipliers(q, h, quadratic.G)
        slack = h - x @ quadratic.G.T
        assert slack.min() > -1e-9
        assert (slack * y).abs().max() < 1e-9
        assert (x @ quadratic.P + q + y @ quadratic.G).abs().max() < 1e-9

    def test_certificate_is_the_independence_of_the_active_constraints(self):
        g, h, corner = quadratic.redundant()
        q = -(corner @ quadratic.P + g[[0, 1, 5]].sum(0))[None]  # the corner is optimal, with multipliers of 1
        assert torch.allclose(quadratic.solve(q, h[None], g)[0], corner)
        assert quadratic.certificate(q, h[None], g)[0].verdict == "refuted"
        assert quadratic.certificate(q, self.h)[0].verdict == "proved"


class TestCycle:
    def test_constants_of_the_flow(self):
        up, down, rise, fall = cycle.limit_cycle()
        assert up.numpy() == pytest.approx(np.array([0.678764, 0.036291]), abs=1e-6)
        assert down.numpy() == pytest.approx(np.array([2.321236, 4.963709]), abs=1e-6)
        assert rise + fall == pytest.approx(1.229582, abs=1e-6)

    def test_descent_circles_with_a_period_of_124_steps(self):
        points, losses = cycle.descend(vector(0.0, 4.0), 500)
        up, down = cycle.crossings(points[:, 0])
        assert up.diff().tolist() == [124] * len(up.diff())
        assert down.diff().tolist() == [124] * len(down.diff())
        assert len(up.diff()) >= 2
        corners = cycle.limit_cycle()
        for steps, corner in ((up, corners[0]), (down, corners[1])):
            assert (points[steps[-1], 0] - corner).abs().max() < 0.01  # the length of a step
        assert losses[-124:].min() < 0.5
        assert losses[-124:].max() > 80

    def test_regular_twin_comes_to_rest(self):
        points, losses = cycle.descend(vector(3.0, 0.0), 300, eps=1.0)
        assert points[-1, 0] == pytest.approx(torch.full((2,), 2 / 3, dtype=torch.float64), abs=0.05)  # where p = s
        assert (losses.diff(dim=0) <= 0).all()

    def test_gradient_of_the_regular_twin_is_the_finite_difference(self):
        p = vector(0.9, 1.3).requires_grad_()  # 0 < h < 3: no entry is clamped
        assert torch.autograd.gradcheck(lambda p: cycle.loss(p, cycle.solve(p, 1.0)), p)

    @pytest.mark.parametrize(("eps", "verdict"), [(0.0, "refuted"), (1.0, "proved")])
    def test_certificate_fails_on_the_line_only(self, eps, verdict):
        assert cycle.everywhere(eps).verdict == verdict
        for p, expected in ((vector(1.0, 1.0), verdict), (vector(1.0, 1.1), "proved"), (vector(1.0, 0.9), "proved")):
            assert cycle.certificate(p, cycle.solve(p, eps), eps).verdict == expected

    @pytest.mark.parametrize("solver", [GMRES(), Dense()])
    @pytest.mark.parametrize("unconverged", ["warn", "mask"])
    @pytest.mark.parametrize("start", [(0.0, 0.0), (1.0, 2.0), (3.0, 5.0)])
    def test_on_the_line_there_is_a_warning(self, solver, unconverged, start):
        p = vector(1.0, 1.0).requires_grad_()
        s = cycle.solve(p, 0.0, vector(*start), inn.Implicit(solver=solver, unconverged=unconverged))
        assert torch.equal(s.detach(), vector(*start))  # every point of the box is a solution
        with pytest.warns(ConvergenceWarning, match="gradient of a fixed point"):
            (found,) = torch.autograd.grad(s.sum(), p)
        if unconverged == "mask":
            assert torch.equal(found, torch.zeros_like(p))


class TestLorenz:
    start = vector(1.0, 1.0, 1.0)

    def test_field_vanishes_at_the_centers_of_the_wings(self):
        wing = (8 / 3 * 27) ** 0.5  # (±√(β(ρ − 1)), ±√(β(ρ − 1)), ρ − 1) with ρ = 28, β = 8/3
        for sign in (-1, 1):
            assert lorenz.lorenz(vector(sign * wing, sign * wing, 27.0)).abs().max() < 1e-12
        assert lorenz.lorenz(vector(1.0, 2.0, 3.0)).tolist() == [[10.0, 23.0, -6.0]]

    def test_descent_through_the_clip_is_eulers_method(self):
        points, texts = lorenz.descend(lorenz.clipped, self.start, 500)
        assert torch.equal(points, lorenz.euler(self.start, 500))
        assert points.abs().max() < 51
        assert len(texts) == 500
        assert "did not converge" in texts[0]

    def test_eulers_method_stays_on_the_attractor(self):
        points = lorenz.euler(self.start, 20_000)[1000:, 0]
        assert points[:, 0].abs().max() < 25
        assert 0 < points[:, 2].min() < points[:, 2].max() < 52
        assert (points[:-1, 0] * points[1:, 0] < 0).sum() > 50  # from one wing to the other

    def test_regular_twin_goes_to_infinity(self):
        points, texts = lorenz.descend(lorenz.regular, self.start, 500)
        assert points[-1].abs().max() > 1e6
        assert len(points) == 106
        assert texts == []

    def test_gradient_of_the_regular_twin_is_true(self):
        u = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        (expected,) = torch.autograd.grad(-(u * lorenz.lorenz(u)).sum(), u)
        assert torch.allclose(lorenz.gradient(lorenz.regular, u), expected)

    def test_certificate_refutes_the_clip_alone(self):
        answer = lorenz.certificate(lorenz.clipped)
        assert (answer.verdict, answer.witness.singular_value) == ("refuted", 0)
        assert lorenz.certificate(lorenz.regular).verdict == "proved"

    @pytest.mark.parametrize(
        "selection", [nonsmooth.Left(), nonsmooth.Midpoint(), nonsmooth.Right(), nonsmooth.Slope(0.3)]
    )
    def test_every_other_element_gives_the_true_gradient(self, selection):
        u = torch.randn(4, 3, dtype=torch.float64)
        found = lorenz.gradient(lorenz.clipped, u, inn.Implicit(solver=Dense(), selection=selection))
        assert torch.allclose(found, lorenz.gradient(lorenz.regular, u))
