"""Sparse codes: the solution of the Lasso and the elastic net, and its derivatives, at kinks too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import normal
from sklearn.datasets import load_digits
from sklearn.linear_model import ElasticNet
from torch import Tensor

import implicitnets as inn
from implicitnets.models import SparseCoding
from implicitnets.nonsmooth import Left, Right, Slope
from implicitnets.solvers import Dense, Newton, Picard

F64 = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14, "max_steps": 5000}
EXACT: dict[str, Any] = {"solver": Picard(**TIGHT), "backward": inn.Implicit(solver=Dense(rtol=1e-9, atol=1e-9))}


def layer(*sizes: int, seed: int = 0, **how: Any) -> SparseCoding:
    torch.manual_seed(seed)
    return SparseCoding(*sizes, **{**EXACT, **how}).double()


def scikit(dictionary: Tensor, x: Tensor, penalty: float, ridge: float, nonnegative: bool) -> Tensor:
    """Scikit-learn's coefficients, whose loss is divided by the entries of a signal."""
    total = (penalty + ridge) / len(dictionary)
    net = ElasticNet(
        total,
        l1_ratio=penalty / (penalty + ridge),
        fit_intercept=False,
        positive=nonnegative,
        tol=1e-12,
        max_iter=10**6,
    )
    return torch.from_numpy(np.atleast_2d(net.fit(dictionary.detach().numpy(), x.numpy().T).coef_))


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.2])
@pytest.mark.parametrize("atoms", [6, 15])
def test_the_code_is_that_of_scikit_learn(atoms, ridge, nonnegative):
    coding, x = layer(8, atoms, penalty=0.5, ridge=ridge, nonnegative=nonnegative), 2 * normal(7, 8, dtype=F64)
    z = coding(x).detach()
    torch.testing.assert_close(z, scikit(coding.D, x, 0.5, ridge, nonnegative), rtol=1e-6, atol=1e-6)
    assert 0.1 < float((z == 0).double().mean()) < 0.95
    torch.testing.assert_close(coding.decode(z), z @ coding.D.T)


def test_with_a_penalty_for_each_atom_it_is_optimal():
    coding, x = layer(8, 12, per_atom=True, penalty=0.5), 2 * normal(7, 8, dtype=F64)
    coding.log_penalty.data.uniform_(-3, 0)
    z = coding(x)
    pull, penalty = (x - coding.decode(z)) @ coding.D, coding.log_penalty.exp()  # 0 is in pull − λ ∂|z|
    active = z != 0
    torch.testing.assert_close(pull[active], (penalty * z.sign())[active])
    assert (pull.abs() <= penalty + 1e-9).all()


def test_it_is_the_fixed_point_of_ista_for_every_step():
    coding, x = layer(8, 12, penalty=0.4, ridge=0.1), 2 * normal(5, 8, dtype=F64)
    z, penalty = coding(x), coding.log_penalty.exp()
    for step in (0.01, 0.3, 2.0):
        v = z - step * ((coding.decode(z) - x) @ coding.D + 0.1 * z)
        torch.testing.assert_close(z, torch.nn.functional.softshrink(v, step * float(penalty.detach())))


@pytest.mark.parametrize("atoms", [6, 15])
def test_the_derivatives_are_those_on_the_support(atoms):
    """dz/dx = (D_EᵀD_E)⁻¹ D_Eᵀ and dz/dλ = −(D_EᵀD_E)⁻¹ sign(z_E), in all other entries 0."""
    coding, x = layer(8, atoms, penalty=0.5), (2 * normal(1, 8, dtype=F64)).requires_grad_()
    z = coding(x)
    support = z[0] != 0
    inside = coding.D[:, support].detach()
    inverse = torch.linalg.inv(inside.T @ inside)
    in_x, in_penalty = torch.zeros(atoms, 8, dtype=F64), torch.zeros(atoms, dtype=F64)
    in_x[support] = inverse @ inside.T
    in_penalty[support] = -inverse @ z[0, support].sign().detach()
    rows = [torch.autograd.grad(z[0, i], (x, coding.log_penalty), retain_graph=True) for i in range(atoms)]
    torch.testing.assert_close(torch.cat([row[0] for row in rows]), in_x)
    torch.testing.assert_close(torch.stack([row[1] for row in rows]), in_penalty * 0.5)  # dλ = λ d(log λ)


def test_the_dictionary_has_the_gradient_of_finite_differences():
    coding, x = layer(6, 9, penalty=0.4), 2 * normal(3, 6, dtype=F64)
    free = coding.parametrizations.D.original.detach().clone().requires_grad_()

    def code(weight: Tensor) -> Tensor:
        return torch.func.functional_call(coding, {"parametrizations.D.original": weight}, (x,))

    assert torch.autograd.gradcheck(code, free)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize(("selection", "slope"), [(Left(), 0.0), (Right(), 1.0), (Slope(0.25), 0.25)])
def test_where_an_atom_just_enters_the_derivative_is_the_chosen_one(selection, slope, nonnegative):
    """One atom, z = S(x, 1), at x = 1."""
    how = {"solver": Picard(**TIGHT), "backward": inn.Implicit(solver=Dense(rtol=1e-9, atol=1e-9), selection=selection)}
    coding = layer(1, 1, penalty=1.0, nonnegative=nonnegative, **how)
    coding.parametrizations.D.original.data.fill_(1.0)
    x = torch.ones(1, 1, dtype=F64, requires_grad=True)
    threshold = coding.log_penalty.exp().detach().reshape(1, 1) / 0.3
    z = coding(x, z0=threshold)
    assert torch.equal(coding.forward_solution.value, threshold)  # exactly at the kink
    (found,) = torch.autograd.grad(z.sum(), x)
    rho = 0.3  # v = v − z + (x + ρ (2z − v)) / (1 + ρ): dv/dx = 1 / (ρ + s (1 − ρ)), and dz = s dv
    torch.testing.assert_close(found, torch.full_like(x, slope / (rho + slope * (1 - rho))))


def test_a_ridge_makes_the_code_unique_whatever_the_dictionary():
    x = normal(4, 5, dtype=F64)
    starts = [5 * normal(4, 6, dtype=F64, seed=seed) for seed in range(20)]
    found: dict[float, list[Tensor]] = {}
    for ridge in (0.0, 0.1):
        coding = layer(5, 6, ridge=ridge, solver=Picard(**TIGHT))
        coding.parametrizations.D.original.data[:, 1:] = coding.parametrizations.D.original.data[:, :1]
        with torch.no_grad():
            found[ridge] = [coding(x, z0=z0) for z0 in starts]
            signals = torch.stack([coding.decode(z) for z in found[ridge]])
        torch.testing.assert_close(signals, signals[:1].expand_as(signals))  # Dz is unique in any case
    assert (torch.stack(found[0.1]) - found[0.1][0]).abs().max() < 1e-9
    assert (torch.stack(found[0.0]) - found[0.0][0]).abs().max() > 0.1


def test_atoms_have_norm_1_and_learn_to_have_it():
    coding, x = layer(5, 7), normal(20, 5, dtype=F64)
    coding.parametrizations.D.original.data[:, 3] = 0
    optimizer = torch.optim.SGD(coding.parameters(), 0.5)
    for _ in range(3):
        (coding.decode(coding(x)) - x).square().sum().backward()
        optimizer.step()
    norms = torch.linalg.vector_norm(coding.D, dim=0)
    keep = torch.arange(7) != 3
    torch.testing.assert_close(norms[keep], torch.ones(6, dtype=F64))
    assert torch.isfinite(coding.D).all()


def test_a_dictionary_of_digits_is_learned_with_the_defaults():
    x = torch.tensor(load_digits().data[:300] / 16, dtype=torch.float32)
    torch.manual_seed(0)
    coding = SparseCoding(64, 100, penalty=0.3)
    coding.log_penalty.requires_grad_(False)
    optimizer, losses = torch.optim.Adam(coding.parameters(), 2e-2), []
    for _ in range(40):
        z = coding(x)
        losses.append(0.5 * (coding.decode(z) - x).square().sum(1).mean() + 0.3 * z.abs().sum(1).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert coding.forward_solution.converged.all()
    assert losses[-1] < 0.6 * losses[0]
    assert (z != 0).float().sum(1).mean() < 30
    assert coding.forward_solution.steps.unique().numel() > 3  # as deep as each sample needs


def test_at_loose_tolerance_the_splitting_is_right_where_ista_is_not():
    """Why it is not ISTA: residuals that are small relative to the code, with the code still far off."""
    coding, x = layer(32, 64, penalty=0.05, solver=SparseCoding(1, 1).solver), normal(10, 32, dtype=F64)
    dictionary = coding.D.detach()
    step = 1 / torch.linalg.matrix_norm(dictionary, 2) ** 2

    def ista(z: Tensor, x: Tensor) -> Tensor:
        return torch.nn.functional.softshrink(z - step * (z @ dictionary.T - x) @ dictionary, 0.05 * float(step))

    best = scikit(coding.D, x, 0.05, 0.0, False)
    with torch.no_grad():
        by_ista = inn.fixed_point(ista, torch.zeros_like(best), x, solver=Picard(max_steps=5000)).value
        errors = [((z - best).norm(dim=1) / best.norm(dim=1)).median() for z in (coding(x), by_ista)]
    assert errors[0] < 0.01
    assert errors[1] > 5 * errors[0]


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (ValueError, "atoms=0", lambda: SparseCoding(4, 0)),
        (ValueError, "penalty must be positive", lambda: SparseCoding(4, 5, penalty=0)),
        (ValueError, "ridge must be at least 0", lambda: SparseCoding(4, 5, ridge=-1)),
        (ValueError, r"not \(batch, 4\)", lambda: SparseCoding(4, 5)(torch.zeros(3, 2, 2))),
        (TypeError, "solver=Newton is a class", lambda: SparseCoding(4, 5, solver=Newton)),
    ],
)
def test_it_says_what_is_wrong(error, text, call):
    with pytest.raises(error, match=text):
        call()
