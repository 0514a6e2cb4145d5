"""Two resolutions in one equilibrium: what each of them is good for.

python examples/models/multiscale_deq.py [--quick]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from implicitnets.models import MultiscaleDEQ

EPOCHS = 1 if "--quick" in sys.argv else 4

# The data: 1797 images of 8 × 8 pixels, every fourth held out.
pixels, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
held_out = torch.arange(len(y)) % 4 == 0
train_x, train_y, test_x, test_y = x[~held_out], y[~held_out], x[held_out], y[held_out]

# The state is a tuple of tensors: 8 channels of 8 × 8 pixels, and 16 channels of 4 × 4. They solve one equation.
torch.manual_seed(0)
deq = MultiscaleDEQ(1, (8, 16))
print("states:", [tuple(z.shape) for z in deq(train_x[:1])])


def head(features):
    """Reads one state off: averages over quarters, a norm, and a linear map."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LayerNorm(features), nn.Linear(features, 10))


# Each resolution has a head of its own. Both losses train the whole equilibrium, whose gradient is that of a pytree.
heads = nn.ModuleList([head(8 * 4), head(16 * 4)])
optimizer = torch.optim.Adam([*deq.parameters(), *heads.parameters()], lr=1e-2)
for _ in range(EPOCHS):
    for rows in torch.randperm(len(train_y)).split(64):
        loss = sum(cross_entropy(h(z), train_y[rows]) for h, z in zip(heads, deq(train_x[rows]), strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

with torch.no_grad():
    states = deq(test_x)
    scores = [h(z) for h, z in zip(heads, states, strict=True)]
for name, score in (("fine", scores[0]), ("coarse", scores[1]), ("both", sum(scores))):
    print(f"{name:>6}: accuracy {(score.argmax(1) == test_y).float().mean():.1%}")
print(f"steps: {deq.forward_solution.steps.float().mean():.1f}")
