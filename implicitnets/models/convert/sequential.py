"""A feed-forward network as one implicit model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from ...activations import Blocks
from ...backward import Backward
from ...solvers import Solver
from ..implicit import ImplicitModel
from .form import Form, wide
from .modules import sparse_tensor
from .tracing import trace

__all__ = ["from_sequential"]


def from_sequential(
    network: nn.Module,
    input_shape: int | tuple[int, ...],
    *,
    solver: Solver | None = None,
    backward: Backward | None = None,
) -> ImplicitModel:
    """The implicit model x = φ(Ax + Bu + b), y = Cx + Du + c that computes what a feed-forward network does.

    Each activation of the network is a block of states; what is affine between them is folded into the weights. A is
    sparse and strictly upper block-triangular, the last block first, so that one pass of back-substitution solves it
    (El Ghaoui, Gu, Travacca, Askari and Tsai 2021). The network may be any that ``torch.fx`` can trace,
    of the layers in the guide to conversion; its weights are copied, its dtype and device kept. What comes of it is
    compared with the network on random inputs.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))
        >>> model = from_sequential(network, input_shape=(1, 8, 8))
        >>> images = torch.randn(5, 1, 8, 8)
        >>> torch.allclose(model(images.flatten(1)), network(images), atol=1e-5)
        True

    Args:
        network: The network, of one input (batch, *input_shape) and one output.
        input_shape: Shape of one input without the batch.
        solver: How the equilibrium is found; None is back-substitution.
        backward: How it is differentiated where a solver is given.

    Returns:
        The model, from inputs (batch, entries of an input) to outputs (batch, entries of an output), both flattened.

    Raises:
        TypeError: If a layer or function is not supported, the network can't be traced, or returns something else
            than one tensor.
        ValueError: If the network does not take such inputs, a layer is in training mode (batch normalization,
            dropout), an option is not supported, or the network mixes the samples of a batch.
    """
    shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    probes, wanted = _probe(network, shape)
    out = trace(network, shape)
    if not out.of.blocks:  # an affine network: its outputs are the states
        out = out.state("identity")
    model = _assemble(out, like=wanted, solver=solver, backward=backward)
    _compare(model, network, probes, wanted)
    return model


def _probe(network: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Two random inputs, and what the network makes of them in eval mode.

    Raises:
        ValueError: If it does not take them.
        TypeError: If its output is no tensor.
    """
    tensors = chain(network.parameters(), network.buffers())
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, *shape, generator=draw, dtype=torch.float64).to(like)
    with torch.no_grad(), _evaluating(network):
        try:
            out = network(inputs.clone())  # which it may change in place
        except Exception as error:  # whatever the network's own code raises
            raise ValueError(
                f"the network does not take inputs of shape (batch, {', '.join(map(str, shape))}), which is what "
                f"input_shape={shape} says: {error}"
            ) from error
    if not isinstance(out, Tensor):
        raise TypeError(
            f"the network returns a {type(out).__name__}, not a tensor: wrap it in a module that returns one"
        )
    return inputs, out


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """The network in eval mode, and afterwards each of its modules in the mode it was in.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _assemble(out: Form, like: Tensor, *, solver: Solver | None, backward: Backward | None) -> ImplicitModel:
    """The model of the states behind ``out``, the last block first."""
    blocks, inputs, width = out.of.blocks, out.of.inputs, out.of.width
    ends = 1 + inputs + np.cumsum([block.states for block in blocks])
    order = np.concatenate([np.arange(end - block.states, end) for block, end in zip(blocks, ends, strict=True)][::-1])
    rows = sparse.vstack([wide(block.rows, width) for block in reversed(blocks)], format="csr")
    outputs = wide(out.matrix, width)
    b, c = (torch.as_tensor(m[:, [0]].toarray()[:, 0]).to(like) for m in (rows, outputs))
    A, C = (sparse_tensor(m[:, order], like) for m in (rows, outputs))
    B, D = (sparse_tensor(m[:, 1 : 1 + inputs], like) for m in (rows, outputs))
    return ImplicitModel.from_matrices(
        A,
        B,
        C,
        D,
        b,
        c,
        activation=Blocks(*((block.activation, block.rows.shape[0]) for block in reversed(blocks))),
        sizes=[block.states for block in reversed(blocks)],
        solver=solver,
        backward=backward,
    )


def _compare(model: ImplicitModel, network: nn.Module, inputs: Tensor, wanted: Tensor) -> None:
    """Check the model against the network.

    Raises:
        ValueError: If they differ by more than rounding.
    """
    with torch.no_grad():
        found = model(inputs.flatten(1))
    if wanted.shape[:1] == found.shape[:1] and wanted[0].numel() == found.shape[1]:
        error = float((found - wanted.flatten(1)).abs().max() / wanted.abs().max().clamp(min=1e-30))
        if error <= torch.finfo(wanted.dtype).eps ** 0.5:
            return
        fact = f"its outputs on random inputs differ by {error:.1e} from the network's"
    else:
        fact = f"the network makes {tuple(wanted.shape)} of a batch of two, the model {tuple(found.shape)}"
    raise ValueError(
        f"{type(network).__name__} can't be converted: {fact}. Does it mix the samples of a batch, change a tensor in "
        "place that it reads again through a view, have a hook, or a reshape with the batch size written out?"
    )
