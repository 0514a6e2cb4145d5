"""Activations as values: what they compute, how they are cut and written down, and their Lipschitz constants."""

import math

import pytest
import torch
from problems import normal
from torch.nn import functional

from implicitnets import activations
from implicitnets.activations import (
    ACTIVATIONS,
    Blocks,
    GroupSort,
    LayerNorm,
    MaxPool,
    Product,
    Scaled,
    Softmax,
    as_activation,
)
from implicitnets.activations.groups import OTHERS

F64 = torch.float64
NAMED = ACTIVATIONS | OTHERS
GROUPED = (MaxPool(size=3), Product(size=2), GroupSort(size=3), Softmax(size=3), LayerNorm(size=3, eps=0.2))
MIXED = Blocks(("tanh", 2), (MaxPool(size=2), 4), (Softmax(size=3), 3), ("leaky_relu", 3))
EVERY = [
    *NAMED.values(),
    *GROUPED,
    MIXED,
    Scaled("tanh", tuple(range(1, 13))),
    Scaled(Softmax(size=4), (2.0, 3.0, 4.0)),
]


@pytest.mark.parametrize("phi", EVERY, ids=repr)
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_no_difference_quotient_exceeds_the_lipschitz_constant(phi, p):
    gamma = phi.lipschitz(p)
    for size in (1e-4, 0.1, 3.0):
        z = normal(1000, 12, dtype=F64) * 3
        z[500:] = z[500:, :1]  # where layer normalization is steepest
        step = size * normal(1000, 12, dtype=F64, seed=2)
        ratio = torch.linalg.vector_norm(phi(z + step) - phi(z), p, 1) / torch.linalg.vector_norm(step, p, 1)
        assert ratio.max() <= gamma * (1 + 1e-9)


@pytest.mark.parametrize("name", [name for name, phi in NAMED.items() if phi.bounds])
def test_the_slopes_of_a_name_are_attained(name):
    z = torch.linspace(-30, 30, 200_001, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(NAMED[name](z).sum(), z)
    least, largest = NAMED[name].slopes()
    assert least <= slope.min() <= least + 1e-3
    assert largest - 1e-3 <= slope.max() <= largest


@pytest.mark.parametrize(
    ("phi", "z", "p"),
    [
        (Softmax(size=2), [0.0, 0.0], math.inf),
        (Softmax(size=2), [0.0, 0.0], 2),
        (LayerNorm(size=4, eps=0.2), [1.0, 1.0, 1.0, 1.0], 2),
        (MaxPool(size=3), [1.0, 2.0, 5.0], math.inf),
    ],
)
def test_constants_of_groups_are_attained(phi, z, p):
    jacobian = torch.autograd.functional.jacobian(phi, torch.tensor(z, dtype=F64))
    assert torch.linalg.matrix_norm(jacobian, p) == pytest.approx(phi.lipschitz(p))


def test_layer_normalization_has_a_smaller_constant_where_the_variance_is_bounded_below():
    phi, z = LayerNorm(size=5, eps=0.01), normal(400, 5, dtype=F64)
    z = z[z.var(1, correction=0) > 0.5]
    for sample in z:
        norm = torch.linalg.matrix_norm(torch.autograd.functional.jacobian(phi, sample), 2)
        assert norm <= phi.lipschitz(2, variance=0.5) * (1 + 1e-9)
    assert phi.lipschitz(2, variance=0.5) < phi.lipschitz(2) / 7


@pytest.mark.parametrize("phi", EVERY, ids=repr)
def test_what_is_called_homogeneous_is(phi):
    z = normal(20, 12, dtype=F64)
    assert phi.homogeneous == torch.allclose(phi(3 * z), 3 * phi(z))


def test_groups_compute_what_they_say():
    z = normal(4, 6, dtype=F64)
    groups = z.reshape(4, 2, 3)
    assert torch.equal(MaxPool(size=3)(z), groups.amax(2))
    assert torch.equal(Product(size=3)(z), groups.prod(2))
    assert torch.equal(GroupSort(size=3)(z), groups.sort(2).values.reshape(4, 6))
    assert torch.equal(Softmax(size=3)(z), groups.softmax(2).reshape(4, 6))
    assert torch.equal(LayerNorm(size=3)(z), functional.layer_norm(groups, (3,)).reshape(4, 6))
    both = Blocks(("relu", 2), (MaxPool(size=2), 4))(z)
    assert torch.equal(both, torch.cat([z[:, :2].relu(), z[:, 2:].reshape(4, 2, 2).amax(2)], 1))
    scaled = Scaled(Softmax(size=3), (2.0, 5.0))(z)
    units = torch.tensor([2.0] * 3 + [5.0] * 3, dtype=F64)
    assert torch.equal(scaled, Softmax(size=3)(z * units) / units)


@pytest.mark.parametrize(
    "phi", [MIXED, Scaled(MIXED, tuple(range(1, 9))), as_activation("relu"), MaxPool(size=2)], ids=repr
)
@pytest.mark.parametrize("pieces", [(2, 2, 3, 3), (1, 3, 3, 2, 1), (10,)])
def test_the_parts_together_are_the_whole(phi, pieces):
    parts, z = phi.split(pieces), normal(3, phi.rows(sum(pieces)), dtype=F64)
    cut = z.split([part.rows(n) for part, n in zip(parts, pieces, strict=True)], 1)
    assert torch.equal(torch.cat([part(piece) for part, piece in zip(parts, cut, strict=True)], 1), phi(z))


def test_neighbors_of_one_kind_are_one_block():
    assert Blocks(("relu", 2), ("relu", 3), ("tanh", 1)) == Blocks(("relu", 5), ("tanh", 1))
    assert Blocks((Blocks(("relu", 2), ("tanh", 1)), 3), ("tanh", 2)) == Blocks(("relu", 2), ("tanh", 3))
    assert Blocks((ACTIVATIONS["relu"], 2)).blocks == (("relu", 2),)
    apart = Blocks((Scaled("tanh", (2.0,)), 1), (Scaled("tanh", (2.0,)), 1))
    assert len(apart.blocks) == 2


@pytest.mark.parametrize(
    "phi", [*GROUPED, MIXED, Scaled("tanh", (0.1, 1 / 3)), Blocks((Scaled("elu", (2.0,)), 1))], ids=repr
)
def test_a_value_is_read_from_what_it_prints(phi):
    assert activations.parse(repr(phi)) == phi
    assert activations.parse("relu") == "relu"


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (ValueError, "no activation is called 'rely'.*relu", lambda: activations.parse("rely")),
        (ValueError, "size must be at least 1", lambda: MaxPool(size=0)),
        (ValueError, "eps must be positive", lambda: LayerNorm(size=2, eps=0)),
        (ValueError, "groups of 3 rows, and 7 rows", lambda: MaxPool(size=3).states(7)),
        (ValueError, "groups of 3 states, and 7 states", lambda: Softmax(size=3).rows(7)),
        (ValueError, "8 rows in all, and A has 9", lambda: Blocks(("relu", 8)).states(9)),
        (ValueError, "make 8 states, not 9", lambda: Blocks(("relu", 8)).rows(9)),
        (ValueError, "groups of 2 states", lambda: Blocks((Softmax(size=2), 4)).split((1, 3))),
        (TypeError, r'\("relu", 20\)', lambda: Blocks("relu")),
        (ValueError, "at least one row", lambda: Blocks(("relu", 0))),
        (ValueError, "empty", Blocks),
        (ValueError, "positive and finite", lambda: Scaled("tanh", (1.0, 0.0))),
        (ValueError, "has 2 numbers", lambda: Scaled("tanh", (1.0, 2.0)).states(3)),
        (ValueError, "p=3", lambda: MaxPool(size=2).lipschitz(3)),
        (TypeError, "neither a name", lambda: as_activation(3)),
        (TypeError, "neither a name", lambda: as_activation(MaxPool)),
        (ValueError, "can't read", lambda: activations.parse("Blocks(('relu', x + 1))")),
    ],
)
def test_misuse_is_named(error, text, call):
    with pytest.raises(error, match=text):
        call()
