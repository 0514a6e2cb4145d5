"""A recurrent network whose state solves an equation at each step remembers what it has seen.

python examples/models/rnn.py [--quick]
"""

import sys

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from implicitnets.models import ImplicitRNN

STEPS = 50 if "--quick" in sys.argv else 150
SYMBOLS, BLANK, LENGTH = 4, 4, 12

torch.manual_seed(0)


def draw(samples):
    """Sequences of one symbol and then blanks; the symbol is to be told at the end."""
    labels = torch.randint(SYMBOLS, (samples,))
    sequence = torch.full((samples, LENGTH), BLANK)
    sequence[:, 0] = labels
    return one_hot(sequence, SYMBOLS + 1).float(), labels


# hₜ = tanh(W hₜ + V hₜ₋₁ + U xₜ + b), where the rows of W have absolute sums below 1: one hₜ, always.
rnn, head = ImplicitRNN(inputs=SYMBOLS + 1, states=24), nn.Linear(24, SYMBOLS)
optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=1e-2)
for step in range(STEPS + 1):
    x, y = draw(32)
    loss = cross_entropy(head(rnn(x)[:, -1]), y)
    if step % 25 == 0:
        per_step = rnn.forward_solution.steps.float().mean() / LENGTH
        print(f"step {step:3}: loss {loss:.3f}, {per_step:.1f} steps of the solver at a time step")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# The record is that of the whole sequence: the worst of its steps, so that no failure is passed over.
x, y = draw(500)
with torch.no_grad():
    accuracy = (head(rnn(x)[:, -1]).argmax(1) == y).float().mean()
record = rnn.forward_solution
print(f"accuracy {accuracy:.1%}, all converged: {bool(record.converged.all())}, residual {record.residual.max():.1e}")
