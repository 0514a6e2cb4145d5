"""Which layer is converted by which rule: functions and methods by name, modules by type."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules import padding

from . import activations, layers, pooling, products
from .form import Form

__all__ = ["FUNCTIONS", "METHODS", "MODULES", "READS", "STAND_INS"]

Rule = Callable[..., Any]

MOVES = (
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone"),
    *("permute", "transpose", "swapaxes", "movedim", "moveaxis", "flip", "roll", "pixel_shuffle", "pixel_unshuffle"),
    *("expand", "broadcast_to", "repeat", "tile", "repeat_interleave"),
    *("chunk", "split", "tensor_split", "unbind", "select", "narrow", "index_select"),
)
"""Names, in torch and of Tensor's methods, of what moves, repeats or drops entries whatever they are."""

NAMED: dict[str, Rule] = {
    # affine
    "linear": layers.linear,
    "matmul": products.matmul,
    "conv1d": layers.convolve,
    "conv2d": layers.convolve,
    "conv3d": layers.convolve,
    "batch_norm": layers.batch_norm,
    "dropout": layers.dropout,
    "pad": layers.pad,
    "interpolate": layers.nearest,
    "cat": layers.cat,
    "concat": layers.cat,
    "stack": layers.stack,
    "add": layers.add,
    "sub": layers.subtract,
    "mul": products.multiply,
    "multiply": products.multiply,
    "bmm": products.matmul,
    "scaled_dot_product_attention": products.attention,
    "div": layers.divide,
    "truediv": layers.divide,
    "neg": layers.negate,
    "pow": products.power,
    "sum": layers.total,
    "mean": partial(layers.total, average=True),
    **{f"avg_pool{n}d": partial(pooling.average_pool, axes=n) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": partial(pooling.adaptive_average_pool, axes=n) for n in (1, 2, 3)},
    # blocks of states
    **{f"max_pool{n}d": partial(pooling.max_pool, axes=n) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": partial(pooling.adaptive_max_pool, axes=n) for n in (1, 2, 3)},
    "layer_norm": layers.layer_norm,
    "group_norm": layers.group_norm,
    "relu": activations.relu,
    "tanh": activations.tanh,
    "sigmoid": activations.sigmoid,
    "softmax": activations.softmax,
    "softplus": activations.softplus,
    "leaky_relu": activations.leaky_relu,
    "elu": activations.elu,
    "hardtanh": activations.hardtanh,
    "abs": partial(activations.activate, name="abs"),
    "silu": partial(activations.activate, name="silu"),
    "square": partial(activations.activate, name="square"),
    "gelu": activations.gelu,
    # piecewise linear, and combinations of those
    "prelu": activations.prelu,
    "celu": activations.celu,
    "selu": activations.selu,
    "relu6": activations.relu6,
    "hardsigmoid": activations.hardsigmoid,
    "clamp": activations.clamp,
    "clip": activations.clamp,
    "maximum": activations.larger,
    "minimum": activations.smaller,
    "hardswish": products.hardswish,
    "mish": products.mish,
    "glu": products.glu,
    "tanhshrink": activations.tanhshrink,
    "softshrink": activations.softshrink,
}
HOMES: tuple[Any, ...] = (torch, functional, operator)


def _moves(name: str) -> Rule:
    function = getattr(torch.Tensor, name, None) or getattr(torch, name)
    return lambda x, *args, **options: x.rearrange(function, *args, **options)


def _attribute(x: Form, name: str) -> Any:
    """An attribute of a tensor that does not depend on its entries.

    Raises:
        ValueError: If it does, or is not known.
    """
    known = {"shape": x.shape, "ndim": len(x.shape), "dtype": torch.float64, "device": torch.device("cpu")}
    if name not in known:
        raise ValueError(f"reads the attribute {name!r} of a tensor")
    return known[name]


def _item(x: Any, at: Any) -> Any:
    """A part of a tensor, or one tensor of several."""
    return x.rearrange(operator.getitem, at) if isinstance(x, Form) else x[at]


READS: dict[Any, Rule] = {
    "size": lambda x, dim=None: x.shape if dim is None else x.shape[dim],
    "dim": lambda x: len(x.shape),
    getattr: _attribute,
}
"""What only looks at the shape."""

BY_NAME: dict[str, Rule] = {**{name: _moves(name) for name in MOVES}, **NAMED}
BY_NAME |= {f"{name}_": rule for name, rule in BY_NAME.items()}

METHODS: dict[Any, Rule] = BY_NAME | READS
"""Rules by the name of the method."""

FUNCTIONS: dict[Any, Rule] = {
    **{getattr(home, name): rule for name, rule in BY_NAME.items() for home in HOMES if hasattr(home, name)},
    **{getattr(operator, f"i{name}"): NAMED[name] for name in ("add", "sub", "mul", "truediv")},
    operator.getitem: _item,
    getattr: _attribute,
}
"""Rules by the function itself."""

BY_TYPE: dict[str, str] = {
    "Linear": "linear",
    "Dropout": "dropout",
    "AlphaDropout": "dropout",
    "Upsample": "interpolate",
    "ReLU": "relu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
    "LayerNorm": "layer_norm",
    "GroupNorm": "group_norm",
    "Softplus": "softplus",
    "LeakyReLU": "leaky_relu",
    "ELU": "elu",
    "Hardtanh": "hardtanh",
    "PReLU": "prelu",
    "CELU": "celu",
    "SELU": "selu",
    "ReLU6": "relu6",
    "Hardsigmoid": "hardsigmoid",
    "GELU": "gelu",
    "SiLU": "silu",
    "Hardswish": "hardswish",
    "Mish": "mish",
    "GLU": "glu",
    "Tanhshrink": "tanhshrink",
    "Softshrink": "softshrink",
    **{f"Conv{n}d": f"conv{n}d" for n in (1, 2, 3)},
    **{f"BatchNorm{n}d": "batch_norm" for n in (1, 2, 3)},
    **{f"Dropout{n}d": "dropout" for n in (1, 2, 3)},
    **{f"AvgPool{n}d": f"avg_pool{n}d" for n in (1, 2, 3)},
    **{f"MaxPool{n}d": f"max_pool{n}d" for n in (1, 2, 3)},
    **{f"AdaptiveAvgPool{n}d": f"adaptive_avg_pool{n}d" for n in (1, 2, 3)},
    **{f"AdaptiveMaxPool{n}d": f"adaptive_max_pool{n}d" for n in (1, 2, 3)},
}


def _of_module(rule: Rule) -> Callable[[nn.Module, Form], Any]:
    """The rule for a module: its options are the module's attributes of the same names."""
    names = list(inspect.signature(rule).parameters)[1:]

    def convert(module: nn.Module, x: Form) -> Any:
        return rule(x, **{name: getattr(module, name) for name in names if hasattr(module, name)})

    return convert


def _padded(mode: str) -> Callable[[Any, Form], Form]:
    return lambda module, x: layers.pad(x, module.padding, mode, getattr(module, "value", None))


MODULES: dict[type[nn.Module], Callable[[Any, Form], Any]] = {
    **{getattr(nn, kind): _of_module(NAMED[name]) for kind, name in BY_TYPE.items()},
    **{
        kind: lambda module, x: x.rearrange(module)
        for kind in (nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
    },
    padding._ConstantPadNd: _padded("constant"),
    padding._ReflectionPadNd: _padded("reflect"),
    padding._ReplicationPadNd: _padded("replicate"),
    padding._CircularPadNd: _padded("circular"),
}
"""Rules by type, also for its subclasses, of modules that torch.fx does not look into."""

ACTIVATION = "one of models.ACTIVATIONS, such as ReLU or ELU"
STAND_INS: dict[str, str] = {
    **dict.fromkeys(("softsign", "logsigmoid", "rrelu", "threshold"), ACTIVATION),
    **dict.fromkeys(("exp", "log", "sqrt", "sin", "cos"), ACTIVATION),
    **dict.fromkeys(("instancenorm1d", "instancenorm2d", "instance_norm"), "GroupNorm with a group for each channel"),
    **dict.fromkeys(("rmsnorm", "rms_norm", "localresponsenorm"), "LayerNorm, GroupNorm, or BatchNorm in eval mode"),
    **dict.fromkeys(("logsoftmax", "log_softmax"), "the logits themselves, with cross_entropy as the loss"),
    **dict.fromkeys(("multiheadattention",), "Linear layers and scaled_dot_product_attention"),
    **{f"max_pool{n}d_with_indices": "max-pooling without return_indices" for n in (1, 2, 3)},
    **dict.fromkeys(("rnn", "lstm", "gru"), "a DEQ around the cell, or its steps written out with Linear and Tanh"),
    **dict.fromkeys(("convtranspose1d", "convtranspose2d"), "Upsample(mode='nearest') and a convolution"),
}
"""What can take the place of what is not supported, by lower-case names."""
