"""Tools of others attack our models unchanged, and find what we find."""

import math
from importlib.util import find_spec

import foolbox
import pytest
import torch
from torch import nn

from implicitnets import ConvergenceWarning, Unroll
from implicitnets.analysis import FGSM, PGD, Attackable, attack
from implicitnets.models import DEQ, ConvDEQ, ImplicitModel
from implicitnets.solvers import Picard

SHAPE = (1, 3, 3)


def model(**options):
    torch.manual_seed(0)
    made = ImplicitModel(9, 10, 5, **options)
    with torch.no_grad():
        made.C.mul_(4)
    return made


def images(count=60):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_logits_are_those_of_the_exact_model():
    sound = model(solver=Picard(rtol=1e-7, max_steps=500))
    loose = model(solver=Picard(max_steps=2, rtol=0.5), backward=Unroll())
    victim = Attackable(loose, SHAPE, flat=True)
    x = images().requires_grad_()
    said = victim(x)
    torch.testing.assert_close(said, sound(x.flatten(1)), rtol=1e-4, atol=1e-5)
    assert said.dtype == torch.float32
    (ours,) = torch.autograd.grad(said[:, 0].sum(), x)
    (true,) = torch.autograd.grad(sound(x.flatten(1))[:, 0].sum(), x)
    torch.testing.assert_close(ours, true, rtol=1e-2, atol=1e-3)
    assert loose.backward == Unroll()
    assert not victim.training
    assert not any(p.requires_grad for p in victim.parameters())


def test_bounds_say_what_black_and_white_are():
    made = model().double()
    victim = Attackable(made, SHAPE, bounds=(-1, 1), flat=True)
    x = images().double()
    torch.testing.assert_close(victim(x), Attackable(made, SHAPE, flat=True).settled((2 * x - 1).flatten(1))[0])


def test_models_of_images_get_images():
    made = nn.Sequential(ConvDEQ(1, 4, groups=2), nn.Flatten(), nn.Linear(36, 3))
    assert Attackable(made, SHAPE)(images(4)).shape == (4, 3)


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (lambda victim: victim(255 * images()), "outside of"),
        (lambda victim: victim(images().flatten(1)), "batch, 1, 3, 3"),
        (lambda victim: victim((255 * images()).byte()), "floating point"),
        (lambda victim: victim.train(), "eval mode"),
        (lambda victim: victim.float()(images()), "say dtype="),
        (lambda victim: Attackable(model(), SHAPE, bounds=(1, 0)), "bounds"),
    ],
    ids=["range", "shape", "bytes", "training", "dtype", "bounds"],
)
def test_wrong_use_is_refused(use, says):
    with pytest.raises(ValueError, match=says):
        use(Attackable(model(), SHAPE, flat=True))


class Runaway(nn.Module):
    """Z = z² + 1 + x², which nothing solves."""

    def forward(self, z, x):
        return z.square() + 1 + x.square()


def test_equilibria_that_are_not_there_are_told_of():
    victim = Attackable(nn.Sequential(DEQ(Runaway(), solver=Picard(max_steps=5)), nn.Linear(9, 3)), (9,))
    with pytest.warns(ConvergenceWarning, match="4 of 4 images"):
        victim(torch.rand(4, 9))
    assert victim.unconverged == 4


# ------------------------------------------------------------------------------------------------------ tools of others


@pytest.fixture
def victim():
    return Attackable(model(), SHAPE, flat=True)


@pytest.fixture
def labels(victim):
    return victim(images()).argmax(1)


def survivors(victim, adversarial, labels, radius, norm):
    """The share of the images that are in the region, as all must be, and classified right."""
    moved = torch.linalg.vector_norm((adversarial - images()).flatten(1), norm, dim=1)
    assert (moved <= radius * (1 + 1e-4)).all()
    return (victim(adversarial).argmax(1) == labels).double().mean().item()


def accuracy(labels, method, radius, norm="inf"):
    x = images().flatten(1)
    return attack(model(), x, labels, radius=radius, norm=norm, domain=(0, 1), method=method).accuracy


if find_spec("torchattacks"):  # pip install --no-deps torchattacks tqdm, since it pins an old requests

    def test_torchattacks_finds_what_we_find(victim, labels):
        import torchattacks as tools  # noqa: PLC0415

        one = survivors(victim, tools.FGSM(victim, eps=0.1)(images(), labels), labels, 0.1, math.inf)
        assert one == pytest.approx(accuracy(labels, FGSM(loss="ce"), 0.1))
        many = survivors(
            victim, tools.PGD(victim, eps=0.1, alpha=0.02, steps=20)(images(), labels), labels, 0.1, math.inf
        )
        assert accuracy(labels, PGD(targets=4), 0.1) <= many <= one
        few, right = images()[:15], labels[:15]
        auto = tools.AutoAttack(victim, eps=0.1, n_classes=5, seed=0)(few, right)
        found = attack(model(), few.flatten(1), right, radius=0.1, domain=(0, 1), method=PGD(targets=4))
        assert torch.equal(victim(auto).argmax(1) == right, ~found.success)


def test_foolbox_finds_what_we_find(victim, labels):
    model = foolbox.PyTorchModel(victim, bounds=(0, 1), device="cpu")
    for tool, norm, radius in (
        (foolbox.attacks.LinfPGD(steps=20, rel_stepsize=0.1), "inf", 0.1),
        (foolbox.attacks.L2PGD(steps=20, rel_stepsize=0.1), 2, 0.3),
    ):
        _, adversarial, _ = tool(model, images(), labels, epsilons=radius)
        found = survivors(victim, adversarial, labels, radius, float(norm))
        assert accuracy(labels, PGD(targets=4), radius, norm) <= found < 1
