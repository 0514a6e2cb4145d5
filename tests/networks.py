"""Feed-forward networks of every supported kind, small, for the tests of conversion."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def lenet() -> nn.Module:
    """LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998), with ReLU and max-pooling."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def perceptron() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh()),
        *(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def mixed() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 10)),
    )


class Residual(nn.Module):
    """The basic block of He et al. (2016), with a 1 × 1 convolution beside it where sizes change."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.first(x)))
        out = self.norm2(self.second(out))
        out += self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.blocks = nn.Sequential(Residual(4, 4), Residual(4, 8, 2), Residual(8, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1), 1))


class PreResidual(nn.Module):
    """A residual block with its activations in front (He et al. 2016b): the trunk itself stays affine."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding="same", dilation=2, padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.leaky_relu(self.conv1(self.norm(x).relu()), 0.2)) * 0.5


class PreResNet(nn.Module):
    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, 2, 1)
        self.blocks = nn.Sequential(*(PreResidual(4) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).mean((2, 3))


class Dense(nn.Module):
    """A layer of Huang et al. (2017): what it makes is put beside what it gets."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(before), nn.Conv2d(before, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), Dense(4, 3), Dense(7, 3), Dense(10, 3)),
            *(nn.BatchNorm2d(13), nn.ReLU(), nn.Conv2d(13, 6, 1), nn.AvgPool2d(2), Dense(6, 3)),
        )
        self.head = nn.Linear(9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.features(x), inplace=True)
        x = F.adaptive_avg_pool2d(x, (1, 1))
        return self.head(x.view(x.size(0), -1))


def signal() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(2, 6, 5, stride=2, padding=2, groups=2), nn.ELU(), nn.MaxPool1d(3, 2, 1)),
        *(nn.Conv1d(6, 4, 3, padding="same", dilation=2, padding_mode="reflect"), nn.BatchNorm1d(4), nn.Softplus()),
        *(nn.AvgPool1d(2), nn.Dropout(0.3), nn.Flatten(), nn.Linear(20, 3), nn.Sigmoid()),
    )


NETWORKS = {
    "LeNet-5": (lenet, (1, 28, 28)),
    "perceptron": (perceptron, (784,)),
    "mixed": (mixed, (1, 12, 12)),
    "ResNet": (ResNet, (1, 12, 12)),
    "PreResNet": (PreResNet, (1, 12, 12)),
    "DenseNet": (DenseNet, (1, 8, 8)),
    "1-D": (signal, (2, 40)),
}


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[int, ...]]:
    """The network in eval mode, with statistics and biases that are not trivial, and the shape of its input."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    network = make()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return network.to(dtype).eval(), shape
