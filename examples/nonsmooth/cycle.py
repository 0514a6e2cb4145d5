"""Gradient descent that runs in a circle for ever (Bolte, Le, Pauwels and Silveti-Falls 2021).

The problem is min (x − a)² + 4 (y − b)² over p = (x, y), where s = (a, b) maximizes (a + b) h(p) over the box
[0, 3] × [0, 5], with h(p) = −3x + y + 2. The layer is the projected gradient iteration s = P(s + K h(p) (1, 1)). Off
the line h = 0 its solution stands in a corner of the box, and its derivative is zero. So descent goes straight to that
corner. But the corner is beyond the line, where the other one is the solution. On the line every s is a solution, and
I − J is singular.

The regular twin maximizes (a + b) h(p) − ε/2 ‖s‖². Its I − J is invertible everywhere, and descent comes to rest.
"""

import torch
from drawing import BLUE, GRAY, GREEN, ORANGE, panels
from scipy.optimize import brentq

import implicitnets as inn
from implicitnets.analysis import activation_slopes, invertibility
from implicitnets.solvers import Dense, Picard

K, UPPER, WEIGHTS = 0.9, torch.tensor([3.0, 5.0], dtype=torch.float64), torch.tensor([1.0, 4.0], dtype=torch.float64)
SOLVER = Picard(rtol=1e-13, atol=1e-13, max_steps=20_000)


def height(p):
    return -3 * p[:, :1] + p[:, 1:] + 2


def ascent(s, p, eps):
    """A gradient step of the inner problem, before it is projected on the box."""
    return s + K * (height(p) - eps * s)


def layer(s, p, eps):
    return ascent(s, p, eps).clamp(torch.zeros_like(UPPER), UPPER)


def solve(p, eps, s=None, backward=inn.Implicit(solver=Dense(), unconverged="mask")):
    start = torch.zeros_like(p) if s is None else s
    return inn.fixed_point(layer, start, p, eps, solver=SOLVER, backward=backward).value


def loss(p, s):
    return (WEIGHTS * (p - s).square()).sum(1)


def certificate(p, s, eps, tol=1e-9):
    """Is I − J invertible for every Clarke element J = (1 − Kε) D of the layer at the solution s of p?"""
    inside = 2 * ascent(s, p, eps)[0] / UPPER - 1  # the clamp is hardtanh up to scale
    slopes = activation_slopes("hardtanh", inside - tol, inside + tol)
    return invertibility((1 - K * eps) * torch.eye(2, dtype=p.dtype), slopes=slopes)


def everywhere(eps):
    """The same for all p at once: any slopes in [0, 1]."""
    return invertibility((1 - K * eps) * torch.eye(2, dtype=torch.float64))


def descend(p, steps, eps=0.0, rate=0.01):
    """The points of gradient descent and their losses: (steps + 1, batch, 2) and (steps + 1, batch)."""
    points, losses, s = [p], [], None
    for _ in range(steps + 1):
        p = points[-1].requires_grad_()
        s = solve(p, eps, s)
        losses.append(loss(p, s))
        (gradient,) = torch.autograd.grad(losses[-1].sum(), p)
        points.append((p - rate * gradient).detach())
    return torch.stack(points[:-1]).detach(), torch.stack(losses).detach()


def crossings(points):
    """Steps k of one orbit (steps, 2) after which h changes its sign, upwards and downwards."""
    sign = height(points)[:, 0] > 0
    return (~sign[:-1] & sign[1:]).nonzero()[:, 0], (sign[:-1] & ~sign[1:]).nonzero()[:, 0]


def flow(p, t, corner):
    """Where the gradient flow ṗ = −2 (1, 4) (p − corner) is after time t."""
    return corner + (p - corner) * torch.exp(-2 * WEIGHTS * t)


def limit_cycle(rounds=20):
    """Where the limit cycle of the gradient flow crosses h = 0, up and down, and how long each half takes."""
    up, low = torch.tensor([0.5, -0.5], dtype=torch.float64), torch.zeros_like(UPPER)
    for _ in range(rounds):  # the return map is a contraction
        rise = _return(up, UPPER)
        down = flow(up, rise, UPPER)
        fall = _return(down, low)
        up = flow(down, fall, low)
    return up, down, rise, fall


def _return(p, corner):
    return brentq(lambda t: height(flow(p, t, corner)[None]).item(), 1e-3, 10.0, xtol=1e-15)


def main(quick):
    starts = torch.tensor([[0.0, 4.0], [3.0, 0.0]], dtype=torch.float64)
    points, losses = descend(starts, 80 if quick else 600)
    twin, twin_losses = descend(starts, 80 if quick else 600, eps=1.0)
    up, down, rise, fall = limit_cycle()
    print(
        f"  the flow's cycle crosses h = 0 at {up.numpy().round(6)} and {down.numpy().round(6)}, "
        f"period {rise + fall:.6f}"
    )
    print(f"  steps of descent from one upward crossing to the next: {crossings(points[:, 0])[0].diff().tolist()}")
    on_line = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    for name, eps in (("layer", 0.0), ("regular twin", 1.0)):
        verdicts = [certificate(p, solve(p, eps), eps).verdict for p in (starts[:1], on_line)]
        print(f"  {name}: {everywhere(eps).verdict}; off the line {verdicts[0]}, on it {verdicts[1]}")
    return draw(points, losses, twin, twin_losses)


def draw(points, losses, twin, twin_losses):
    up, down, rise, fall = limit_cycle()
    halves = ((up, UPPER, rise), (down, torch.zeros_like(UPPER), fall))
    cycle = torch.cat([flow(p, torch.linspace(0, t, 100)[:, None], corner) for p, corner, t in halves])
    figure, (left, right) = panels(("Gradient descent", "x", "y"), ("Its loss", "step", "(x − a)² + 4 (y − b)²"))
    left.plot([0, 3], [-2, 7], color=GRAY, ls=":", label="h = 0")
    for k in range(points.shape[1]):
        left.plot(*points[:, k].T, color=BLUE, lw=0.8, label=None if k else "descent, I − J singular on h = 0")
        left.plot(*twin[:, k].T, color=GREEN, lw=1.4, label=None if k else "descent, regular twin")
        left.plot(*points[0, k], "o", color=GRAY)
        left.plot(*twin[-1, k], "*", color=GREEN, ms=12)
    left.plot(*cycle.T, color=ORANGE, ls="--", label="limit cycle of the flow")
    left.set(xlim=(-0.1, 3.1), ylim=(-0.6, 7.4))
    left.legend(frameon=False, loc="upper left", fontsize=8)
    right.semilogy(losses[:, 0], color=BLUE, label="descent, I − J singular on h = 0")
    right.semilogy(twin_losses, color=GREEN, label=["descent, regular twin", None])
    right.legend(frameon=False, fontsize=8)
    return figure
