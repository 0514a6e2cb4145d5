"""What a function depends on is found, or its loss is noticed."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional

from implicitnets import fixed_point
from implicitnets.backward.capture import Substitution, capture


def find(f, *known):
    return capture(f, known, (), lambda value: [value])[:2]


def test_finds_leaves_results_and_what_hides_in_lists():
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    c = b * 2
    still = torch.ones(2)
    value, found = find(lambda: torch.cat([a, still]).sum() + functional.linear(c, torch.stack((a, c))).sum())
    assert value.requires_grad
    assert {id(t) for t in found} == {id(a), id(c)}


def test_takes_nothing_that_f_made_itself():
    a = torch.ones(2, requires_grad=True)
    _, found = find(lambda: (a * 2).sin() + (a * 3).cos())
    assert [id(t) for t in found] == [id(a)]


def test_known_tensors_come_first_also_those_without_gradient():
    a, b = torch.ones(2), torch.ones(2, requires_grad=True)
    _, found = find(lambda: a + b, a)
    assert [id(t) for t in found] == [id(a), id(b)]


def test_a_leaf_returned_as_it_is_counts():
    a = torch.ones(2, requires_grad=True)
    _, found = find(lambda: a)
    assert [id(t) for t in found] == [id(a)]


def test_a_result_returned_as_it_is_cannot_be_followed():
    a = torch.ones(2, requires_grad=True) * 2
    with pytest.raises(RuntimeError, match="the result of MulBackward0"):
        find(lambda: a)
    _, found = find(lambda: a, a)
    assert [id(t) for t in found] == [id(a)]


def test_substitution_replaces_inside_containers_and_proves_that_nothing_escaped():
    a, b = torch.full((2,), 3.0, requires_grad=True), torch.full((2,), 5.0, requires_grad=True)
    new = torch.full((2,), 7.0, requires_grad=True)
    with Substitution([a], [new]) as inside:
        out = torch.stack([a, a * 2]).sum() + functional.linear(input=a, weight=torch.ones(1, 2)).sum()
    inside.check([out], [new])
    assert out.item() == 7 * 2 + 14 * 2 + 14
    with Substitution([a], [new]) as inside:
        out = a * b
    with pytest.raises(RuntimeError, match="a tensor of shape"):
        inside.check([out], [new])


def test_buffers_that_f_updates_are_told_from_what_it_makes_itself():
    buffer, still, a = torch.zeros(2), torch.zeros(2), torch.ones(2, requires_grad=True)

    def f():
        made = torch.zeros(2)
        made.add_(1)
        made.clone().mul_(2)
        buffer.add_(1)
        still.add_(0)
        return a * made

    for context in (torch.enable_grad, torch.no_grad):
        buffer.zero_()
        with context():
            seen = capture(f, (), (), lambda value: [value])
        assert [(id(t), copy.tolist()) for t, copy in seen.updated] == [(id(buffer), [0, 0])]
        assert not seen.mixes


class Doubled(torch.autograd.Function):
    """Twice the tensor; its argument is not seen."""

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * tangent


@pytest.mark.parametrize("kind", ["dual numbers", "jvp", "vmap"])
@pytest.mark.parametrize("known", [0.0, 0.5], ids=["all hide", "one hides"])
def test_a_tangent_or_a_map_that_hides_is_noticed(kind, known):
    x = torch.ones(2, 3)

    def solve(x):
        def f(z):
            return 0.5 * z + Doubled.apply(x) + (known * x if known else 0)

        return fixed_point(f, torch.zeros(2, 3)).value

    def dual():
        with forward_ad.dual_level():
            solve(forward_ad.make_dual(x, x))

    kinds = {
        "dual numbers": dual,
        "jvp": lambda: torch.func.jvp(solve, (x,), (x,)),
        "vmap": lambda: torch.vmap(solve)(torch.stack([x, x])),
    }
    with pytest.raises(RuntimeError):
        kinds[kind]()
