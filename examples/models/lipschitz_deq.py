"""Equilibrium networks with a prescribed Lipschitz constant, and what the constant means under attack.

python examples/models/lipschitz_deq.py [--quick]
"""

# %%
import sys

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from implicitnets.models import LipschitzDEQ

EPOCHS = 2 if "--quick" in sys.argv else 15

# %%
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
train_x, train_y, test_x, test_y = images[:1300], labels[:1300], images[1300:], labels[1300:]


# %%
def trained(lipschitz):
    torch.manual_seed(0)
    model = LipschitzDEQ(64, 40, 10, lipschitz=lipschitz)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(train_x)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(train_x[rows]), train_y[rows]).backward()
            optimizer.step()
    return model


# %% [markdown]
# The attack looks for neighbors v of the test images u with the steepest way from y(u) to y(v).


# %%
def steepest(model, u, steps=10):
    v = (u + 0.05 * torch.randn_like(u)).requires_grad_()
    y = model(u).detach()
    for _ in range(steps):
        ratio = (model(v) - y).norm(dim=1) / (v - u).norm(dim=1)
        (grad,) = torch.autograd.grad(ratio.sum(), v)
        v = (v + 0.1 * grad / grad.norm(dim=1, keepdim=True).clamp_min(1e-12)).detach().requires_grad_()
    return ratio.max().item()


# %%
for lipschitz in (1.0, 5.0, 25.0, None):
    model = trained(lipschitz)
    with torch.no_grad():
        accuracy = (model(test_x).argmax(1) == test_y).double().mean()
    print(f"bound {lipschitz}: accuracy {accuracy:.1%}, steepest found {steepest(model, test_x[:100]):.2f}")
