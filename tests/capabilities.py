"""The rows of the capability table: functions that measure derivatives of an equilibrium in one way each.

A row is called with a layer and a cell, and returns tensors. They have to be what the same row returns for the layer
that merely applies the map many times, where autograd knows everything. A row may also assert something itself.
"""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from equilibria import CELLS, UNROLLED, Cell, Layer, Module
from torch import Tensor, func, nn
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck
from torch.utils import _pytree, checkpoint

__all__ = ["LIMITS", "ROWS", "Row", "Wrong", "check"]

LIMITS: dict[str, type[Exception]] = {
    # The older vmap that autograd uses here asks no Function for its rule; torch.func.vmap and jacrev do.
    "a batch of cotangents (is_grads_batched)": RuntimeError,
}
"""What this library can't do, and the error that says so."""


class Wrong(AssertionError):
    """A number that is not what it should be."""

    def __init__(self, error: float) -> None:
        super().__init__(f"wrong by {error:.1e}, relative to its norm")
        self.error = error


class Bench:
    """A layer at a cell: its equilibrium, flat for each sample, and a loss, as functions of w and x."""

    def __init__(self, layer: Layer, cell: Cell) -> None:
        self.layer, self.cell = layer, cell
        self.at = (cell.w, cell.x)
        scales = torch.tensor([1.0, 0.8, 0.5], dtype=cell.w.dtype)
        self.many = tuple(torch.stack([s * t for s in scales]) for t in self.at)
        self.along = tuple(torch.linspace(-1, 2, t.numel(), dtype=t.dtype).sin().view_as(t) for t in self.at)

    def z(self, w: Tensor, x: Tensor) -> Tensor:
        return flat(self.layer.solve(self.cell.f, self.cell.start(x), w, x))

    def loss(self, w: Tensor, x: Tensor) -> Tensor:
        return loss(self.z(w, x))

    def leaves(self) -> list[Tensor]:
        return leaves(*self.at)

    def model(self) -> nn.Module:
        return self.layer.model(Module(self.cell))


def flat(state: Any) -> Tensor:
    return torch.cat([t.flatten(1) for t in _pytree.tree_leaves(state)], 1)


def loss(z: Tensor) -> Tensor:
    """Not symmetric in the entries, and with a third derivative."""
    weight = torch.linspace(1, 2, z.shape[-1], dtype=z.dtype)
    return (weight * z).sum() + z.pow(3).sum()


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in tensors]


def grads(of: Tensor | Sequence[Tensor], at: Sequence[Tensor], *cotangents: Any, **options: Any) -> tuple[Tensor, ...]:
    return grad(of, at, *cotangents, materialize_grads=True, **options)


FAST: dict[str, Any] = {"fast_mode": True}  # finite differences along random directions
Result = Any
"""A pytree of tensors."""


def holds(claim: bool) -> Result:
    """What a row returns that has nothing to compare."""
    assert claim
    return ()


@dataclass(frozen=True)
class Row:
    """A capability.

    Attributes:
        name: What the table calls it.
        measure: From a bench to tensors.
        expected: The same for what they should be; None: ``measure`` at the unrolled layer.
        tolerance: Of the error, relative to the norm.
        smooth: Whether it makes sense for smooth cells alone.
        first: Whether it is of the first order, and so cheap that all solvers are tested.
    """

    name: str
    measure: Callable[[Bench], Result]
    expected: Callable[[Bench], Result] | None = None
    tolerance: float = 1e-7
    smooth: bool = False
    first: bool = False

    def fits(self, cell: Cell) -> bool:
        return cell.smooth or not self.smooth


ROWS: dict[str, Row] = {}


def row(name: str, **options: Any) -> Callable[[Callable[[Bench], Result]], Callable[[Bench], Result]]:
    def add(measure: Callable[[Bench], Result]) -> Callable[[Bench], Result]:
        assert name not in ROWS
        ROWS[name] = Row(name, measure, **options)
        return measure

    return add


def check(row: str, layer: Layer, cell: str) -> None:
    """Whether the layer has the capability.

    Raises:
        Wrong: If its numbers are wrong.
        Exception: Whatever it raises where it hasn't.
    """
    found = _pytree.tree_leaves(ROWS[row].measure(Bench(layer, CELLS[cell])))
    wanted = expectation(row, cell)
    assert len(found) == len(wanted)
    error = max((relative(a.detach(), b) for a, b in zip(found, wanted, strict=True)), default=0.0)
    if not error <= ROWS[row].tolerance:
        raise Wrong(error)


@cache
def expectation(row: str, cell: str) -> list[Tensor]:
    expected = ROWS[row].expected or ROWS[row].measure
    return [t.detach() for t in _pytree.tree_leaves(expected(Bench(UNROLLED, CELLS[cell])))]


def relative(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    scale = wanted.norm()
    return float((found - wanted).norm() / (scale if scale > 0 else 1))


# First order, by autograd


@row("value", first=True)
def value(b: Bench) -> Result:
    return b.z(*b.at)


@row("backward", first=True)
def backward(b: Bench) -> Result:
    w, x = b.leaves()
    b.loss(w, x).backward()
    return w.grad, x.grad


def by_theorem(b: Bench) -> Result:
    """(I − J)⁻¹ ∂f/∂θ with dense Jacobians at the solution, for all samples as one system."""
    cell, (w, x) = b.cell, b.at
    structure = _pytree.tree_flatten(cell.start(x))[1]
    shapes = [t.shape for t in _pytree.tree_leaves(cell.start(x))]

    def f(z: Tensor, w: Tensor, x: Tensor) -> Tensor:
        parts = torch.split(z, [s[1:].numel() for s in shapes], 1)
        state = _pytree.tree_unflatten([p.view(s) for p, s in zip(parts, shapes, strict=True)], structure)
        return flat(cell.f(state, w, x))

    z = b.z(w, x)
    n = z.numel()
    j, of_w, of_x = torch.autograd.functional.jacobian(f, (z, w, x))
    at = torch.eye(n, dtype=z.dtype) - j.reshape(n, n)
    return [torch.linalg.solve(at, d.reshape(n, -1)).view_as(d) for d in (of_w, of_x)]


@row("full Jacobian, against the closed form (I − J)⁻¹ ∂f/∂θ", expected=by_theorem, first=True)
def dense_jacobian(b: Bench) -> Result:
    return torch.autograd.functional.jacobian(b.z, b.at)


@row("gradcheck", smooth=True, first=True)
def first_differences(b: Bench) -> Result:
    return holds(gradcheck(b.z, b.leaves(), **FAST))


@row("a batch of cotangents (is_grads_batched)")
def batched_cotangents(b: Bench) -> Result:
    at = b.leaves()
    z = b.z(*at)
    basis = torch.eye(z.numel(), dtype=z.dtype).view(-1, *z.shape)
    return grads(z, at, basis, is_grads_batched=True)


# Higher order, by autograd


def derivative(order: int, b: Bench) -> Result:
    at = b.leaves()
    scalar = b.loss(*at)
    for _ in range(order - 1):
        scalar = sum(g.pow(2).sum() for g in grads(scalar, at, create_graph=True))  # type: ignore[assignment]
    return grads(scalar, at)


row("second order (create_graph)")(partial(derivative, 2))
row("third order")(partial(derivative, 3))


@row("gradgradcheck", smooth=True)
def second_differences(b: Bench) -> Result:
    return holds(gradgradcheck(b.z, b.leaves(), **FAST))


@row("gradgradcheck, forward over reverse", smooth=True)
def forward_over_reverse_differences(b: Bench) -> Result:
    return holds(
        gradgradcheck(
            b.z, b.leaves(), check_fwd_over_rev=True, check_rev_over_rev=False, **FAST, check_undefined_grad=False
        )
    )


# Forward mode


@row("dual numbers (torch.autograd.forward_ad)")
def dual_numbers(b: Bench) -> Result:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, v) for t, v in zip(b.at, b.along, strict=True)]
        return tuple(forward_ad.unpack_dual(b.z(*duals)))


@row("dual numbers, some of them plain")
def some_duals(b: Bench) -> Result:
    with forward_ad.dual_level():
        w, x = b.at
        of_x = forward_ad.unpack_dual(b.z(w, forward_ad.make_dual(x, b.along[1])))
        of_w = forward_ad.unpack_dual(b.z(forward_ad.make_dual(w, b.along[0]), x))
        return tuple(of_x), tuple(of_w)


def tangent_then_gradient(b: Bench) -> Result:
    """The same by torch.func, since dual numbers themselves can't differentiate softmax's tangent."""
    return func.grad(lambda w, x: func.jvp(b.loss, (w, x), b.along)[1], BOTH)(*b.at)


@row("dual numbers, then backward", expected=tangent_then_gradient)
def forward_then_backward(b: Bench) -> Result:
    at = b.leaves()
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, v) for t, v in zip(at, b.along, strict=True)]
        tangent = forward_ad.unpack_dual(b.loss(*duals)).tangent
    assert tangent is not None
    return grads(tangent, at)


@row("dual numbers through backward")
def backward_then_forward(b: Bench) -> Result:
    with forward_ad.dual_level():
        at = b.leaves()
        duals = [forward_ad.make_dual(t, v) for t, v in zip(at, b.along, strict=True)]
        return [forward_ad.unpack_dual(g).tangent for g in grads(b.loss(*duals), at, create_graph=True)]


@row("gradcheck, forward mode", smooth=True)
def forward_differences(b: Bench) -> Result:
    return holds(gradcheck(b.z, b.leaves(), **FAST, check_forward_ad=True, check_backward_ad=False))


# torch.func

BOTH = (0, 1)


@row("torch.func.jvp")
def func_jvp(b: Bench) -> Result:
    return func.jvp(b.z, b.at, b.along)


@row("torch.func.vjp")
def func_vjp(b: Bench) -> Result:
    z, pull = func.vjp(b.z, *b.at)
    return z, pull(z.sin())


@row("torch.func.grad")
def func_grad(b: Bench) -> Result:
    return func.grad(b.loss, BOTH)(*b.at)


@row("torch.func.jacrev")
def func_jacrev(b: Bench) -> Result:
    return func.jacrev(b.z, BOTH)(*b.at)


@row("torch.func.jacfwd")
def func_jacfwd(b: Bench) -> Result:
    return func.jacfwd(b.z, BOTH)(*b.at)


@row("torch.func.hessian (jacfwd of jacrev)")
def func_hessian(b: Bench) -> Result:
    return func.hessian(b.loss, BOTH)(*b.at)


@row("jacrev of jacrev")
def reverse_reverse(b: Bench) -> Result:
    return func.jacrev(func.jacrev(b.loss, BOTH), BOTH)(*b.at)


@row("jacrev of jacfwd")
def reverse_forward(b: Bench) -> Result:
    return func.jacrev(func.jacfwd(b.loss, BOTH), BOTH)(*b.at)


@row("jacfwd of jacfwd")
def forward_forward(b: Bench) -> Result:
    return func.jacfwd(func.jacfwd(b.loss, BOTH), BOTH)(*b.at)


@row("grad of grad of grad")
def func_third(b: Bench) -> Result:
    def once(scalar: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda w, x: sum(g.pow(2).sum() for g in func.grad(scalar, BOTH)(w, x))  # type: ignore[return-value]

    return func.grad(once(once(b.loss)), BOTH)(*b.at)


@row("jvp of grad, a Hessian-vector product")
def hessian_vector(b: Bench) -> Result:
    return func.jvp(func.grad(b.loss, BOTH), b.at, b.along)


# vmap


@row("vmap over inputs")
def over_inputs(b: Bench) -> Result:
    return func.vmap(b.z, (None, 0))(b.cell.w, b.many[1])


@row("vmap over weights")
def over_weights(b: Bench) -> Result:
    return func.vmap(b.z, (0, None))(b.many[0], b.cell.x)


@row("vmap over both, other in_dims and out_dims")
def over_both(b: Bench) -> Result:
    return func.vmap(b.z, (0, 1), 1)(b.many[0], b.many[1].movedim(0, 1))


@row("vmap of vmap")
def nested_vmap(b: Bench) -> Result:
    return func.vmap(func.vmap(b.z, (None, 0)), (0, None))(*b.many)


@row("vmap of grad: a gradient for each sample")
def per_sample(b: Bench) -> Result:
    return func.vmap(func.grad(lambda w, x: b.loss(w, x[None]), BOTH), (None, 0))(*b.at)


@row("grad of vmap")
def grad_of_vmap(b: Bench) -> Result:
    def total(ws: Tensor, x: Tensor) -> Tensor:
        return loss(func.vmap(b.z, (0, None))(ws, x).flatten(1))

    return func.grad(total, BOTH)(b.many[0], b.cell.x)


@row("hessian of vmap")
def hessian_of_vmap(b: Bench) -> Result:
    def total(w: Tensor, xs: Tensor) -> Tensor:
        return loss(func.vmap(b.z, (None, 0))(w, xs).flatten(1))

    return func.hessian(total)(b.cell.w, b.many[1])


@row("vmap of jacrev")
def vmap_of_jacrev(b: Bench) -> Result:
    return func.vmap(func.jacrev(b.z, BOTH), (None, 0))(b.cell.w, b.many[1])


@row("vmap of jacfwd")
def vmap_of_jacfwd(b: Bench) -> Result:
    return func.vmap(func.jacfwd(b.z, BOTH), (0, None))(b.many[0], b.cell.x)


@row("vmap of jvp")
def vmap_of_jvp(b: Bench) -> Result:
    return func.vmap(lambda w, x: func.jvp(b.z, (w, x), b.along), (None, 0))(b.cell.w, b.many[1])


@row("jvp of vmap")
def jvp_of_vmap(b: Bench) -> Result:
    return func.jvp(func.vmap(b.z, (0, None)), (b.many[0], b.cell.x), (b.many[0].cos(), b.along[1]))


@row("vmap of hessian")
def vmap_of_hessian(b: Bench) -> Result:
    return func.vmap(func.hessian(b.loss), (None, 0))(b.cell.w, b.many[1])


@row("backward through vmap")
def backward_through_vmap(b: Bench) -> Result:
    w, xs = leaves(b.cell.w, b.many[1])
    loss(func.vmap(b.z, (None, 0))(w, xs).flatten(1)).backward()
    return w.grad, xs.grad


@row("second order through vmap")
def second_order_through_vmap(b: Bench) -> Result:
    at = leaves(b.many[0], b.cell.x)
    once = grads(loss(func.vmap(b.z, (0, None))(*at).flatten(1)), at, create_graph=True)
    return grads(sum(g.pow(2).sum() for g in once), at)  # type: ignore[arg-type]


@row("dual numbers through vmap")
def duals_through_vmap(b: Bench) -> Result:
    with forward_ad.dual_level():
        w = forward_ad.make_dual(b.cell.w, b.along[0])
        return tuple(forward_ad.unpack_dual(func.vmap(b.z, (None, 0))(w, b.many[1])))


# Modules


@row("gradients to inputs and module parameters", first=True)
def module_gradients(b: Bench) -> Result:
    model, (x,) = b.model(), leaves(b.cell.x)
    loss(flat(model(x))).backward()
    return [*(p.grad for p in model.parameters()), x.grad]


@row("torch.func.grad to module parameters (functional_call)")
def functional_gradients(b: Bench) -> Result:
    model = b.model()

    def of(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return loss(flat(func.functional_call(model, parameters, (x,))))

    return func.grad(of, BOTH)(dict(model.named_parameters()), b.cell.x)


@row("functional_call, then backward")
def functional_backward(b: Bench) -> Result:
    model, (w, x) = b.model(), leaves(0.8 * b.cell.w, b.cell.x)
    (name,) = dict(model.named_parameters())
    loss(flat(func.functional_call(model, {name: w}, (x,)))).backward()
    return w.grad, x.grad


class Around(nn.Module):
    """A model whose f is not a module, but uses one."""

    def __init__(self, b: Bench) -> None:
        super().__init__()
        self.layer, self.cell = b.layer, Module(b.cell)

    def forward(self, x: Tensor) -> Any:
        return self.layer.solve(lambda z: self.cell(z, x), self.cell.initial_state(x))


@row("functional_call of a model whose f uses a module")
def functional_closure(b: Bench) -> Result:
    model = Around(b)

    def of(parameters: dict[str, Tensor]) -> Tensor:
        return loss(flat(func.functional_call(model, parameters, (b.cell.x,))))

    return func.grad(of)({"cell.w": 0.8 * b.cell.w}), func.hessian(of)({"cell.w": 0.8 * b.cell.w})


@row("hessian of module parameters (functional_call)")
def functional_hessian(b: Bench) -> Result:
    model = b.model()

    def of(parameters: dict[str, Tensor]) -> Tensor:
        return loss(flat(func.functional_call(model, parameters, (b.cell.x,))))

    return func.hessian(of)(dict(model.named_parameters()))


def ensemble(b: Bench) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    models = [b.layer.model(Module(Cell(b.cell.f, w, b.cell.x, b.cell.start))) for w in b.many[0]]
    parameters, _ = func.stack_module_state(models)

    def member(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return flat(func.functional_call(models[0], parameters, (x,)))

    return member, parameters


@row("an ensemble (stack_module_state, vmap)")
def ensembles(b: Bench) -> Result:
    member, parameters = ensemble(b)
    return func.vmap(member, (0, None))(parameters, b.cell.x)


@row("an ensemble, its gradients by backward")
def ensemble_gradients(b: Bench) -> Result:
    member, parameters = ensemble(b)
    loss(func.vmap(member, (0, None))(parameters, b.cell.x).flatten(1)).backward()
    return [p.grad for p in parameters.values()]


@row("an ensemble, its gradients by vmap of grad")
def ensemble_vmap_grad(b: Bench) -> Result:
    member, parameters = ensemble(b)
    return func.vmap(func.grad(lambda p, x: loss(member(p, x))), (0, 0))(parameters, b.many[1])


class Closure(nn.Module):
    """A cell whose weight is a parameter times a buffer, plus a tensor of its own, which f merely uses."""

    def __init__(self, b: Bench) -> None:
        super().__init__()
        self.layer, self.cell = b.layer, b.cell
        self.w = nn.Parameter(b.cell.w.clone())
        self.register_buffer("scale", torch.full((), 0.9, dtype=b.cell.w.dtype, requires_grad=True))
        self.plain = torch.full((), 0.05, dtype=b.cell.w.dtype, requires_grad=True)

    def forward(self, x: Tensor) -> Any:
        w, scale, plain = self.w, self.scale, self.plain
        return self.layer.solve(lambda z: self.cell.f(z, w * scale + plain * w.cos(), x), self.cell.start(x))


@row("gradients to all that f closes over: a buffer, a tensor", first=True)
def closure_gradients(b: Bench) -> Result:
    model, (x,) = Closure(b), leaves(b.cell.x)
    return grads(loss(flat(model(x))), [model.w, model.scale, model.plain, x])


@row("second order of what f closes over")
def closure_second_order(b: Bench) -> Result:
    model, (x,) = Closure(b), leaves(b.cell.x)
    at = [model.w, model.scale, model.plain, x]
    once = grads(loss(flat(model(x))), at, create_graph=True)
    return grads(sum(g.pow(2).sum() for g in once), at)  # type: ignore[arg-type]


def closed(b: Bench, w: Tensor, x: Tensor) -> Tensor:
    return flat(b.layer.solve(lambda z: b.cell.f(z, w, x), b.cell.start(b.cell.x)))


@row("torch.func.grad of what f closes over")
def closure_func_grad(b: Bench) -> Result:
    return func.grad(lambda w, x: loss(closed(b, w, x)), BOTH)(*b.at)


@row("torch.func.jvp of what f closes over")
def closure_jvp(b: Bench) -> Result:
    return func.jvp(partial(closed, b), b.at, b.along)


@row("vmap over what f closes over")
def closure_vmap(b: Bench) -> Result:
    return func.vmap(partial(closed, b), (0, None))(b.many[0], b.cell.x)


@row("hessian of what f closes over")
def closure_hessian(b: Bench) -> Result:
    return func.hessian(lambda w, x: loss(closed(b, w, x)), BOTH)(*b.at)


# Use


@row("twice through one graph (retain_graph)")
def twice(b: Bench) -> Result:
    at = b.leaves()
    scalar = b.loss(*at)
    return grads(scalar, at, retain_graph=True), grads(scalar, at)


@row("one module called several times before backward")
def several_calls(b: Bench) -> Result:
    model, x = b.model(), b.cell.x
    losses = [loss(flat(model(s * x))) for s in (1.0, 0.8, 0.5)]
    return grads(sum(losses), list(model.parameters()))  # type: ignore[arg-type]


@row("gradients of several calls, the last one first")
def in_other_order(b: Bench) -> Result:
    model, x = b.model(), b.cell.x
    losses = [loss(flat(model(s * x))) for s in (1.0, 0.8, 0.5)]
    return [grads(one, list(model.parameters())) for one in (losses[2], losses[0], losses[1])]


@row("an equilibrium of an equilibrium")
def chained(b: Bench) -> Result:
    if not isinstance(b.cell.start(b.cell.x), Tensor):
        return module_gradients(b)
    first, second, (x,) = b.model(), b.model(), leaves(b.cell.x)
    loss(flat(second(0.5 * first(x)))).backward()
    return [*(p.grad for model in (first, second) for p in model.parameters()), x.grad]


@row("under torch.utils.checkpoint")
def checkpointed(b: Bench) -> Result:
    at = b.leaves()
    return grads(loss(checkpoint.checkpoint(b.z, *at, use_reentrant=False)), at)


@row("checkpoint inside f")
def checkpoint_inside(b: Bench) -> Result:
    at = b.leaves()

    def f(z: Any, w: Tensor, x: Tensor) -> Any:
        return checkpoint.checkpoint(b.cell.f, z, w, x, use_reentrant=False)

    return grads(loss(flat(b.layer.solve(f, b.cell.start(at[1]), *at))), at)


@row("no_grad")
def without_grad(b: Bench) -> Result:
    with torch.no_grad():
        z = b.z(*b.leaves())
    assert not z.requires_grad
    return z


@row("inference_mode")
def inference(b: Bench) -> Result:
    with torch.inference_mode():
        inside = b.z(*(t.clone() for t in b.at))
        outside = flat(b.model()(b.cell.x))
    assert inside.is_inference()
    return inside.clone(), outside.clone()


@row("gradients in eval mode")
def eval_mode(b: Bench) -> Result:
    model, (x,) = b.model().eval(), leaves(b.cell.x)
    try:
        return grads(loss(flat(model(x))), [*model.parameters(), x])
    finally:
        model.train()  # the layer in it is used again


@row("gradients of a deep copy")
def deep_copy(b: Bench) -> Result:
    model = b.model()
    loss(flat(model(b.cell.x))).backward()  # so that there is something to copy that must not be in the way
    model.zero_grad()
    twin = copy.deepcopy(model)
    loss(flat(twin(b.cell.x))).backward()
    assert all(p.grad is None for p in model.parameters())
    return [p.grad for p in twin.parameters()]


@row("nothing is left without the garbage collector")
def no_leak(b: Bench) -> Result:
    gc.collect()
    gc.disable()
    try:
        at, traces = b.leaves(), []

        def run() -> None:
            hidden = [1 * t for t in at]
            traces.extend(map(weakref.ref, hidden))
            b.loss(*hidden).backward()

        run()
        return holds(all(trace() is None for trace in traces))
    finally:
        gc.enable()


def in_float32(b: Bench) -> Result:
    return backward(Bench(b.layer, b.cell.to(torch.float32)))


@row("autocast to bfloat16, f in both passes", expected=in_float32, tolerance=0.05)
def autocast(b: Bench) -> Result:
    seen = []

    def f(*arguments: Any) -> Any:
        seen.append(torch.is_autocast_enabled("cpu"))
        return cell.f(*arguments)

    cell = b.cell.to(torch.float32)
    w, x = leaves(cell.w, cell.x)
    with torch.autocast("cpu", torch.bfloat16):
        z = flat(b.layer.loose().solve(f, cell.start(x), w, x))
    loss(z.float()).backward()
    assert all(seen), "f was computed outside of autocast"
    return w.grad, x.grad


def surrounded(b: Bench, transform: Callable[..., Any] = lambda whole: whole) -> Result:
    model, (x,) = b.model(), leaves(b.cell.x)
    transform(lambda x: loss(flat(model(x.sin())).cos()))(x).backward()
    return [*(p.grad for p in model.parameters()), x.grad]


@row("torch.compile of the model around, at most one graph break", expected=surrounded)
def compiled(b: Bench) -> Result:
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The .grad attribute", UserWarning)  # which Dynamo itself looks at
            result = surrounded(b, lambda whole: torch.compile(whole, backend=backend))
    finally:
        torch.compiler.reset()
    assert len(graphs) <= 2, f"{len(graphs) - 1} graph breaks"
    return result
