"""A monotone equilibrium network: one equilibrium, whatever it learns.

python examples/models/monotone_deq.py [--quick]
"""

# %%
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import implicitnets as inn
from implicitnets.models import MonotoneDEQ
from implicitnets.solvers import Anderson, ForwardBackward, PeacemanRachford

EPOCHS = 2 if "--quick" in sys.argv else 20

# %%
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
train_x, train_y, test_x, test_y = images[:1300], labels[:1300], images[1300:], labels[1300:]

# %% [markdown]
# ``W = (1 - m) I - AᵀA + B - Bᵀ`` is free in A and B. There is no constraint to enforce, and ‖W‖ may grow past 1.
# Splitting solves the equation and its adjoint by the same factorization.

# %%
torch.manual_seed(0)
loose = PeacemanRachford(rtol=1e-2, max_steps=200)
deq = MonotoneDEQ(64, 60, m=0.5, solver=loose, backward=inn.Implicit(solver=loose))
model = nn.Sequential(deq, nn.Linear(60, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(EPOCHS):
    for rows in torch.randperm(len(train_x)).split(64):
        optimizer.zero_grad()
        cross_entropy(model(train_x[rows]), train_y[rows]).backward()
        optimizer.step()

# %%
with torch.no_grad():
    deq.solver = PeacemanRachford(rtol=1e-6, max_steps=500)
    z = deq(test_x)
    accuracy = (model[1](z).argmax(1) == test_y).double().mean()
    print(f"accuracy {accuracy:.1%}, spectral norm of W {torch.linalg.matrix_norm(deq.W, 2):.1f}")
    for _ in range(3):
        gap = (deq(test_x, z0=10 * torch.randn_like(z)) - z).norm() / z.norm()
        print(f"from another start: relative distance {gap:.0e}")
    for solver in (PeacemanRachford(max_steps=500), Anderson(max_steps=500), ForwardBackward(max_steps=5000)):
        deq.solver = solver
        deq(test_x)
        print(f"{type(solver).__name__}: {deq.forward_solution.evaluations} evaluations")
