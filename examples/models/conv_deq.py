"""A convolutional equilibrium classifies images, and a penalty keeps its Jacobian small.

python examples/models/conv_deq.py [--quick]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from implicitnets.analysis import jacobian_frobenius, spectral_radius
from implicitnets.models import ConvDEQ

EPOCHS = 1 if "--quick" in sys.argv else 4

# The data: 1797 images of 8 × 8 pixels, every fourth held out.
pixels, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
held_out = torch.arange(len(y)) % 4 == 0
train_x, train_y, test_x, test_y = x[~held_out], y[~held_out], x[held_out], y[held_out]


def train(weight):
    """A classifier whose loss has ``weight`` times the mean squared singular value of the Jacobian added."""
    torch.manual_seed(0)
    deq = ConvDEQ(1, 16)  # z = N₃(relu(z + N₂(u + K₂ relu(N₁(K₁z))))), with u made from the image
    # A norm reads the state off, or else the loss asks for larger states, and those for larger Jacobians.
    head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.LayerNorm(256), nn.Linear(256, 10))
    optimizer = torch.optim.Adam([*deq.parameters(), *head.parameters()], lr=5e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(train_y)).split(64):
            z = deq(train_x[rows])
            loss = cross_entropy(head(z), train_y[rows])
            if weight:
                loss = loss + weight * jacobian_frobenius(deq.cell, z, deq.inject(train_x[rows])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return deq, head


# The spectral radius of the Jacobian says how fast the plain iteration would converge at the end: the smaller, the less
# work. (Penalties are differentiated twice: second derivatives of the cell come from autograd.)
print(f"{'penalty':>8} {'accuracy':>9} {'steps':>6} {'radius':>7}")
for weight in (0.0, 1.0):
    deq, head = train(weight)
    with torch.no_grad():
        z = deq(test_x)
        accuracy = (head(z).argmax(1) == test_y).float().mean()
    steps = deq.forward_solution.steps.float().mean()
    radius = spectral_radius(deq.cell, z[:20], deq.inject(test_x[:20]).detach()).mean()
    print(f"{weight:8} {accuracy:9.1%} {steps:6.1f} {radius:7.2f}")
