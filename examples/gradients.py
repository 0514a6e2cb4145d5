"""Derivatives of an equilibrium: exact, checked against finite differences, and approximated by unrolling.

python examples/gradients.py [--quick]
"""

# %%
import sys

import torch

import implicitnets as inn
from implicitnets.solvers import GMRES, Anderson, Dense

QUICK = "--quick" in sys.argv
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
tight = Anderson(rtol=1e-13, atol=1e-13, max_steps=200)


def cell(z, x, w):
    return torch.tanh(z @ w + x)


def solve(x, w, backward):
    return inn.fixed_point(cell, torch.zeros_like(x), x, w, solver=tight, backward=backward).value


# %% [markdown]
# ## One derivative, three ways
# $z = \tanh(a z + b)$ is a scalar equation, and dz/da has a closed form: with $s = 1 - z^2$ it is
# $s z / (1 - s a)$. Its second derivative is compared with a central difference of the first.

# %%
a = torch.tensor([[0.8]], requires_grad=True)
b = torch.tensor([[0.3]])
exactly = inn.Implicit(solver=Dense(rtol=1e-13, atol=1e-13))


def first(a):
    return torch.autograd.grad(solve(b, a, exactly).sum(), a, create_graph=True)[0]


z = solve(b, a, exactly).detach()
slope = 1 - z**2
(second,) = torch.autograd.grad(first(a).sum(), a)
step = 1e-5
difference = (first(a + step) - first(a - step)) / (2 * step)
print(f"dz/da:   implicit {first(a).item():.10f}, closed form {(slope * z / (1 - slope * a)).item():.10f}")
print(f"d²z/da²: implicit {second.item():.10f}, central difference {difference.item():.10f}")

# %% [markdown]
# ## torch's own checks
# `gradcheck` and `gradgradcheck` compare every first and second derivative with finite differences.

# %%
x = torch.randn(2, 3, requires_grad=True)
w = (0.8 * torch.linalg.qr(torch.randn(3, 3))[0]).requires_grad_()
assert torch.autograd.gradcheck(lambda x, w: solve(x, w, exactly), (x, w))
assert torch.autograd.gradgradcheck(lambda x, w: solve(x, w, exactly), (x, w))
print("gradcheck and gradgradcheck: passed")

# %% [markdown]
# ## What an approximation costs
# The error of the gradient of W, relative to its norm. `Unroll(steps=k)` at the solution is the Neumann series with k
# terms; its error falls by the spectral radius of the Jacobian with each term. `Implicit` goes as far as its tolerance.

# %%
n = 20 if QUICK else 100
x = 0.3 * torch.randn(16, n)
w = (0.9 * torch.linalg.qr(torch.randn(n, n))[0]).requires_grad_()


def gradient(backward):
    return torch.autograd.grad(solve(x, w, backward).square().mean(), w)[0]


reference = gradient(exactly)
approximations = [inn.Unroll(steps=k) for k in (1, 2, 5, 10, 20, 50)]
approximations += [inn.Unroll(steps=5, damping=0.5)]
approximations += [inn.Implicit(solver=GMRES(rtol=rtol)) for rtol in (1e-1, 1e-2, 1e-4)]
print("error of the gradient:")
for backward in approximations:
    error = (gradient(backward) - reference).norm() / reference.norm()
    print(f"{error:9.1e}  {backward}")
