"""Fixed points of maps with collectives inside, which all ranks of a process group have to call equally often.

What such a map returns on one rank can depend on the states of the others (batch statistics over all ranks, a graph
cut into parts), so the states of all ranks are solved as one: one row, whose linear equations, residual and steps
are those of the whole. One rank runs the solver, so that no two can decide differently, be it by a rounding error; at
every point that it wants evaluated, all ranks evaluate their part.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ..pytree import Layout, leaves
from ..solution import Solution
from ..solvers import Affine, Solver

__all__ = ["Ranks", "check_group", "refuse_sharded", "together"]


def check_group(sync_group: object) -> None:
    """Check that this is a process group that the rank belongs to, or None.

    Raises:
        TypeError: Saying what to write instead.
    """
    if sync_group is None or (distributed.is_available() and isinstance(sync_group, distributed.ProcessGroup)):
        return
    raise TypeError(
        f"sync_group={sync_group!r} is not a process group of this rank: write "
        "sync_group=torch.distributed.new_group() after init_process_group(), or None"
    )


def refuse_sharded(f: object) -> None:
    """Check that f is no module whose calls are collectives of their own.

    Raises:
        TypeError: If it is, or has one inside.
    """
    if not isinstance(f, nn.Module) or not distributed.is_available() or not distributed.is_initialized():
        return
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported for this: it takes seconds
    names = ("FSDPModule", "FullyShardedDataParallel")
    kinds = [nn.parallel.DistributedDataParallel, *(getattr(fsdp, name) for name in names if hasattr(fsdp, name))]
    for name, module in f.named_modules():
        if isinstance(module, tuple(kinds)):
            raise TypeError(
                f"the cell{name and '.' + name} is sharded or wrapped ({type(module).__name__}), so each of its "
                "evaluations would communicate, and ranks that need different numbers of them would wait for each "
                "other for ever. Shard the module that owns the solve instead, fully_shard(deq) for deq = DEQ(cell), "
                "or the whole model; wrap the whole model in DistributedDataParallel"
            )


@dataclass(frozen=True)
class Ranks:
    """The ranks of a process group, each with a batch of its own.

    Attributes:
        group: The process group.
        batches: How many samples each rank has.
    """

    group: distributed.ProcessGroup
    batches: tuple[int, ...]

    @classmethod
    def of(cls, group: distributed.ProcessGroup, layout: Layout, device: torch.device) -> Ranks:
        """The group, after asking all of its ranks for their batch.

        Raises:
            ValueError: If the states of two ranks differ in more than their batch.
        """
        size = sum(torch.Size(shape).numel() for shape in layout.shapes)
        mine = torch.tensor([layout.batch, size], device=device)
        all_ = [torch.empty_like(mine) for _ in range(group.size())]
        distributed.all_gather(all_, mine, group=group)
        batches, sizes = torch.stack(all_, 1).tolist()
        if len(set(sizes)) > 1:
            raise ValueError(
                f"z0 has {sizes} entries a sample on the ranks of sync_group: their states may differ in the batch only"
            )
        return cls(group, tuple(batches))

    @property
    def total(self) -> int:
        """The samples of all ranks."""
        return sum(self.batches)

    def gather(self, part: Tensor) -> Tensor:
        """The samples of all ranks, from those of this one."""
        padded = part.new_zeros((max(self.batches), *part.shape[1:]))
        padded[: part.shape[0]] = part
        parts = [torch.empty_like(padded) for _ in self.batches]
        distributed.all_gather(parts, padded, group=self.group)
        return torch.cat([p[:n] for p, n in zip(parts, self.batches, strict=True)])

    def mine(self, whole: Tensor) -> Tensor:
        """The samples of this rank, from those of all."""
        rank = self.group.rank()
        return whole.narrow(0, sum(self.batches[:rank]), self.batches[rank])


def together(solver: Solver, ranks: Ranks | None) -> Solver:
    """The solver, run by one rank for all."""
    return solver if ranks is None else _Together(solver=solver, group=ranks.group)


@dataclass(frozen=True, kw_only=True)
class _Together(Solver):
    """Rank 0 of the group runs the solver; the others evaluate f where it does, and end with what it found.

    The state is the same on all ranks, and so is what f returns.
    """

    solver: Solver
    group: distributed.ProcessGroup

    @torch.no_grad()
    def run(self, f: Callable[[Any], Any], z0: Any, *, fz0: Any = None) -> Solution:
        lead = _Lead(f.linear if isinstance(f, Affine) else f, z0, self.group)
        if self.group.rank() != 0:
            return lead.follow()
        try:
            found = self.solver.run(Affine(lead, f.offset) if isinstance(f, Affine) else lead, z0, fz0=fz0)
        except Exception as error:
            if not lead.failed:
                lead.give_up(error)
            raise
        lead.finish(found)
        return found


class _Lead:
    """f on the leading rank, which tells the others the point before it evaluates there."""

    def __init__(self, f: Callable[[Any], Any], z0: Any, group: distributed.ProcessGroup) -> None:
        self.f, self.group, self.layout = f, group, Layout.of(z0)
        self.packed = self.layout.pack(leaves(z0))
        self.failed = False
        """Whether f itself raised an exception. It does on all ranks or leaves them waiting, but none listens here."""

    def __call__(self, z: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a solver that differentiates f, such as Newton, can't be used with sync_group, since the other ranks "
                "would have to differentiate along: use Anderson(), Broyden() or Picard()"
            )
        self._send(1, self.layout.pack(leaves(z)))
        self.failed = True
        value = self.f(z)
        self.failed = False
        return value

    def finish(self, found: Solution) -> None:
        """Tell the others what was found."""
        self._send(0, self.layout.pack(leaves(found.value)))
        numbers = {name: x.cpu() for name, x in vars(found).items() if isinstance(x, Tensor) and name != "value"}
        self._share({**numbers, "evaluations": found.evaluations})

    def give_up(self, error: Exception) -> None:
        """Tell the others that there is nothing to wait for."""
        self._send(0, self.packed)
        self._share(repr(error))

    def follow(self) -> Solution:
        """On the other ranks: evaluate f where the leading rank does, to the end.

        Raises:
            RuntimeError: If the solver failed on the leading rank.
        """
        while (message := self._broadcast(torch.empty_like(self._message(0, self.packed))))[0] > 0:
            self.f(self._state(message))
        record = self._share(None)
        if isinstance(record, str):
            raise RuntimeError(f"the solver failed on rank 0 of sync_group: {record}")
        device = self.packed.device
        moved: dict[str, Any] = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in record.items()}
        return Solution(value=self._state(message), **moved)

    def _state(self, message: Tensor) -> Any:
        return self.layout.tree(self.layout.unpack(message[1:].reshape(self.packed.shape)))

    def _send(self, word: int, z: Tensor) -> None:
        self._broadcast(self._message(word, z))

    def _message(self, word: int, z: Tensor) -> Tensor:
        return torch.cat((z.new_tensor([word]), z.flatten()))

    def _broadcast(self, message: Tensor) -> Tensor:
        distributed.broadcast(message, group_src=0, group=self.group)
        return message

    def _share(self, record: Any) -> Any:
        box = [record]
        distributed.broadcast_object_list(box, group_src=0, group=self.group)
        return box[0]
