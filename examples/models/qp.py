"""Learning the prices behind decisions: a quadratic program inside a network.

    python examples/models/qp.py [--quick]

A customer spends a budget on goods, as is best for them: z = argmin ½ zᵀz − uᵀz with z ≥ 0 and pᵀz ≤ budget. The tastes
u and the budgets are seen, and what was bought. The prices p are not.
"""

# %%
import sys

import torch

from implicitnets.models import QPLayer

STEPS, GOODS = (50 if "--quick" in sys.argv else 200), 5
torch.manual_seed(0)
layer = QPLayer()


def decisions(prices, tastes, budgets):
    """What is bought: G z ≤ h holds −z ≤ 0 and pᵀz ≤ budget."""
    G = torch.cat([-torch.eye(GOODS), prices[None]])
    h = torch.cat([torch.zeros(len(tastes), GOODS), budgets[:, None]], dim=1)
    return layer(torch.eye(GOODS), -tastes, G, h)


# %% [markdown]
# ## The data

# %%
truth = torch.tensor([1.0, 2.0, 0.5, 1.5, 3.0])
tastes, budgets = 2 * torch.rand(100, GOODS), 2 + torch.rand(100)
bought = decisions(truth, tastes, budgets)

# %% [markdown]
# ## Prices by gradient descent through the program

# %%
log_prices = torch.zeros(GOODS, requires_grad=True)
optimizer = torch.optim.Adam([log_prices], lr=0.05)
for _ in range(STEPS):
    loss = (decisions(log_prices.exp(), tastes, budgets) - bought).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
print("prices: ", *(f"{p:.3f}" for p in log_prices.exp().tolist()))
print("truth:  ", *(f"{p:.3f}" for p in truth.tolist()))
