"""A convolutional network becomes one implicit model, and layers again.

    python examples/models/convert.py [--quick]

The network is trained on digits first. What ``from_sequential`` makes of it is the equilibrium x = φ(Ax + Bu + b) with
the output y = Cx + Du + c: the same function, with all layers in one sparse matrix A.
"""

# %%
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from implicitnets.models import from_sequential, to_layers

EPOCHS = 2 if "--quick" in sys.argv else 15
torch.manual_seed(0)
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float().reshape(-1, 1, 8, 8) / 16
train, test = torch.randperm(len(images)).split([1350, 447])

# %%
network = nn.Sequential(
    *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)),
)
optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
for _ in range(EPOCHS):
    for rows in train[torch.randperm(len(train))].split(50):
        optimizer.zero_grad()
        cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()
network.eval()  # batch normalization is affine from here on

# %%
model = from_sequential(network, input_shape=(1, 8, 8))
u = images[test].flatten(1)
with torch.no_grad():
    wanted, found, back = network(images[test]), model(u), to_layers(model)(u)

print("states of the blocks, the last layer first:", model.structure.sizes)
rows, columns = model.A.shape
print(f"A: {rows} × {columns}, {model.A._nnz()} nonzeros, that is {model.A._nnz() / rows / columns:.2%}")
print(f"accuracy of the network {(wanted.argmax(1) == labels[test]).float().mean():.1%}")
print(f"equal labels: {(wanted.argmax(1) == found.argmax(1)).float().mean():.0%}")
for name, y in (("the implicit model", found), ("its layers", back)):
    print(f"largest difference of outputs, {name}: {(y - wanted).abs().max() / wanted.abs().max():.1e} of the largest")
