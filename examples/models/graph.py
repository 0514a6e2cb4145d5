"""Who is at the other end? Chains of nodes of which only the first one shows its class.

    python examples/models/graph.py [--quick]

Two graph convolutions hear of two neighbors. The equilibrium of one hears of everybody.
"""

# %%
import sys

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from implicitnets.models import ImplicitGraph

EPOCHS, LENGTH, CHAINS = (20, 15, 10) if "--quick" in sys.argv else (80, 40, 20)
torch.manual_seed(0)

# %% [markdown]
# ## The data
# Each chain is a graph of its own: ``batch`` says which node belongs to which, as in PyTorch Geometric.

# %%
nodes = torch.arange(CHAINS * LENGTH).reshape(CHAINS, LENGTH)
edge_index = torch.stack([nodes[:, :-1].flatten(), nodes[:, 1:].flatten()])
batch = torch.arange(CHAINS).repeat_interleave(LENGTH)
label = batch % 2
features = torch.zeros(CHAINS * LENGTH, 2)
features[nodes[:, 0], torch.arange(CHAINS) % 2] = 1
train = torch.rand(len(label)) < 0.2

# %% [markdown]
# ## The model, and its training

# %%
layer, head = ImplicitGraph(inputs=2, states=16), nn.Linear(16, 2)
optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=2e-2)
for _ in range(EPOCHS):
    scores = head(layer(features, edge_index, batch))
    loss = cross_entropy(scores[train], label[train])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
right = (scores.argmax(1) == label)[~train].double().mean()
steps = layer.forward_solution.steps
print(
    f"{LENGTH} nodes a chain: {right:.1%} of the others right, {int(steps.min())} to {int(steps.max())} steps a chain"
)
