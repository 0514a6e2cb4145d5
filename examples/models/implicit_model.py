"""Implicit models of handwritten digits: low rank, sparse, feed-forward; then composed, and rescaled.

python examples/models/implicit_model.py [--quick]
"""

import sys

import torch
from torch.nn.functional import cross_entropy

from implicitnets import data
from implicitnets.models import ImplicitModel, algebra, pf_eigenvalue, rescale
from implicitnets.models.structures import Full, LowRank, Sparse, Triangular
from implicitnets.solvers import Anderson

EPOCHS = 2 if "--quick" in sys.argv else 20
digits = data.load("digits")

# %% [markdown]
# x = relu(Ax + Bu + b), y = Cx + Du + c with 60 states, and four structures of A. The first three are well-posed since
# ‖A‖∞ ≤ 0.95, the last since it has no loops; its states are found in one pass.

# %%
STRUCTURES = {
    "full": {"structure": Full()},
    "low rank": {"structure": LowRank(rank=5)},
    "sparse": {"structure": Sparse(nonzeros=400)},
    "two layers": {"structure": Triangular(sizes=(30, 30)), "constraint": None},
}


def accuracy(model):
    with torch.no_grad():
        return (model(digits.test.inputs).argmax(1) == digits.test.labels).double().mean()


models = {}
for name, options in STRUCTURES.items():
    torch.manual_seed(0)
    models[name] = model = ImplicitModel(64, 60, 10, **options)
    optimizer, shuffle = torch.optim.Adam(model.parameters(), 5e-3), torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for inputs, labels in digits.train.batches(64, generator=shuffle):
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    numbers = sum(p.numel() for p in model.parameters())
    print(f"{name:>10}: accuracy {accuracy(model):.1%}, {numbers} parameters, λ(|A|) = {pf_eigenvalue(model):.3f}")

# %% [markdown]
# Their average is an implicit model too. Its ‖A‖∞ is the largest of the parts', that of a cascade may be anything.

# %%
average = algebra.affine_output(algebra.add(*models.values()), torch.eye(10) / len(models))
print(f"   average: accuracy {accuracy(average):.1%}, {average.states} states")
twice = algebra.cascade(average, ImplicitModel(10, 20, 10, activation="tanh"))
twice.solver = Anderson(rtol=1e-6, max_steps=200)
scaled = rescale(twice)
norms = " -> ".join(f"{m.A.to_dense().abs().sum(1).max():.2f}" for m in (twice, scaled))
change = (scaled(digits.test.inputs) - twice(digits.test.inputs)).abs().max()
print(f"   cascade: ‖A‖∞ {norms} in other units, outputs changed by {change:.0e}")
