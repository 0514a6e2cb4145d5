"""A quadratic program as a layer, differentiated in its data.

min ½ xᵀPx + qᵀx subject to Gx ≤ h has x = −P⁻¹(q + Gᵀy), where the multipliers y are the fixed point of projected
gradient ascent on the dual problem: y = relu(Wy + v) with W = I − τ GP⁻¹Gᵀ and v = −τ (GP⁻¹q + h). All I − DW are
invertible at a solution exactly when the rows of G that are active there are linearly independent: the constraint
qualification of nonlinear programming is a certificate of the layer.
"""

import torch
from drawing import BLUE, GRAY, GREEN, ORANGE, panels

import implicitnets as inn
from implicitnets.analysis import activation_slopes, invertibility
from implicitnets.solvers import Anderson, Dense

P = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
ANGLES = torch.arange(5, dtype=torch.float64) * (2 * torch.pi / 5)
G = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
H = torch.ones(5, dtype=torch.float64)
SOLVER = Anderson(rtol=1e-13, atol=1e-13, max_steps=5000)
EXACT = inn.Implicit(solver=Dense(rtol=1e-10, atol=1e-10))


def primal(y, q, g, p=P):
    return -torch.linalg.solve(p, q + y @ g, left=False)  # P is symmetric


def preactivation(y, q, h, g, p=P):
    """A gradient step of the dual problem, before it is projected on y ≥ 0."""
    size = 1 / torch.linalg.matrix_norm(g @ torch.linalg.solve(p, g.T), 2)
    return y + size * (primal(y, q, g, p) @ g.T - h)


def multipliers(q, h, g, p=P, backward=EXACT):
    """Multipliers y (batch, constraints) for q (batch, variables) and h (batch, constraints)."""

    def f(y, q, h):
        return torch.relu(preactivation(y, q, h, g, p))

    return inn.fixed_point(f, torch.zeros_like(h), q, h, solver=SOLVER, backward=backward).value


def solve(q, h, g=G, p=P, backward=EXACT):
    """Solutions x (batch, variables)."""
    return primal(multipliers(q, h, g, p, backward), q, g, p)


def certificate(q, h, g=G, p=P, tol=1e-8):
    """Is I − DW invertible for all slopes of relu at the solution? One record for each sample."""
    with torch.no_grad():
        v = preactivation(multipliers(q, h, g, p), q, h, g, p)
        dual = g @ torch.linalg.solve(p, g.T)
        w = torch.eye(len(g), dtype=g.dtype) - dual / torch.linalg.matrix_norm(dual, 2)
    return [invertibility(w, slopes=activation_slopes("relu", one - tol, one + tol)) for one in v]


def by_conditions(y, g=G, p=P):
    """The Jacobians of x in q and h from the linearized optimality conditions, for the multipliers y of one sample."""
    active, n = y > 0, len(p)
    rows = g[active]
    zero = rows.new_zeros(len(rows), len(rows))
    matrix = torch.cat([torch.cat([p, rows.T], dim=1), torch.cat([rows, zero], dim=1)])
    inverse = torch.linalg.inv(matrix)
    in_h = g.new_zeros(n, len(g))
    in_h[:, active] = inverse[:n, n:]
    return -inverse[:n, :n], in_h


def path(t):
    """The q for which the minimum without constraints is on an ellipse, at angles t (batch, 1)."""
    return -torch.cat([1.8 * t.cos(), 0.9 * t.sin()], dim=1) @ P


def redundant(g=G, h=H):
    """The same set with one constraint more, through the corner of the first two."""
    corner = torch.linalg.solve(g[:2], h[:2])
    return torch.cat([g, corner[None] / corner.norm()]), torch.cat([h, corner.norm()[None]]), corner


def speeds(t):
    """The ‖dx/dt‖ along the path: by implicit differentiation, the optimality conditions, and finite differences."""
    h, t = H.expand(len(t), -1), t.clone().requires_grad_()
    x = solve(path(t), h)
    implicit = torch.cat([torch.autograd.grad(x[:, i].sum(), t, retain_graph=True)[0] for i in range(2)], dim=1)
    with torch.no_grad():
        jacobians = torch.stack([by_conditions(y)[0] for y in multipliers(path(t), h, G)])
        velocity = (path(t + 1e-6) - path(t - 1e-6)) / 2e-6
        conditions = (jacobians @ velocity[:, :, None])[:, :, 0]
        difference = (solve(path(t + 1e-5), h) - solve(path(t - 1e-5), h)) / 2e-5
    return [v.norm(dim=1) for v in (implicit, conditions, difference)]


def main(quick):
    t = torch.linspace(0, 2 * torch.pi, 60 if quick else 400, dtype=torch.float64)[:, None]
    implicit, conditions, difference = speeds(t)
    g, h, corner = redundant()
    unique = certificate(path(t), H.expand(len(t), -1))
    degenerate = certificate(path(t), h.expand(len(t), -1), g)
    print(
        f"  dx/dt: {(implicit - conditions).abs().max():.1e} from the optimality conditions, "
        f"{(implicit - difference).abs().median():.1e} (median) from finite differences"
    )
    for name, answers in (("pentagon", unique), ("pentagon with a redundant constraint", degenerate)):
        verdicts = [answer.verdict for answer in answers]
        print(f"  {name}: {verdicts.count('proved')} times proved, {verdicts.count('refuted')} times refuted")
    refuted = torch.tensor([answer.verdict == "refuted" for answer in degenerate])
    return draw(t, implicit, conditions, refuted, corner)


def draw(t, implicit, conditions, refuted, corner):
    with torch.no_grad():
        x = solve(path(t), H.expand(len(t), -1))
    figure, (left, right) = panels(
        ("Solutions", "first variable", "second variable"), ("Their derivative", "t", "‖dx/dt‖")
    )
    corners = torch.stack([torch.linalg.solve(G[[i, (i + 1) % 5]], H[:2]) for i in range(5)])
    left.fill(*corners.T, color=GRAY, alpha=0.12)
    left.plot(*torch.linalg.solve(P, -path(t), left=False).T, color=GRAY, ls=":", label="minimum without constraints")
    left.plot(*x.T, ".", color=BLUE, ms=3, label="solution, proved")
    left.plot(*x[refuted].T, "X", color=ORANGE, ms=9, label="refuted with the redundant constraint")
    across = torch.tensor([[-1.0], [1.0]], dtype=torch.float64) * 0.5 * torch.stack([-corner[1], corner[0]])
    left.plot(*(corner + across).T, color=ORANGE, ls="--", lw=1)
    left.set(xlim=(-2, 2), ylim=(-1.3, 2.1), aspect="equal")
    left.legend(frameon=False, fontsize=8, loc="upper left")
    right.plot(t, conditions, color=GREEN, lw=3, alpha=0.5, label="optimality conditions")
    right.plot(t, implicit, color=BLUE, lw=1, label="implicit")
    right.legend(frameon=False, fontsize=8)
    return figure
