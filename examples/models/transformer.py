"""A Transformer of one block, applied until nothing changes, learns to continue a text.

python examples/models/transformer.py [--quick]
"""

import sys

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from implicitnets.analysis import jacobian_frobenius
from implicitnets.models import DEQTransformer

STEPS = 20 if "--quick" in sys.argv else 150
TEXT = "a deep network that repeats one layer goes to its fixed point, where the layer leaves the state alone. "

# The data: windows of 16 characters, and the character after each of them.
torch.manual_seed(0)
letters = sorted(set(TEXT))
tokens = torch.tensor([letters.index(c) for c in TEXT])
windows = tokens.unfold(0, 17, 1)

# Each position sees itself and what is before it, at equilibrium as in every step towards it.
embedding, deq, head = nn.Embedding(len(letters), 48), DEQTransformer(48, 4), nn.Linear(48, len(letters))
model = nn.Sequential(embedding, deq, head)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(STEPS + 1):
    batch = windows[torch.randint(len(windows), (32,))]
    x = embedding(batch[:, :-1])
    z = deq(x)
    loss = cross_entropy(head(z).flatten(0, 1), batch[:, 1:].flatten())
    if step % 25 == 0:
        print(f"step {step:3}: loss {loss:.2f}, {deq.forward_solution.steps.float().mean():4.1f} steps of the solver")
    optimizer.zero_grad()
    # A penalty on the Jacobian keeps the block near a contraction, which nothing else does while it learns.
    (loss + 0.5 * jacobian_frobenius(deq.cell, z, deq.injection(x)).mean()).backward()
    optimizer.step()

# To continue, the last state's prediction is appended, again and again.
text = "a deep network "
with torch.no_grad():
    for _ in range(60):
        recent = torch.tensor([[letters.index(c) for c in text[-16:]]])
        text += letters[int(model(recent)[0, -1].argmax())]
print(text)
