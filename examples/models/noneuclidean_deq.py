"""A non-Euclidean monotone network (NEMON): bounded changes of every unit, and its Lipschitz constant as a penalty.

python examples/models/noneuclidean_deq.py [--quick]
"""

# %%
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from implicitnets.models import NonEuclideanDEQ
from implicitnets.solvers import Picard

EPOCHS = 2 if "--quick" in sys.argv else 15

# %%
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
train_x, train_y, test_x, test_y = images[:1300], labels[:1300], images[1300:], labels[1300:]

# %% [markdown]
# ``lipschitz()`` bounds how far a unit moves if every pixel moves by at most 1. It has a gradient, so it can be a
# penalty.


# %%
def trained(price):
    torch.manual_seed(0)
    deq = NonEuclideanDEQ(64, 40)
    model = nn.Sequential(deq, nn.Linear(40, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(train_x)).split(64):
            optimizer.zero_grad()
            (cross_entropy(model(train_x[rows]), train_y[rows]) + price * deq.lipschitz()).backward()
            optimizer.step()
    return model


# %%
for price in (0.0, 0.003, 0.03):
    model = trained(price)
    deq = model[0]
    with torch.no_grad():
        z = deq(test_x)
        accuracy = (model[1](z).argmax(1) == test_y).double().mean()
        moved = (deq(test_x + 0.05 * torch.randn_like(test_x).sign()) - z).abs().max() / 0.05
        print(f"price {price}: accuracy {accuracy:.1%}, bound {deq.lipschitz():.1f}, random signs move by {moved:.1f}")
        deq.solver = Picard(damping=deq.damping(), max_steps=500)  # the average iteration of the paper
        print(f"    average iteration: {torch.dist(deq(test_x), z):.0e} away, {deq.forward_solution.evaluations} steps")
