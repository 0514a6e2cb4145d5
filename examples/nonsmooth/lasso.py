"""A Lasso whose penalty is tuned by implicit differentiation (Bolte, Le, Pauwels and Silveti-Falls 2021).

min ½‖Xb − y‖² + e^λ ‖b‖₁ is solved by the fixed point b = S(b − τ Xᵀ(Xb − y)), S shrinking by τ e^λ. Let E be where
|Xᵀ(y − Xb)| = e^λ: the support, and what is just entering it. Where nothing is, db/dλ = −e^λ (X_EᵀX_E)⁻¹ sign(b_E) on E
and zero elsewhere. With W = I − τ XᵀX and D the slopes of S, which are 1 on the support, 0 off E, and anything
between for an entry that is just entering, all I − DW are invertible exactly when X_E has full column rank.
"""

from functools import partial

import torch
from drawing import BLUE, GRAY, ORANGE, panels
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

import implicitnets as inn
from implicitnets.analysis import activation_slopes, invertibility
from implicitnets.solvers import Anderson, Dense

SOLVER = Anderson(memory=10, rtol=1e-12, atol=1e-12, max_steps=20_000)
EXACT = inn.Implicit(solver=Dense(rtol=1e-10, atol=1e-10))


def diabetes(rows=40, held_out=100):
    """Scikit-learn's diabetes with interactions, 55 features: (X, y) to fit, with fewer rows, and to validate."""
    features, target = load_diabetes(return_X_y=True)
    features = PolynomialFeatures(2, interaction_only=True, include_bias=False).fit_transform(features)
    chosen = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
    parts = []
    for part in (chosen[:rows], chosen[rows : rows + held_out]):
        scaler = StandardScaler().fit(features[chosen[:rows]])
        center, spread = target[chosen[:rows]].mean(), target[chosen[:rows]].std()
        parts.append((torch.tensor(scaler.transform(features[part])), torch.tensor((target[part] - center) / spread)))
    return parts


def step_size(x):
    return 1 / torch.linalg.matrix_norm(x, 2) ** 2


def descent(b, x, y, size):
    """A gradient step of ½‖Xb − y‖²: what is then shrunk."""
    return b - size * (b @ x.T - y) @ x


def iteration(b, log_penalty, x, y, size):
    v, threshold = descent(b, x, y, size), size * log_penalty.exp()
    return v - v.clamp(-threshold, threshold)


def solve(log_penalty, x, y):
    """Coefficients (batch, features) for log penalties λ (batch, 1)."""
    start, f = x.new_zeros(len(log_penalty), x.shape[1]), partial(iteration, x=x, y=y, size=step_size(x))
    return inn.fixed_point(f, start, log_penalty, solver=SOLVER, backward=EXACT).value


def closed_form(b, log_penalty, x):
    """db/dλ of one vector b of coefficients, by the formula on the support."""
    support = b != 0
    inside = x[:, support]
    derivative = torch.zeros_like(b)
    derivative[support] = -log_penalty.exp() * torch.linalg.solve(inside.T @ inside, b[support].sign())
    return derivative


def certificate(b, log_penalty, x, y, tol=1e-6):
    """Is I − DW invertible for all slopes of the shrinking at the solution b, one vector?"""
    size = step_size(x)
    inside = descent(b, x, y, size) / (size * log_penalty.exp())  # S(v) = v − hardtanh(v) up to scale
    least, largest = activation_slopes("hardtanh", inside - tol, inside + tol)
    w = torch.eye(x.shape[1], dtype=x.dtype) - size * x.T @ x
    return invertibility(w, slopes=(1 - largest, 1 - least))


def validation(log_penalty, fit, held_out):
    x, y = held_out
    return (solve(log_penalty, *fit) @ x.T - y).square().mean(1)


def tune(log_penalty, fit, held_out, steps, rate=1.0):
    """Gradient descent on the validation loss: log penalties and losses, both (steps, batch)."""
    path, losses = [log_penalty], []
    for _ in range(steps):
        here = path[-1].requires_grad_()
        losses.append(validation(here, fit, held_out))
        (gradient,) = torch.autograd.grad(losses[-1].sum(), here)
        path.append((here - rate * gradient).detach())
    return torch.cat(path[:-1], dim=1).T.detach(), torch.stack(losses).detach()


def scikit(log_penalty, x, y):
    """Scikit-learn's coefficients, whose loss is divided by the number of samples."""
    model = Lasso(alpha=log_penalty.exp().item() / len(y), fit_intercept=False, tol=1e-14, max_iter=1_000_000)
    return torch.from_numpy(model.fit(x.numpy(), y.numpy()).coef_)


def main(quick):
    fit, held_out = diabetes()
    starts = torch.tensor([[0.5], [3.2]], dtype=torch.float64)
    path, losses = tune(starts, fit, held_out, steps=2 if quick else 25)
    grid = torch.linspace(0.3, 3.3, 8 if quick else 61, dtype=torch.float64)[:, None]
    with torch.no_grad():
        coefficients, curve = solve(grid, *fit), validation(grid, fit, held_out)
    tuned = path[-1, :1]
    b = solve(tuned.requires_grad_(), *fit)[0]
    verdicts = [certificate(b, penalty, *fit).verdict for b, penalty in zip(coefficients, grid, strict=True)]
    entry = b.detach().abs().argmax()
    (slope,) = torch.autograd.grad(b[entry], tuned)
    tuned = tuned.detach()
    ahead, behind = solve(torch.stack([tuned + 1e-4, tuned - 1e-4]), *fit).detach()
    print(f"  difference from scikit-learn: {(b.detach() - scikit(tuned, *fit)).abs().max():.1e}")
    print(
        f"  db/dλ: implicit {slope.item():.9f}, closed form {closed_form(b.detach(), tuned, fit[0])[entry]:.9f}, "
        f"finite difference {(ahead - behind)[entry] / 2e-4:.9f}"
    )
    print(
        f"  λ = {path[0].tolist()} becomes {path[-1].tolist()}, loss {losses[0].tolist()} becomes {losses[-1].tolist()}"
    )
    print(f"  I − J at {len(grid)} solutions: {verdicts.count('proved')} times proved")
    return draw(grid, coefficients, curve, path, losses)


def draw(grid, coefficients, curve, path, losses):
    x = "λ, logarithm of the penalty"
    figure, (left, right) = panels(("Coefficients", x, "b"), ("Validation loss", x, "mean square error"))
    left.plot(grid, coefficients, lw=1)
    left.axvline(path[-1, 0], color=GRAY, ls=":")
    left.text(path[-1, 0], coefficients.max(), " tuned", color=GRAY)
    right.plot(grid, curve, color=GRAY, label="on a grid")
    for k, color in enumerate((BLUE, ORANGE)):
        right.plot(path[:, k], losses[:, k], "o", ms=4, color=color, label=f"gradient descent from {path[0, k]:.1f}")
    right.legend(frameon=False)
    return figure
