"""Random problems of which all equilibria are bounded, and what is true of them by other means."""

from itertools import product

import numpy as np
import torch
from problems import normal
from scipy.optimize import linprog

from implicitnets.activations import as_activation
from implicitnets.analysis.certificates.problem import Problem
from implicitnets.analysis.certificates.start import box, interval
from implicitnets.analysis.regions import region
from implicitnets.models import AffineForm

F64 = torch.float64
REGIONS = {
    "box": {"norm": "inf"},
    "diamond": {"norm": 1},
    "ball": {"norm": 2},
    "a few entries": {"norm": "inf", "cardinality": 2},
}
PIECES = {"relu": [(-np.inf, 0, 0, 0), (0, np.inf, 1, 0)]}
PIECES["leaky_relu"] = [(-np.inf, 0, 0.01, 0), (0, np.inf, 1, 0)]
PIECES["hardtanh"] = [(-np.inf, -1, 0, -1), (-1, 1, 1, 0), (1, np.inf, 0, 1)]
"""From where to where, slope and intercept."""


def problem(n=8, p=4, norm=0.9, sigma=0.3, *, kind="box", activation="relu", seed=0, batch=2, scale=1.0, domain=None):
    """A random implicit model of ‖A‖∞ = norm with two outputs, its states and inputs in units of scale and 1/scale."""
    A = normal(n, n, dtype=F64, seed=seed)
    B, C = normal(n, p, dtype=F64, seed=seed + 1000), normal(2, n, dtype=F64, seed=seed + 2000)
    b, D = 0.3 * normal(n, dtype=F64, seed=seed + 3000), 0.1 * normal(2, p, dtype=F64, seed=seed + 4000)
    form = AffineForm(
        A=A * norm / A.abs().sum(1).max(),
        B=B / p**0.5 * scale**2,
        C=C,
        D=D * scale**2,
        b=b * scale,
        c=torch.zeros(2, dtype=F64),
        activation=as_activation(activation),
    )
    u = normal(batch, p, dtype=F64, seed=seed + 5000) / scale
    if domain is not None:
        u = u.clamp(*domain)
    space = region(u, sigma / scale, **REGIONS[kind], domain=domain)
    return interval(box(Problem.of(form, space, form.solve(u).value)))


def points(asked, count=300, seed=0):
    """Values of the outputs at random inputs, at vertices, and where ascent by exact derivatives ends: (batch, 2)."""
    form, draw = asked.form, torch.Generator().manual_seed(seed)
    best = torch.full((len(asked.x0), 2), -torch.inf, dtype=F64)
    for i in range(len(asked.x0)):
        space = asked.region.take(torch.full((count,), i))
        u = [space.sample(draw), space.maximizer(normal(count, form.inputs, dtype=F64, seed=seed + 1))]
        for k in range(2):
            at = u[1]
            for _ in range(3):
                at = at.detach().requires_grad_()
                value = at @ form.D[k] + form.solve(at).value @ form.C[k]
                at = space.maximizer(torch.autograd.grad(value.sum(), at)[0])
            u.append(at)
        u = torch.cat(u)
        with torch.no_grad():
            best[i] = (settled(form, u) @ form.C.T + u @ form.D.T).amax(0)
    return best


def settled(form, u):
    """The states of a form with ‖A‖∞ ≤ 0.9, to the last digits."""
    x = form.solve(u).value
    for _ in range(200):
        x = form.activation(form.preactivation(x, u))
    return x


def enumerated(asked, c, d):
    """The largest c·x + d·u of the first sample over a box, a diamond or a hull: a programme for each set of pieces."""
    form, space = asked.form, asked.region
    A, B, b, c, d = (part.numpy() for part in (form.A, form.B, form.b, c, d))
    centre, low, high = (part[0].numpy() for part in (space.centre, space.low, space.high))
    steps = np.hstack([np.diag(high - centre), -np.diag(centre - low)])
    limits, ends = [], []
    if hasattr(space, "radius"):
        limits, ends = [np.abs(steps).sum(0)], [float(space.radius[0])]
    if hasattr(space, "count"):
        limits, ends = [np.ones(steps.shape[1])], [space.count]
    best = -np.inf
    for chosen in product(PIECES[form.activation.name], repeat=len(b)):
        start, end, slope, intercept = (np.array(part) for part in zip(*chosen, strict=True))
        inverse = np.linalg.inv(np.eye(len(b)) - slope[:, None] * A)
        x, x0 = inverse @ (slope[:, None] * B), inverse @ (slope * b + intercept)
        z, z0 = A @ x + B, A @ x0 + b
        rows = np.vstack([z[end < np.inf] @ steps, -z[start > -np.inf] @ steps, *limits])
        rest = np.concatenate([(end - z0 - z @ centre)[end < np.inf], (z0 + z @ centre - start)[start > -np.inf], ends])
        gain = c @ x + d
        found = linprog(-gain @ steps, A_ub=rows, b_ub=rest, bounds=(0, 1), method="highs-ds")
        if found.status == 0:
            best = max(best, c @ x0 + gain @ centre - found.fun)
    return best
