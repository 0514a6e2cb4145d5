"""Digits without noise, by a dictionary that is learned from noisy ones alone.

    python examples/models/sparse_coding.py [--quick]

What is sparse in the dictionary is the digit; what is not is noise.
"""

# %%
import sys

import torch
from sklearn.datasets import load_digits

from implicitnets.models import SparseCoding

EPOCHS, NOISE, PENALTY = (1 if "--quick" in sys.argv else 5), 0.3, 0.8
torch.manual_seed(0)

# %% [markdown]
# ## The data
# Half of the digits, with noise, to learn from; the other half to be cleaned.

# %%
digits = torch.tensor(load_digits().data / 16, dtype=torch.float32)
mean = digits.mean(0)
noisy = digits + NOISE * torch.randn_like(digits)
train, test = (noisy - mean)[::2], (noisy - mean)[1::2]

# %% [markdown]
# ## Learning the dictionary
# The loss is the one that the code itself is the minimum of. The penalty is kept.

# %%
layer = SparseCoding(inputs=64, atoms=64, penalty=PENALTY)
layer.log_penalty.requires_grad_(False)
optimizer = torch.optim.Adam(layer.parameters(), lr=5e-2)
for _ in range(EPOCHS):
    for x in train[torch.randperm(len(train))].split(64):
        z = layer(x)
        loss = (0.5 * (layer.decode(z) - x).square().sum(1) + PENALTY * z.abs().sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %%
with torch.no_grad():
    z = layer(test)
    cleaned = layer.decode(z) + mean
before, after = (float((x - digits[1::2]).square().mean().sqrt()) for x in (test + mean, cleaned))
atoms = float((z != 0).sum(1).float().mean())
print(f"error of a pixel: {before:.3f} with noise, {after:.3f} cleaned, by {atoms:.1f} atoms of 64")
