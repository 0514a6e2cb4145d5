"""The sensitivity matrix: closed forms, soundness on pairs, rankings."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from posed import MODELS, WEIGHTS, make, pairs
from problems import DTYPES
from test_wellposed import draw, form

from implicitnets.activations import MaxPool, as_activation
from implicitnets.analysis import sensitivity, well_posedness
from implicitnets.models import AffineForm, ImplicitModel
from implicitnets.plots import sensitivity_images

UNBOUNDED = {"monotone", "lipschitz", "convolutional", "softmax", "layer norm"}  # that need not have the matrix


def random_form(seed, n=5, inputs=3, outputs=2, activation="relu", gain=0.9):
    """A form with ‖A‖∞ = gain."""
    A = draw(seed, n)
    rng = np.random.default_rng(seed)
    B, C, D = (torch.from_numpy(rng.normal(size=s)) for s in ((n, inputs), (outputs, n), (outputs, inputs)))
    A = A * gain / A.abs().sum(1).max().clamp_min(1e-3)
    return AffineForm(A=A, B=B, C=C, D=D, b=B[:, 0], c=C[:, 0], activation=as_activation(activation))


def test_diagonal():
    found = sensitivity(torch.diag(torch.tensor([0.5, -3.0])))
    torch.testing.assert_close(found.matrix, torch.diag(torch.tensor([2.0, 0.25], dtype=torch.float64)))
    assert found.eliminated


def test_triangular():
    a = torch.tensor([[0.0, -2.0, 1.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[1.0, 2.0, 7.0], [0.0, 1.0, 3.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(sensitivity(a).matrix, expected)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_of_a_nonnegative_linear_model_it_is_the_jacobian(seed):
    f = random_form(seed, activation="identity").map(torch.abs)
    exact = f.C @ torch.linalg.solve(torch.eye(5) - f.A, f.B) + f.D
    for eliminate in (False, True):
        found = sensitivity(f, eliminate=eliminate).matrix
        torch.testing.assert_close(found, exact)
        assert (found >= exact * (1 - 1e-15)).all()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_published_matrix_and_the_better_one(seed):
    f = random_form(seed)
    published = sensitivity(f, eliminate=False)
    formula = f.C.abs() @ torch.linalg.inv(torch.eye(5) - f.A.abs()) @ f.B.abs() + f.D.abs()
    torch.testing.assert_close(published.matrix, formula)
    assert (sensitivity(f).matrix <= published.matrix * (1 + 1e-8)).all()


@given(seed=st.integers(0, 10_000), n=st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_it_exists_where_its_criterion_holds(seed, n):
    a = draw(seed, n)
    margins = well_posedness(a).margins
    for eliminate, name in ((False, "Perron-Frobenius"), (True, "NEMON")):
        margin = margins.get(name, 1.0)
        if margin > 1e-6:
            assert sensitivity(a, eliminate=eliminate).matrix.min() >= 0
        elif margin < -1e-3:
            with pytest.raises(ValueError, match=r"must be below 1.*lipschitz\(model\)"):
                sensitivity(a, eliminate=eliminate)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", MODELS)
def test_no_pair_of_inputs_moves_an_output_further(name, weights, dtype):
    f = make(name, weights, dtype)
    for eliminate in (False, True):
        try:
            found = sensitivity(f, eliminate=eliminate)
        except ValueError:
            assert not eliminate or name in UNBOUNDED
            continue
        du, dy = pairs(f)
        bound = du.abs() @ found.matrix.T
        assert (dy.abs() <= bound + 1e-9 * (1 + bound)).all()
        assert found.eliminated <= eliminate


@pytest.mark.parametrize("gain", [0.999, 1 - 1e-6, 1 - 1e-9])
def test_close_to_the_limit_it_is_still_proved(gain):
    f = random_form(3, n=20, gain=gain).map(torch.abs)
    f = AffineForm(**vars(f) | {"A": f.A * gain / f.A.sum(1, keepdim=True)})
    exact = torch.linalg.solve(torch.eye(20) - f.A, f.B)
    assert (sensitivity(f, eliminate=False).states >= exact * (1 - 1e-9)).all()


def test_of_maxima_and_of_what_has_no_constant():
    f = form([[0.0, 0.5], [0.25, 0.25], [0.0, 0.0], [0.0, 0.5]], "relu")
    maxima = AffineForm(**vars(f) | {"activation": as_activation(MaxPool(size=2))})
    G = torch.tensor([[0.25, 0.5], [0.0, 0.5]], dtype=torch.float64)
    H = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(sensitivity(maxima).states, torch.linalg.solve(torch.eye(2) - G, H))
    with pytest.raises(ValueError, match="no Lipschitz constant"):
        sensitivity(form([[0.1]], "square"))


def test_rankings():
    model = ImplicitModel(6, 9, 3)
    with torch.no_grad():
        model.B[:, 2] = model.D[:, 2] = 0  # an input that is not used
        model.B[:, 4] *= 100
        model.C[1] = 0  # an output that sees the inputs alone
        model.C[:, 7] = 0  # a state that no output sees
    found = sensitivity(model)
    assert found.inputs()[0] == 4
    assert found.inputs()[-1] == 2
    assert found.input_scores()[2] == 0
    assert torch.equal(found.input_scores(1), found.matrix[1])
    torch.testing.assert_close(found.input_scores(1), model.D[1].detach().double().abs())
    assert found.ranked_states()[-1] == 7
    assert found.state_scores(1).abs().max() == 0
    assert torch.equal(found.state_scores(), torch.stack([found.state_scores(k) for k in range(3)]).amax(0))


def test_images():
    found = sensitivity(ImplicitModel(20, 9, 3))
    figure = sensitivity_images(found, (4, 5))
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["output 0", "output 1", "output 2", "any"]
    assert np.allclose(shown[1].images[0].get_array(), found.matrix[1].reshape(4, 5))
    with pytest.raises(ValueError, match="20 inputs"):
        sensitivity_images(found, (5, 5))
