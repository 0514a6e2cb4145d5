"""The implicit model: its structures, given matrices, back-substitution, and sparse weights."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from architectures import IMPLICIT
from problems import normal
from torch import Tensor, nn

import implicitnets as inn
from implicitnets import storage
from implicitnets.activations import Blocks, MaxPool, Softmax
from implicitnets.constraints import BlockNorm, InfNorm, Monotone, PerronFrobenius, SpectralNorm
from implicitnets.models import ImplicitModel, from_config, structures
from implicitnets.models.sparse import Pattern, draw_indices, sparse_product
from implicitnets.models.structures import BlockDiagonal, Full, LowRank, Sparse, Triangular
from implicitnets.solvers import Anderson, Dense, Picard
from implicitnets.training.stages import chain

F64 = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-13, "atol": 1e-14, "max_steps": 500}
ROWS = [pytest.param(row, id=name) for name, row in IMPLICIT.items()]


def build(row: Any, **how: Any) -> ImplicitModel:
    torch.manual_seed(0)
    model: ImplicitModel = row.make(**how).double()
    nn.init.uniform_(model.b, -1, 1)
    return model


# structures


@pytest.mark.parametrize("row", ROWS)
def test_a_model_is_its_equation(row):
    model, u = build(row, solver=Anderson(**TIGHT)), normal(5, 4, dtype=F64)
    A, B, C, D = (weight.to_dense() for weight in (model.A, model.B, model.C, model.D))
    phi = inn.activations.as_activation(model.activation)
    x = model.state(u)
    assert A.shape == (model.rows, model.states)
    assert torch.allclose(x, phi(x @ A.T + u @ B.T + model.b), atol=1e-11)
    assert torch.allclose(model(u), x @ C.T + u @ D.T + model.c, atol=1e-11)


def test_a_has_the_structure_that_was_asked_for():
    def a(structure, activation="relu", states=6):
        return ImplicitModel(3, states, 2, structure=structure, activation=activation, constraint=None).A

    low = a(LowRank(rank=2))
    inside, outside = low[:3, 3:], torch.linalg.svdvals(low[:3, 3:])
    assert torch.linalg.matrix_rank(inside) == 2  # off the diagonal it is LRᵀ
    assert outside[2] < 1e-6
    blocks = a(BlockDiagonal(sizes=(2, 4)))
    assert (blocks[:2, 2:] == 0).all()
    assert (blocks[2:, :2] == 0).all()
    assert (blocks[:2, :2] != 0).all()
    pooled = a(BlockDiagonal(sizes=(2, 4)), MaxPool(size=3))
    assert pooled.shape == (18, 6)
    assert (pooled[:6, 2:] == 0).all()
    sparse = a(Sparse(nonzeros=11))
    assert sparse.is_sparse
    assert sparse._nnz() == 11
    for nonzeros in (None, 7):
        upper = a(Triangular(sizes=(1, 3, 2), nonzeros=nonzeros)).to_dense()
        assert (upper[0, 1:] != 0).all() or nonzeros
        assert (upper[:, 0] == 0).all()
        assert (upper[1:, :4] == 0).all()
        assert (upper[4:] == 0).all()
        assert int((upper != 0).sum()) == (nonzeros or 5 + 3 * 2)


@pytest.mark.parametrize(
    ("structure", "activation"),
    [
        (Full(), Blocks(("relu", 2), (MaxPool(size=2), 8))),
        (LowRank(rank=2), "tanh"),
        (BlockDiagonal(sizes=(2, 4)), Softmax(size=2)),
        (BlockDiagonal(sizes=(3, 3)), "relu"),
        (Sparse(nonzeros=20), MaxPool(size=2)),
        (Triangular(sizes=(1, 3, 2)), "relu"),
        (Triangular(sizes=(1, 3, 2), nonzeros=7), "relu"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("method", ["project", "rescale"])
def test_the_infinity_norm_is_bounded_in_every_structure(structure, activation, method):
    constraint = InfNorm(kappa=0.7, method=method)
    model = ImplicitModel(3, 6, 2, structure=structure, activation=activation, constraint=constraint).double()
    start = model.A.to_dense()
    free = copy.deepcopy(model)
    for parts in free.modules():
        if hasattr(parts, "constraint") and not isinstance(parts, ImplicitModel):
            parts.constraint = None
    if structure != Full():
        assert torch.allclose(free.A.to_dense(), start)  # which is within the bound
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(50)
    sums = model.A.to_dense().abs().sum(1)
    assert (sums <= 0.7 * (1 + 1e-12)).all()
    assert sums.max() > 0.2


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("rank must be at least 1", lambda: {"structure": LowRank(rank=0)}),
        ("sizes must be at least 1", lambda: {"structure": Triangular(sizes=())}),
        ("nonzeros can't be negative", lambda: {"structure": Sparse(nonzeros=-1)}),
        ("add up to 5 states, and the model has 6", lambda: {"structure": BlockDiagonal(sizes=(2, 3))}),
        ("room for 36", lambda: {"structure": Sparse(nonzeros=37)}),
        ("room for 8", lambda: {"structure": Triangular(sizes=(2, 4), nonzeros=9)}),
        ("as many rows as states", lambda: {"structure": LowRank(rank=1), "activation": MaxPool(size=2)}),
        ("LowRank", lambda: {"structure": LowRank}),
        ("groups of 4 states", lambda: {"structure": Triangular(sizes=(3, 3)), "activation": Softmax(size=4)}),
        ('"B", "C" and "D"', lambda: {"nonzeros": {"A": 3}}),
        ("room for 18", lambda: {"nonzeros": {"B": 19}}),
        ("one pass", lambda: {"structure": Triangular(sizes=(3, 3)), "backward": inn.Implicit()}),
        ("one pass", lambda: {"structure": Triangular(sizes=(3, 3)), "start": inn.models.WarmStart(samples=3)}),
        ("use InfNorm", lambda: {"structure": LowRank(rank=1), "constraint": SpectralNorm()}),
        ("use InfNorm", lambda: {"structure": Sparse(nonzeros=3), "constraint": PerronFrobenius()}),
        ("use InfNorm", lambda: {"structure": BlockDiagonal(sizes=(3, 3)), "constraint": BlockNorm()}),
        ("use InfNorm", lambda: {"structure": Triangular(sizes=(3, 3)), "constraint": Monotone()}),
    ],
)
def test_what_does_not_fit_is_refused(text, options):
    with pytest.raises((ValueError, TypeError), match=text):
        ImplicitModel(3, 6, 2, **options())


def test_a_structure_is_read_from_what_it_prints():
    for structure in (Full(), LowRank(rank=3), BlockDiagonal(sizes=(2, 3)), Triangular(sizes=(2,), nonzeros=0)):
        assert structures.parse(repr(structure)) == structure


def test_the_default_model_has_the_weights_and_names_that_it_always_had():
    torch.manual_seed(3)
    model = ImplicitModel(4, 5, 2)
    assert set(model.state_dict()) == {"parametrizations.A.original", "B", "C", "D", "b", "c"}
    torch.manual_seed(3)
    a = torch.empty(5, 5).uniform_(-1, 1)
    b = torch.empty(5, 4).uniform_(-1, 1) * 4**-0.5
    assert torch.equal(model.A, a / (2 * a.abs().sum(1, keepdim=True)))
    assert torch.equal(model.B, b)
    old = {k: v for k, v in model.config().items() if k not in ("structure", "nonzeros")}
    assert from_config(old).config() == model.config()


# given matrices


def network() -> tuple[nn.Sequential, dict[str, Any]]:
    """A network of two hidden layers, the first with maxima over pairs, and its matrices."""
    torch.manual_seed(0)
    first, second, last = nn.Linear(5, 8).double(), nn.Linear(4, 3).double(), nn.Linear(3, 2).double()
    layers = nn.Sequential(first, nn.Unflatten(1, (1, 8)), nn.MaxPool1d(2), nn.Flatten(), second, nn.Tanh(), last)
    A, B = torch.zeros(11, 7, dtype=F64), torch.zeros(11, 5, dtype=F64)
    A[:3, 3:], B[3:] = second.weight.data, first.weight.data
    C = torch.cat([last.weight.data, torch.zeros(2, 4, dtype=F64)], 1)
    weights = {"A": A, "B": B, "C": C, "D": torch.zeros(2, 5, dtype=F64)}
    biases = {"b": torch.cat([second.bias.data, first.bias.data]), "c": last.bias.data}
    return layers, {**weights, **biases, "activation": Blocks(("tanh", 3), (MaxPool(size=2), 8))}


def converted(kind: str, **options: Any) -> ImplicitModel:
    given = network()[1]
    how = {"dense": lambda m: m, "coo": Tensor.to_sparse, "csr": Tensor.to_sparse_csr}[kind]
    return ImplicitModel.from_matrices(**{**given, **{k: how(given[k]) for k in "ABCD"}}, **options)


@pytest.mark.parametrize("kind", ["dense", "coo", "csr"])
def test_back_substitution_is_the_network_and_its_gradients(kind):
    layers, model = network()[0], converted(kind, sizes=(3, 4))
    u = normal(6, 5, dtype=F64).requires_grad_()
    y = model(u)
    assert torch.allclose(y, layers(u), rtol=1e-13, atol=1e-14)
    solution = model.forward_solution
    assert solution.converged.all()
    assert solution.steps.tolist() == [1] * 6
    wanted = torch.autograd.grad(layers(u).pow(2).sum(), [u, layers[0].weight, layers[4].weight, layers[0].bias])
    y.pow(2).sum().backward()
    assert torch.allclose(u.grad, wanted[0])
    assert torch.allclose(model.b.grad[3:], wanted[3])
    if kind == "dense":
        assert torch.allclose(model.A_parts.blocks[0].grad, wanted[2])
        assert torch.allclose(model.B.grad[3:], wanted[1])
    else:
        assert model.A_parts.values.shape == (12,)  # the nonzeros, and no more
        assert torch.allclose(model.A_parts.values.grad, wanted[2].flatten())
        assert torch.allclose(model.B_parts.values.grad, wanted[1].flatten())


@pytest.mark.parametrize("kind", ["dense", "coo"])
def test_a_solver_that_is_given_iterates(kind):
    u = normal(6, 5, dtype=F64)
    direct = converted(kind, sizes=(3, 4))
    model = converted(kind, sizes=(3, 4), solver=Picard(**TIGHT), backward=inn.Implicit(solver=Dense(**TIGHT)))
    assert torch.allclose(model(u), direct(u), rtol=1e-13)
    assert model.forward_solution.steps.max() == 2  # one for each layer
    (model(u).sum() + direct(u).sum()).backward()
    for p, q in zip(model.parameters(), direct.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-12)
    model.solver = model.backward = None
    assert torch.equal(model(u), direct(u))


def test_derivatives_of_back_substitution_are_those_of_plain_autograd():
    for kind in ("dense", "coo"):
        model, u = converted(kind, sizes=(3, 4)), normal(2, 5, dtype=F64).requires_grad_()
        names, values = zip(*model.named_parameters(), strict=True)

        def call(u, *values, model=model, names=names):
            return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (u,))

        assert torch.autograd.gradcheck(call, (u, *values), fast_mode=True, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(call, (u, *values), fast_mode=True)
        jacobian = torch.func.vmap(torch.func.jacrev(lambda u, model=model: model(u[None])[0]))(u.detach())
        assert torch.allclose(
            jacobian, torch.func.vmap(torch.func.jacfwd(lambda u, m=model: m(u[None])[0]))(u.detach())
        )
        (g,) = torch.autograd.grad(model(u).sum(), u)
        assert torch.allclose(g, jacobian.sum(1))


def test_back_substitution_has_no_use_for_a_start_and_tells_of_data_that_are_not_finite():
    model, u = converted("coo", sizes=(3, 4)), normal(4, 5, dtype=F64)
    with pytest.raises(ValueError, match="z0 has no use"):
        model(u, z0=torch.zeros(4, 7, dtype=F64))
    u[2] = torch.nan
    with pytest.warns(inn.ConvergenceWarning, match="1 of 4 samples.*non-finite"):
        model(u)
    assert model.forward_solution.status.tolist() == [0, 0, 3, 0]


@pytest.mark.parametrize("kind", ["dense", "coo"])
@pytest.mark.parametrize("sizes", [None, (3, 4)])
def test_given_matrices_are_saved_and_copied(kind, sizes, tmp_path):
    model, u = converted(kind, sizes=sizes), normal(6, 5, dtype=F64)
    wanted = model(u)
    storage.save(model, tmp_path)
    again = from_config(model.config()).double()
    assert again.config() == model.config()
    again(u)  # its own pattern is in use when the other comes
    again.load_state_dict(model.state_dict())
    for other in (storage.load(tmp_path), again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(u), wanted)
        assert other.A.dtype == F64


def test_the_weights_are_copies_of_the_given_ones():
    given = network()[1]
    before, model = torch.get_rng_state(), ImplicitModel.from_matrices(**given)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert given["A"].any()
    assert given["c"].any()
    del given["c"]
    assert ImplicitModel.from_matrices(**given).c.tolist() == [0, 0]
    del given["b"]
    assert ImplicitModel.from_matrices(**given).b is None


def test_given_matrices_can_be_constrained_if_they_satisfy_the_constraint():
    given = network()[1]
    given["A"] *= 0.5 / given["A"].abs().sum(1).max()
    model = ImplicitModel.from_matrices(**given, constraint=InfNorm(kappa=0.5))
    assert torch.allclose(model.A, given["A"])
    with torch.no_grad():
        model.parametrizations.A.original.mul_(100)
    assert model.A.abs().sum(1).max() <= 0.5 + 1e-12
    for kind in (lambda m: m, Tensor.to_sparse):
        with pytest.raises(ValueError, match=r"does not satisfy InfNorm.*leave out"):
            ImplicitModel.from_matrices(**{**given, "A": kind(given["A"])}, constraint=InfNorm(kappa=0.4))


@pytest.mark.parametrize(
    ("error", "text", "change"),
    [
        (
            ValueError,
            "row 1, column 0.*last layer first",
            lambda g: {"A": torch.ones_like(g["A"]).tril(-1), "sizes": (3, 4)},
        ),
        (ValueError, "row 0, column 0", lambda g: {"A": torch.ones_like(g["A"]).to_sparse(), "sizes": (3, 4)}),
        (ValueError, "row 0, column 2", lambda g: {"A": torch.eye(11, 7, dtype=F64).roll(2, 1), "sizes": (3, 4)}),
        (ValueError, "add up to the 7 states", lambda g: {"sizes": (3, 3)}),
        (ValueError, "B has shape .*must be", lambda g: {"B": g["B"][:5]}),
        (ValueError, "D has shape", lambda g: {"D": g["D"].T}),
        (ValueError, "b has shape", lambda g: {"b": g["b"][:3]}),
        (ValueError, "c must|c has shape", lambda g: {"c": g["c"][None]}),
        (ValueError, "C is torch.float32.*convert", lambda g: {"C": g["C"].float()}),
        (TypeError, "A must be a tensor", lambda g: {"A": [[1.0]]}),
        (TypeError, "floating point", lambda g: {"A": g["A"].long()}),
        (ValueError, "makes 8 states of 8 rows|A has shape", lambda g: {"activation": "relu"}),
    ],
)
def test_given_matrices_that_do_not_fit_are_named(error, text, change):
    given = network()[1]
    with pytest.raises(error, match=text):
        ImplicitModel.from_matrices(**{**given, **change(given)})


def test_a_network_without_hidden_connections_and_one_that_is_empty_inside():
    B, C = normal(3, 2, dtype=F64), normal(1, 3, dtype=F64)
    for A in (torch.zeros(3, 3, dtype=F64), torch.zeros(3, 3, dtype=F64).to_sparse()):
        u = normal(4, 2, dtype=F64)
        for sizes in (None, (3,), (1, 2)):
            model = ImplicitModel.from_matrices(A, B, C, torch.zeros(1, 2, dtype=F64).to_sparse(), sizes=sizes)
            y = model(u)
            assert torch.allclose(y, (u @ B.T).relu() @ C.T)
            y.sum().backward()
            assert model.B.grad.abs().sum() > 0
            assert from_config(model.config()).config() == model.config()


# sparse products


def sparse(rows: int = 5, columns: int = 4, count: int = 9) -> tuple[Pattern, Tensor, Tensor]:
    """A pattern, values, and the dense matrix."""
    torch.manual_seed(0)
    indices = draw_indices(torch.zeros(rows, dtype=torch.int64), columns, count)
    values = normal(count, dtype=F64)
    dense = torch.zeros(rows, columns, dtype=F64).index_put((indices[0], indices[1]), values)
    return Pattern(indices, (rows, columns)), values, dense


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 9, 20])
def test_the_sparse_product_is_the_dense_one(dtype, count):
    pattern, values, dense = sparse(count=count)
    x = normal(3, 4, dtype=F64)
    out = sparse_product(pattern, values.to(dtype), x.to(dtype))
    assert out.dtype == dtype
    assert torch.allclose(out.double(), x @ dense.T, atol=20 * torch.finfo(dtype).eps)


def test_the_sparse_product_has_derivatives_of_every_order_and_mode():
    pattern, values, _ = sparse()
    arguments = (values.requires_grad_(), normal(3, 4, dtype=F64).requires_grad_())

    def product(values, x):
        return sparse_product(pattern, values, x).sin()

    assert torch.autograd.gradcheck(product, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(product, arguments)
    plain = [t.detach() for t in arguments]
    for argument in (0, 1):
        back = torch.func.jacrev(product, argument)(*plain)
        assert torch.allclose(back, torch.func.jacfwd(product, argument)(*plain))
        twice = torch.func.hessian(lambda *a: product(*a).sum(), argument)(*plain)
        assert torch.allclose(
            twice, torch.autograd.functional.hessian(lambda *a: product(*a).sum(), tuple(plain))[argument][argument]
        )


def test_a_pattern_is_drawn_evenly_among_the_places_there_are():
    first = torch.tensor([1, 1, 3, 4])
    seen = torch.zeros(4, 4)
    for _ in range(600):
        i = draw_indices(first, 4, 3)
        assert (i[1] >= first[i[0]]).all()
        assert len(set(map(tuple, i.T.tolist()))) == 3
        assert i.T.tolist() == sorted(i.T.tolist())
        seen[i[0], i[1]] += 1
    assert torch.allclose(seen[seen > 0] / 600, torch.tensor(3 / 7), atol=0.08)
    assert int((seen > 0).sum()) == 7


@pytest.mark.parametrize("structure", [LowRank(rank=2), BlockDiagonal(sizes=(2, 4)), Sparse(nonzeros=12), Full()])
def test_a_structured_model_computes_in_low_precision_under_autocast(structure):
    model, u = ImplicitModel(3, 6, 2, structure=structure, nonzeros={"B": 9}), torch.randn(4, 3)
    wanted = model(u)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(u)
    assert torch.allclose(y.float(), wanted, atol=0.05)
    y.float().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("structure", [LowRank(rank=2), Sparse(nonzeros=12), Full()])
def test_the_stages_of_training_have_all_parameters(structure):
    model = ImplicitModel(3, 6, 2, structure=structure, nonzeros={"C": 9})
    owned = [p for stage in chain(model) for p in stage.parameters]
    assert {id(p) for p in owned} == {id(p) for p in model.parameters()}
    assert len(owned) == len(list(model.parameters()))


def test_the_slopes_of_blocks_are_known_to_the_analysis():
    model = ImplicitModel(3, 6, 2, activation=Blocks(("tanh", 2), ("elu", 4)), structure=Sparse(nonzeros=12))
    assert inn.analysis.invertibility(model).verdict == "proved"
    with pytest.raises(ValueError, match="pass slopes="):
        inn.analysis.invertibility(ImplicitModel(3, 6, 2, activation=Softmax(size=2)))
    with pytest.raises(TypeError, match=r"shape \(12, 6\)"):
        inn.analysis.invertibility(ImplicitModel(3, 6, 2, activation=MaxPool(size=2)))


def test_the_pattern_of_a_model_is_moved_with_it():
    model = ImplicitModel(3, 6, 2, structure=Sparse(nonzeros=12))
    u = torch.randn(4, 3)
    y = model(u)
    assert model.to(F64)(u.double()).dtype == F64
    other = ImplicitModel(3, 6, 2, structure=Sparse(nonzeros=12))
    other(u)
    other.load_state_dict(model.state_dict())
    assert torch.allclose(other(u), y)
