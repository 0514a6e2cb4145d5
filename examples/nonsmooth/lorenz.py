"""Gradient descent that is chaotic: a construction of our own, in the spirit of the paper's Lorenz attractor.

The layer is s = clip(s, F(u), F(u)), with F the vector field of Lorenz. Its solution is s = F(u). But by the
chain rule clip has every slope d in [0, 1] where its bounds meet, so that I − J = (1 − d) I can be zero. It is with
autograd's choice, J = I, by which F gets no derivative either. With ds = 0, descent on −⟨u, s⟩ is Euler's method for
u̇ = F(u). Every other choice, Midpoint() say, gives the true derivative.

The regular twin is the layer s = F(u): the same function, with its true derivative. Descent on −⟨u, F(u)⟩, which has no
minimum, goes to infinity.
"""

import warnings

import torch
from drawing import BLUE, GREEN, panels

import implicitnets as inn
from implicitnets.analysis import invertibility
from implicitnets.nonsmooth import Midpoint
from implicitnets.solvers import Dense, Picard

ONE_STEP = Picard(max_steps=2)
ZERO_IF_SINGULAR = inn.Implicit(solver=Dense(max_steps=2), unconverged="mask")


def lorenz(u):
    x, y, z = u.unbind(-1)
    return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], dim=-1)


def clipped(s, u):
    field = lorenz(u)
    return s.clamp(field, field)


def regular(s, u):
    return lorenz(u)


def certificate(layer):
    """Is I − DW invertible for all slopes? W = I with slopes in [0, 1] for the clip, W = 0 where s does not occur."""
    return invertibility((1.0 if layer is clipped else 0.0) * torch.eye(3, dtype=torch.float64))


def gradient(layer, u, backward=ZERO_IF_SINGULAR):
    """What implicit differentiation says the gradient of −⟨u, s(u)⟩ is."""
    u = u.detach().requires_grad_()
    s = inn.fixed_point(layer, torch.zeros_like(u), u, solver=ONE_STEP, backward=backward).value
    return torch.autograd.grad(-(u * s).sum(), u)[0]


def descend(layer, u, steps, rate=0.005):
    """The points of gradient descent, (steps + 1, batch, 3), and the texts of its warnings; ends beyond 1e6."""
    points = [u]
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", inn.ConvergenceWarning)
        while len(points) <= steps and points[-1].abs().max() < 1e6:
            points.append(points[-1] - rate * gradient(layer, points[-1]))
    return torch.stack(points), [str(warning.message) for warning in raised]


def euler(u, steps, rate=0.005):
    """Euler's method for u̇ = F(u)."""
    points = [u]
    for _ in range(steps):
        points.append(points[-1] + rate * lorenz(points[-1]))
    return torch.stack(points)


def main(quick):
    start = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0 + 1e-3]], dtype=torch.float64)
    steps = 110 if quick else 2400
    points, texts = descend(clipped, start, steps)
    twin, quiet = descend(regular, start, steps)
    print(
        f"  clip: {certificate(clipped).verdict}; {len(texts)} warnings in {steps} steps, such as: {texts[0][:150]} ..."
    )
    print(f"    largest difference from Euler's method: {(points - euler(start, steps)).abs().max():.1e}")
    print(
        f"    within [{points.min():.1f}, {points.max():.1f}]; two starts 1e-3 apart end {_apart(points)[-1]:.1e} apart"
    )
    chosen = gradient(clipped, start, inn.Implicit(selection=Midpoint()))
    print(f"    with Midpoint() {(chosen - gradient(regular, start)).abs().max():.1e} from the true gradient")
    print(
        f"  regular twin: {certificate(regular).verdict}; {len(quiet)} warnings, beyond 1e6 after {len(twin) - 1} steps"
    )
    return draw(points, twin)


def _apart(points):
    return (points[:, 0] - points[:, 1]).norm(dim=-1)


def draw(points, twin):
    figure, (left, middle, right) = panels(
        ("Descent through the clip", "first entry of u", "third entry of u"),
        ("Two starts, 1e-3 apart", "step", "their distance"),
        ("Both layers", "step", "‖u‖"),
        width=4.4,
    )
    for k in range(points.shape[1]):
        left.plot(points[:, k, 0], points[:, k, 2], color=BLUE, lw=0.5)
    middle.semilogy(_apart(points), color=BLUE, lw=0.8)
    right.semilogy(points[: 10 * len(twin), 0].norm(dim=-1), color=BLUE, label="clip, I − J singular")
    right.semilogy(twin[:, 0].norm(dim=-1), color=GREEN, label="regular twin")
    right.set_ylim(1, 1e5)
    right.legend(frameon=False, fontsize=8)
    return figure
