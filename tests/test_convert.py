"""A feed-forward network and the implicit model made of it are the same function; so are the layers made of that."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, build, lenet, perceptron
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from implicitnets import storage
from implicitnets.activations import Blocks, LayerNorm, Product, Softmax
from implicitnets.models import ImplicitModel, from_sequential, to_layers
from implicitnets.solvers import Picard

F64 = torch.float64


class Net(nn.Module):
    """A network of one function, and of layers that it may use."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def inputs(shape: tuple[int, ...], batch: int = 4, dtype: torch.dtype = F64) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(batch, *shape, generator=draw, dtype=F64).to(dtype)


def distance(a: Tensor, b: Tensor) -> float:
    """Relative to the largest entry of b."""
    return float((a.flatten(1) - b.flatten(1)).detach().abs().max() / b.detach().abs().max())


def same(network: nn.Module, shape: tuple[int, ...], tolerance: float = 1e-12) -> ImplicitModel:
    """The model of a network in float64, after a comparison of outputs."""
    network = network.double().eval()
    model = from_sequential(network, shape)
    x = inputs(shape, dtype=model.b.dtype)  # that of the weights, where the network has any
    assert distance(model(x.flatten(1)), network(x)) <= (tolerance if x.dtype == F64 else 1e-6)
    return model


# whole networks


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (F64, 1e-12)], ids=["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_input_gradients_are_the_networks(name, dtype, tolerance):
    network, shape = build(name, dtype)
    model = from_sequential(network, shape)
    x = inputs(shape, dtype=dtype).requires_grad_()
    wanted, found = network(x), model(x.flatten(1))
    assert found.dtype == dtype
    assert distance(found, wanted) <= tolerance
    weights = torch.linspace(0.5, 1.5, wanted.numel(), dtype=dtype).reshape(found.shape)
    (wanted_grad,) = torch.autograd.grad((wanted.flatten(1) * weights).sum(), x)
    (found_grad,) = torch.autograd.grad((found * weights).sum(), x)
    assert distance(found_grad, wanted_grad) <= tolerance


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layers_of_the_model_are_the_network(name):
    network, shape = build(name)
    model, state = from_sequential(network, shape), torch.get_rng_state()
    back, x = to_layers(model), inputs(shape)
    assert torch.equal(torch.get_rng_state(), state)
    assert distance(back(x.flatten(1)), network(x)) <= 1e-12


def test_the_blocks_of_lenet_and_its_nonzeros():
    model = from_sequential(lenet(), (1, 28, 28))
    assert model.structure.sizes == (84, 120, 400, 1600, 1176, 4704)  # the last layer first
    row, column = model.A.indices()
    kept = {"pool": 4704 + 1600, "conv2": 16 * 100 * 6 * 25, "linear": 400 * 120 + 120 * 84}
    assert model.A._nnz() == sum(kept.values())
    assert model.C._nnz() == 84 * 10
    assert model.D._nnz() == 0
    rows_before = torch.tensor([0, 84, 204, 204 + 1600, 1804 + 1600, 3404 + 4704, 8108 + 4704])
    states_before = torch.tensor([0, 84, 204, 604, 2204, 3380, 8084])
    block_of = [torch.searchsorted(ends, at, right=True) for ends, at in ((rows_before, row), (states_before, column))]
    assert (block_of[0] + 1 == block_of[1]).all()  # a chain: each block sees only the one before, which stands behind


@pytest.mark.parametrize("name", ["perceptron", "mixed", "ResNet"])
def test_picard_iteration_ends_after_as_many_steps_as_there_are_blocks(name):
    network, shape = build(name)
    exact = from_sequential(network, shape)
    solver = Picard(rtol=1e-13, atol=1e-13, max_steps=len(exact.structure.sizes))
    model, x = from_sequential(network, shape, solver=solver), inputs(shape)
    torch.testing.assert_close(model(x.flatten(1)), exact(x.flatten(1)), rtol=1e-12, atol=1e-12)
    assert exact.solver is None
    assert (model.forward_solution.steps == len(exact.structure.sizes)).all()


# layer by layer


SINGLE: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Linear": (nn.Linear(5, 3), (5,)),
    "Linear-of-rows": (nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 4, bias=False)), (2, 5)),
    "Conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (4, 11)),
    "Conv2d": (nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, bias=False), (4, 6, 5)),
    "Conv2d-same": (nn.Conv2d(2, 3, (4, 3), padding="same", dilation=(1, 2)), (2, 6, 5)),
    "Conv2d-valid": (nn.Conv2d(2, 3, 3, padding="valid"), (2, 6, 5)),
    "Conv2d-circular": (nn.Conv2d(2, 3, 3, padding=2, padding_mode="circular"), (2, 5, 4)),
    "Conv2d-reflect": (nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect"), (2, 5, 4)),
    "Conv2d-replicate": (nn.Conv2d(2, 3, 3, padding="same", padding_mode="replicate"), (2, 5, 4)),
    "Conv3d": (nn.Conv3d(2, 3, 2, 2, 1), (2, 4, 3, 5)),
    "depthwise": (nn.Conv2d(3, 6, 3, groups=3), (3, 5, 5)),
    "weight-norm": (nn.Sequential(parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), nn.ReLU()), (2, 5, 5)),
    "BatchNorm1d": (nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4, affine=False)), (4,)),
    "LayerNorm": (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm((2, 6)), nn.ReLU()), (2, 6)),
    "GroupNorm": (nn.GroupNorm(2, 6), (6, 2, 3)),
    "Dropout": (nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.ReLU(), nn.Dropout1d(0.5)), (4,)),
    "Identity": (nn.Identity(), (3,)),
    "AvgPool1d": (nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 8)),
    "AvgPool2d": (nn.AvgPool2d((3, 2), ceil_mode=True, padding=(1, 0)), (2, 6, 7)),
    "AvgPool2d-divisor": (nn.AvgPool2d(3, 2, 1, divisor_override=5), (2, 6, 7)),
    "AvgPool3d": (nn.AvgPool3d(2), (1, 4, 4, 2)),
    "MaxPool1d": (nn.MaxPool1d(3, 1, 1, dilation=2), (2, 9)),
    "MaxPool2d": (nn.MaxPool2d((3, 2), (2, 1), (1, 0), ceil_mode=True), (2, 6, 7)),
    "MaxPool-of-a-vector": (nn.Sequential(nn.Linear(5, 8), nn.MaxPool1d(2)), (5,)),
    "AdaptiveAvgPool1d": (nn.AdaptiveAvgPool1d(3), (2, 7)),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d((None, 3)), (2, 4, 7)),
    "AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d((3, 2)), (2, 4, 7)),
    "GLU": (nn.Sequential(nn.Linear(5, 8), nn.GLU(), nn.Linear(4, 2)), (5,)),
    "Softmax": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.Softmax(1)), (2, 4, 4)),
    "Flatten": (nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 2, 2)), (3, 4)),
    "PixelShuffle": (nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(1, 2, 3)), (4, 3, 3)),
    "Upsample": (nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 3)), (2, 3, 3)),
    "ZeroPad2d": (nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), nn.ReLU()), (2, 3, 3)),
    "ConstantPad1d": (nn.Sequential(nn.ConstantPad1d(2, 0.7), nn.ReLU()), (2, 3)),
    "ReflectionPad2d": (nn.Sequential(nn.ReflectionPad2d(1), nn.Tanh()), (2, 3, 3)),
    **{
        f"activation-{layer}": (nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 2)), (6,))
        for layer in (
            *(nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.ELU(), nn.ELU(0.3), nn.SELU(), nn.CELU(0.4), nn.LeakyReLU()),
            *(nn.LeakyReLU(0.3), nn.LeakyReLU(2.0), nn.PReLU(), nn.PReLU(8), nn.Softplus(), nn.Softplus(2.0)),
            *(nn.Hardtanh(), nn.Hardtanh(-0.2, 0.5), nn.ReLU6(), nn.Hardsigmoid(), nn.Tanhshrink(), nn.Softshrink(0.2)),
            *(nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish()),
        )
    },
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", SINGLE)
def test_a_layer_alone(name):
    network, shape = SINGLE[name]
    same(network, shape)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "relu": lambda n, x: F.relu(n.a(x)),
    "method": lambda n, x: n.a(x).relu().add(1.0).sigmoid(),
    "in-place": lambda n, x: F.relu(n.a(x), inplace=True).mul_(3).tanh_(),
    "leaky_relu": lambda n, x: F.leaky_relu(n.a(x), negative_slope=0.2),
    "weights": lambda n, x: F.linear(x.tanh(), n.a.weight, n.a.bias) @ n.b.weight.T,
    "arithmetic": lambda n, x: 2 - (n.a(x) / 0.3 - 1.5 * x.relu()) + -x,
    "constants": lambda n, x: torch.tanh(n.a.bias * x + n.b.bias) - n.a.bias,
    "alpha": lambda n, x: torch.sub(torch.add(n.a(x).relu(), x, alpha=0.5), n.b(x), alpha=2),
    "maximum": lambda n, x: torch.maximum(n.a(x), torch.minimum(n.b(x), n.a.bias)),
    "clamp": lambda n, x: n.a(x).clamp(-0.1, 0.3) + n.b(x).clamp(min=0.2) + x.clamp(max=0.1),
    "product": lambda n, x: n.a(x) * n.b(x).sigmoid() + x * x,
    "gate": lambda n, x: n.a(x).sigmoid().view(-1, 2, 2, 1) * n.b(x).view(-1, 1, 2, 2),
    "matrices": lambda n, x: n.a(x).view(-1, 2, 2) @ torch.bmm(n.b(x).view(-1, 2, 2), x.view(-1, 2, 2)),
    "square": lambda n, x: n.a(x) ** 2 - x.square(),
    "abs": lambda n, x: n.a(x).abs() - torch.abs(x),
    "cat": lambda n, x: torch.cat([n.a(x).relu(), x, n.b(x)], dim=-1),
    "stack": lambda n, x: torch.stack([n.a(x), n.b(x).relu()], 1).sum(1),
    "chunk": lambda n, x: torch.cat([n.a(x).chunk(2, 1)[1].relu(), x], 1),
    "beside": lambda n, x: torch.cat([n.a.bias.expand(x.shape[0], 4), n.b(x)], 1).relu(),
    "split": lambda n, x: n.a(x).split([1, 3], 1)[1].relu(),
    "slices": lambda n, x: n.a(x)[:, 1:3].relu()[..., None].flatten(1) + x[:, :2],
    "shapes": lambda n, x: n.a(x).relu().view(x.size(0), 2, -1).transpose(1, 2).reshape(x.shape[0], -1),
    "mean": lambda n, x: n.a(x).relu().reshape(-1, 2, 2).mean(-1, keepdim=True).squeeze(2),
    "broadcast": lambda n, x: n.a(x).unsqueeze(1) + x.relu().unsqueeze(2),
    "pad": lambda n, x: F.pad(n.a(x), (1, 2), value=0.3).relu(),
    "softmax": lambda n, x: F.softmax(n.a(x), dim=1) + torch.softmax(x, -1),
    "dropout": lambda n, x: F.dropout(n.a(x), 0.5, training=n.training).relu(),
    "input-in-place": lambda n, x: n.a(x.tanh_()) + x,
    "twice": lambda n, x: n.a(n.a(x).relu()).relu(),
    "affine": lambda n, x: n.a(n.b(x)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_or_method(name):
    same(Net(FUNCTIONS[name], a=nn.Linear(4, 4), b=nn.Linear(4, 4)), (4,))


def test_small_entries_keep_their_digits():
    network = nn.Sequential(
        nn.ReLU6(),
        nn.LeakyReLU(0.3),
        nn.PReLU(),
        nn.ELU(0.5),
        nn.CELU(0.3),
        nn.Hardtanh(-2, 2),
        nn.Hardswish(),
        nn.Mish(),
    ).double()
    model, x = from_sequential(network, 4), 1e-12 * inputs((4,))
    torch.testing.assert_close(model(x), network(x), rtol=1e-12, atol=0)


def test_functions_of_images():
    def forward(n: Any, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.max_pool2d(F.conv2d(x, n.conv.weight, stride=1, padding=1), 3, stride=2), 2, padding=1)
        x = F.batch_norm(x, n.norm.running_mean, n.norm.running_var, n.norm.weight, n.norm.bias, n.training)
        return F.adaptive_max_pool2d(F.interpolate(x.tanh(), scale_factor=2), (2, 1)).permute(0, 2, 1, 3)

    norm = nn.BatchNorm2d(3)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.normal_(norm.running_mean)
    same(Net(forward, conv=nn.Conv2d(2, 3, 3), norm=norm), (2, 9, 8))


def test_what_is_changed_in_place_is_read_changed():
    def forward(n: Any, x: Tensor) -> Tensor:
        y = n.a(x)
        return n.relu(y) + 2 * y  # y is relu'd by then

    same(Net(forward, a=nn.Linear(3, 3), relu=nn.ReLU(inplace=True)), (3,))


class Attention(nn.Module):
    """A layer of a transformer (Vaswani et al. 2017) with two heads."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.mlp(self.norm2(x))


def test_attention_is_a_block_of_products_and_one_of_softmax():
    network, x = nn.Sequential(Attention(), Attention()).double(), inputs((5, 6))
    model = same(network, (5, 6))
    torch.testing.assert_close(to_layers(model)(x.flatten(1)).view_as(x), network(x))
    kinds = {phi for phi, _ in model.activation.blocks}
    assert kinds == {LayerNorm(size=6), Product(size=2), Softmax(size=5), "gelu", "identity"}


class Optional(nn.Module):
    """A network with arguments that have defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, times: int = 2) -> Tensor:
        if mask is not None:
            x = x * mask
        for _ in range(times):
            x = self.a(x).relu()
        return x


def test_arguments_have_their_defaults():
    assert same(Optional(), (4,)).structure.sizes == (4, 4)


@st.composite
def networks(draw: Any) -> tuple[nn.Module, tuple[int, ...]]:
    """Random small networks of one or two spatial axes."""
    axes = draw(st.integers(1, 2))
    kind = {name: getattr(nn, f"{name}{axes}d") for name in ("Conv", "BatchNorm", "MaxPool", "AvgPool")}
    channels, sizes = draw(st.integers(1, 2)) * 2, [draw(st.integers(4, 9)) for _ in range(axes)]
    shape, layers = (channels, *sizes), []
    for _ in range(draw(st.integers(1, 3))):
        kernel, stride, dilation = (draw(st.integers(1, top)) for top in (3, 2, 2))
        padding = draw(st.integers(0, 2))
        after, groups = 2 * draw(st.integers(1, 2)), draw(st.sampled_from([1, 2]))
        layers.append(kind["Conv"](channels, after, kernel, stride, padding, dilation, groups, draw(st.booleans())))
        sizes = [(n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n in sizes]
        if min(sizes) < 1:
            layers.pop()
            break
        channels = after
        if draw(st.booleans()):
            layers.append(kind["BatchNorm"](channels))
        layers.append(draw(st.sampled_from([nn.ReLU(), nn.Tanh(), nn.ELU(), nn.LeakyReLU(0.3), nn.Identity()])))
        if min(sizes) >= 2 and draw(st.booleans()):
            pool = kind[draw(st.sampled_from(["MaxPool", "AvgPool"]))]
            layers.append(pool(2, draw(st.integers(1, 2)), draw(st.integers(0, 1)), ceil_mode=draw(st.booleans())))
            break
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(draw(st.integers(1, 3)))), shape


@settings(max_examples=60, deadline=None)
@given(networks())
def test_random_networks(drawn):
    network, shape = drawn
    network = network.double()
    network.eval()(inputs(shape))  # which makes the lazy layer
    model = same(network, shape)
    x = inputs(shape)
    assert distance(to_layers(model)(x.flatten(1)), network(x)) <= 1e-12


STEPS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "linear": lambda n, x, y: n.a(x),
    "relu": lambda n, x, y: x.relu(),
    "tanh": lambda n, x, y: torch.tanh(x),
    "relu_": lambda n, x, y: torch.relu_(x + 0.1),
    "add": lambda n, x, y: x + y,
    "subtract": lambda n, x, y: torch.sub(x, y, alpha=0.3),
    "maximum": lambda n, x, y: torch.maximum(x, y),
    "gate": lambda n, x, y: x * y.sigmoid(),
    "join": lambda n, x, y: n.c(torch.cat([x, y], 1)),
    "swap": lambda n, x, y: torch.cat([y[:, 2:], x.flip(1)[:, :2]], 1) * n.a.bias,
}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 99), st.integers(0, 99)), max_size=12))
def test_random_graphs(program):
    def forward(n: Any, x: Tensor) -> Tensor:
        made = [x, n.a(x)]
        for step, i, j in program:
            made.append(STEPS[step](n, made[i % len(made)], made[j % len(made)]))
        return torch.cat(made[-2:], 1)

    torch.manual_seed(0)
    network = Net(forward, a=nn.Linear(4, 4), c=nn.Linear(8, 4))
    model, x = same(network, (4,)), inputs((4,))
    assert distance(to_layers(model)(x), network(x)) <= 1e-12


# sparsity


def test_a_trunk_that_many_layers_read_is_computed_once():
    def nonzeros(depth: int) -> int:
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(depth)]

        def forward(n: Any, x: Tensor) -> Tensor:
            x = n.stem(x)
            for i in range(depth):
                x = x + getattr(n, f"block{i}")(x)
            return x

        net = Net(forward, stem=nn.Linear(8, 8), **{f"block{i}": block for i, block in enumerate(blocks)})
        return same(net, (8,)).A._nnz()

    a_block = 2 * 64 + 8  # its two layers, and the trunk before it
    assert nonzeros(9) - nonzeros(5) == 4 * a_block  # multiplied out, the increments would grow with depth


def test_layers_without_an_activation_between_are_one():
    model = same(nn.Sequential(nn.Linear(50, 30), nn.Linear(30, 4), nn.ReLU(), nn.Linear(4, 2)), (50,))
    assert model.states == 4


def test_layers_that_narrow_and_widen_stay_two():
    model = same(nn.Sequential(nn.Linear(50, 2), nn.Linear(2, 40), nn.ReLU()), (50,))
    assert (model.structure.sizes, model.B._nnz(), model.A._nnz()) == ((40, 2), 50 * 2, 2 * 40)


def test_what_overlapping_windows_share_is_computed_once():
    model = same(nn.Sequential(nn.Conv2d(1, 4, 5), nn.MaxPool2d(3, 1)), (1, 12, 12))
    assert (model.B._nnz(), model.A._nnz()) == (4 * 8 * 8 * 25, 4 * 6 * 6 * 9)


def test_factors_that_are_repeated_are_computed_once():
    outer = Net(lambda n, x: n.a(x)[:, :, None] * n.b(x)[:, None, :], a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    model = same(outer, (4,))
    assert (model.structure.sizes, model.B._nnz(), model.A._nnz()) == ((16, 4, 4), 2 * 16, 2 * 16)


def test_zeros_of_the_network_are_no_entries():
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        network[2].weight[:, :3] = 0
    assert same(network, (6,)).A._nnz() == 10


# the model as any other


def test_the_weights_are_copies_and_nothing_else_is_touched():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.0)))
    network[2].eval()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    model, x = from_sequential(network, 3), torch.ones(1, 3)
    layers = to_layers(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == [True, True, True, False, False, False]
    y = model(x).detach()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1)
    assert torch.equal(model(x), y)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    torch.testing.assert_close(layers(x), y)
    assert all(torch.equal(network.state_dict()[name], before[name] + 1) for name in before)


@pytest.mark.parametrize("name", ["mixed", "attention"])
def test_it_is_saved_and_loaded(name, tmp_path):
    network, shape = (Attention(), (5, 6)) if name == "attention" else build(name, torch.float32)
    model, x = from_sequential(network, shape), inputs(shape, dtype=torch.float32)
    storage.save(model, tmp_path)
    assert torch.equal(storage.load(tmp_path)(x.flatten(1)), model(x.flatten(1)))


def test_gradients_of_the_weights_are_the_networks():
    network = perceptron().double()
    model, x = from_sequential(network, 784), inputs((784,))
    network(x).square().sum().backward()
    model(x).square().sum().backward()
    first, second, third, last = (network[i] for i in (0, 2, 4, 6))
    dense = {n: _dense_gradient(model, n) for n in "ABC"}
    torch.testing.assert_close(dense["A"][:32, 32 : 32 + 64], third.weight.grad)
    torch.testing.assert_close(dense["A"][32:96, 96:], second.weight.grad)
    torch.testing.assert_close(dense["B"][96:], first.weight.grad)
    torch.testing.assert_close(dense["C"][:, :32], last.weight.grad)
    torch.testing.assert_close(model.b.grad, torch.cat([third.bias.grad, second.bias.grad, first.bias.grad]))


def _dense_gradient(model: ImplicitModel, name: str) -> Tensor:
    matrix, values = getattr(model, name), dict(model.named_parameters())[f"{name}_parts.values"]
    return torch.sparse_coo_tensor(matrix.indices(), values.grad, matrix.shape, check_invariants=False).to_dense()


def test_it_trains_further_within_its_pattern():
    network, shape = build("mixed", torch.float32)
    model, x = from_sequential(network, shape), inputs(shape, 32, torch.float32).flatten(1)
    labels, before = torch.arange(32) % 10, model.A.detach().coalesce()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.numel())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(model.A.indices(), before.indices())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_kept(dtype):
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).to(dtype)
    model, x = from_sequential(network, 6), inputs((6,), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert distance(model(x).double(), network(x).double()) < 0.02


# back


def test_a_chain_comes_back_as_the_layers_it_was():
    network = perceptron()
    back = to_layers(from_sequential(network, 784))
    assert [type(layer) for layer in back] == [type(layer) for layer in network]
    for mine, theirs in zip(back, network, strict=True):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_states_in_any_order_are_put_in_layers(activation):
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    model = from_sequential(network, 4)
    order = torch.randperm(11)
    weights = {n: getattr(model, n).detach().to_dense() for n in "ABCD"}
    shuffled = ImplicitModel.from_matrices(
        *(weights["A"][order][:, order], weights["B"][order], weights["C"][:, order], weights["D"]),
        *(model.b.detach()[order], model.c.detach()),
        activation=activation,
    )
    back, x = to_layers(shuffled), inputs((4,))
    widths = [layer.out_features for layer in back if isinstance(layer, nn.Linear)]
    assert widths == [5, 6, 2]
    torch.testing.assert_close(back(x), shuffled(x), rtol=1e-3, atol=1e-3)  # which iterates
    if activation == "relu":
        torch.testing.assert_close(back(x), network(x))


def test_states_of_a_layer_are_sorted_by_activation():
    phi = Blocks(("relu", 1), ("tanh", 1), ("relu", 1), ("tanh", 1))
    weights = (torch.zeros(4, 4), torch.eye(4), torch.eye(4)[[2, 0, 3, 1]], torch.zeros(4, 4))
    model, x = ImplicitModel.from_matrices(*weights, activation=phi), inputs((4,), dtype=torch.float32)
    back = to_layers(model)
    assert back[1].activation == Blocks(("relu", 2), ("tanh", 2))
    torch.testing.assert_close(back(x), model(x))


def test_an_entry_that_is_zero_is_no_dependence():
    A = torch.sparse_coo_tensor([[0, 1], [1, 0]], [0.5, 0.0], check_invariants=True)
    model = ImplicitModel.from_matrices(A, torch.eye(2), torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    x = torch.tensor([[1.0, 3.0]])  # x₂ = relu(u₂), x₁ = relu(x₂ / 2 + u₁)
    assert to_layers(model)(x).item() == 2.5


def test_a_cycle_is_refused_and_named():
    A = torch.zeros(5, 5)
    A[0, 1] = A[1, 2] = A[2, 1] = A[3, 0] = 0.3
    model = ImplicitModel.from_matrices(A, torch.ones(5, 2), torch.ones(1, 5), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"2 of them depend on each other in a cycle \(number 1, 2\)"):
        to_layers(model)
    with pytest.raises(TypeError, match="must be an ImplicitModel, not a Linear"):
        to_layers(nn.Linear(2, 2))


# what is refused


class Block(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


def _attend(x: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, **options)


REFUSED: dict[str, tuple[type[Exception], str, nn.Module]] = {
    "layer": (
        TypeError,
        r"layer '1\.layer' \(Softsign\) is not supported.*ReLU",
        nn.Sequential(nn.ReLU(), Block(nn.Softsign())),
    ),
    "function": (TypeError, r"call of softsign in layer '1' is not.*ReLU", nn.Sequential(nn.ReLU(), Block(F.softsign))),
    "method": (TypeError, r"call of exp in the network is not supported", Net(lambda n, x: x.exp())),
    "power": (ValueError, r"call of pow in the network .* exponent 3", Net(lambda n, x: x**3)),
    "norm": (TypeError, r"layer '0' \(RMSNorm\).*LayerNorm", nn.RMSNorm(4)),
    "approximate": (ValueError, r"approximate='tanh'", nn.GELU("tanh")),
    "quotient": (ValueError, r"divides by a tensor", Net(lambda n, x: 1 / x)),
    "batch-norm": (ValueError, r"'0' \(BatchNorm1d\).*statistics of the batch", nn.Sequential(nn.BatchNorm1d(4))),
    "untracked": (ValueError, r"statistics of the batch", nn.BatchNorm1d(4, track_running_stats=False).eval()),
    "dropout": (ValueError, r"layer 'b' \(Dropout\).*at random", Net(lambda n, x: n.b(x), b=nn.Dropout())),
    "drop": (ValueError, r"call of dropout.*at random", Net(lambda n, x: F.dropout(x))),
    "indices": (TypeError, r"without return_ind", Net(lambda n, x: F.max_pool1d(x, 2, return_indices=True)[0])),
    "places": (ValueError, r"places of the", Net(lambda n, x: n.b(x)[0], b=nn.MaxPool1d(2, return_indices=True))),
    "linear": (ValueError, r"mode='linear'", Net(lambda n, x: F.interpolate(x[:, None], 8, mode="linear"))),
    "threshold": (ValueError, r"threshold=3", nn.Softplus(threshold=3)),
    "masked": (TypeError, r"these options.*is_causal", Net(lambda n, x: _attend(x[:, None], is_causal=True))),
    "vector": (ValueError, r"with a vector", Net(lambda n, x: x @ torch.ones(4))),
    "bound": (ValueError, r"tensor for a bound", Net(lambda n, x: x.clamp(min=torch.zeros(4)))),
    "mixing": (ValueError, r"sums over the batch", Net(lambda n, x: x - x.mean(0))),
    "softmax": (ValueError, r"an axis beside the batch", Net(lambda n, x: x.softmax(0))),
    "options": (TypeError, r"call of div .*options.*rounding", Net(lambda n, x: x.div(2, rounding_mode="floor"))),
    "control": (TypeError, r"can't be traced by torch\.fx", Net(lambda n, x: x if x.sum() > 0 else -x)),
    "tuple": (TypeError, r"returns a tuple, not a tensor", Net(lambda n, x: (x, x))),
    "constant": (TypeError, r"does not depend on its input", Net(lambda n, x: torch.zeros(2, 4))),
    "written-out": (ValueError, r"call of view .* fails for a batch of one", Net(lambda n, x: x.view(2, 2, 2))),
    "shape": (ValueError, r"does not take inputs of shape \(batch, 4\).*input_shape=\(4,\)", nn.Linear(5, 2)),
    "flipped": (ValueError, r"mix the samples", Net(lambda n, x: x.flip(0))),
    "flat": (ValueError, r"the network makes \(8,\) of a batch of two", Net(lambda n, x: x.flatten())),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_named(name):
    error, text, network = REFUSED[name]
    with pytest.raises(error, match=text):
        from_sequential(network, 4)


def test_what_is_changed_in_place_through_a_view_is_noticed():
    def forward(n: Any, x: Tensor) -> Tensor:
        y = n.a(x)
        y.view(-1, 2, 2).relu_()
        return y

    with pytest.raises(ValueError, match=r"differ by .* from the network's.*in place"):
        from_sequential(Net(forward, a=nn.Linear(4, 4)), 4)
