"""A deep equilibrium classifier of handwritten digits, around a cell of one's own.

    python examples/deq_classifier.py [--quick]

The cell is an ordinary module; ``DEQ`` makes a layer of its equilibrium; the solvers of both directions are arguments.
"""

# %%
import sys
import time

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import cross_entropy

import implicitnets as inn
from implicitnets.solvers import GMRES, Anderson, Broyden, Picard

EPOCHS = 2 if "--quick" in sys.argv else 10

# %% [markdown]
# ## The data
# 1797 images of 8 × 8 pixels, a quarter of them held out.

# %%
images, labels = load_digits(return_X_y=True)
split = train_test_split(images / 16, labels, test_size=0.25, stratify=labels, random_state=0)
train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in split[:2])
train_y, test_y = (torch.tensor(part) for part in split[2:])

# %% [markdown]
# ## The model
# The cell maps a state z and an input x to the next state. That every row of the recurrent weights has an absolute sum
# of at most 0.9 makes it a contraction: there is one equilibrium, whatever is learned.


# %%
class Cell(nn.Module):
    def __init__(self, inputs, states):
        super().__init__()
        self.inject = nn.Linear(inputs, states)
        self.recur = inn.constraints.inf_norm(nn.Linear(states, states, bias=False), "weight", 0.9)

    def forward(self, z, x):
        return torch.tanh(self.recur(z) + self.inject(x))


def classifier(solver, backward, states=64):
    deq = inn.DEQ(Cell(64, states), state_shape=(states,), solver=solver, backward=backward)
    return nn.Sequential(deq, nn.Linear(states, 10))


# %% [markdown]
# ## Training
# Nothing about it is special. What the solvers last did is on the layer: the steps of the test images' equilibria in
# ``forward_solution``, the products with the Jacobian that the last gradient took in ``backward_solution``.


# %%
def train(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(train_x), generator=shuffle).split(64):
            loss = cross_entropy(model(train_x[rows]), train_y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


# %%
STRATEGIES = {
    "defaults": (Anderson(), inn.Implicit()),
    "Picard both ways": (Picard(), inn.Implicit(solver=Picard())),
    "Broyden, loose GMRES": (Broyden(), inn.Implicit(solver=GMRES(rtol=1e-2))),
    "Anderson, 5 Neumann terms": (Anderson(), inn.Unroll(steps=5)),
    "Anderson, one step (JFB)": (Anderson(rtol=1e-2), inn.Unroll(steps=1)),
}

print(f"{'forward, backward':>26} {'accuracy':>9} {'steps':>6} {'products':>9} {'seconds':>8}")
for name, (solver, backward) in STRATEGIES.items():
    torch.manual_seed(0)
    model = classifier(solver, backward)
    start = time.perf_counter()
    train(model)
    spent = time.perf_counter() - start
    with torch.no_grad():
        accuracy = (model(test_x).argmax(1) == test_y).double().mean()
    deq = model[0]
    steps = deq.forward_solution.steps.double().mean()
    products = "-" if deq.backward_solution is None else deq.backward_solution.evaluations
    print(f"{name:>26} {accuracy:9.1%} {steps:6.1f} {products:>9} {spent:8.1f}")
