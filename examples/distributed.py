"""A deep equilibrium classifier of handwritten digits, trained by several processes.

    torchrun --nproc-per-node 2 examples/distributed.py [--quick]

Each process has its part of every batch and solves for its own equilibria, in as many steps as they need. Three ways:
replicas (DistributedDataParallel), parameters in shards (FSDP2), and a cell that itself communicates (sync_group).
"""

import gc
import os
import sys
import time

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel as DDP

import implicitnets as inn

EPOCHS, BATCHES = (1, 4) if "--quick" in sys.argv else (5, 21)
alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}  # without torchrun
dist.init_process_group("gloo", **alone)
RANK, WORLD = dist.get_rank(), dist.get_world_size()
show = print if RANK == 0 else str
GROUP = dist.new_group()  # for the cell and its solves alone, so that no other collectives come between

images, labels = load_digits(return_X_y=True)
split = train_test_split(images / 16, labels, test_size=0.25, stratify=labels, random_state=0)
train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in split[:2])
train_y, test_y = (torch.tensor(part) for part in split[2:])


class Sum(torch.autograd.Function):
    """The sum over all processes."""

    @staticmethod
    def forward(ctx, x):
        dist.all_reduce(total := x.clone(), group=GROUP)
        return total

    @staticmethod
    def backward(ctx, g):
        return Sum.apply(g)


class Cell(nn.Module):
    """Where ``centered``, half the mean over the samples of all processes is taken off in training."""

    def __init__(self, states=64, centered=False):
        super().__init__()
        self.inject, self.centered = nn.Linear(64, states), centered
        self.recur = inn.constraints.inf_norm(nn.Linear(states, states, bias=False), "weight", 0.6)

    def forward(self, z, x):
        h = self.recur(z) + self.inject(x)
        if self.centered and self.training:
            h = h - 0.5 * Sum.apply(h.mean(0)) / WORLD
        return torch.tanh(h)


def classifier(**options):
    torch.manual_seed(0)  # the same start everywhere
    cell = Cell(centered="sync_group" in options)
    return nn.Sequential(inn.DEQ(cell, state_shape=(64,), **options), nn.Linear(64, 10))


def shard(model):
    fully_shard(model[0])  # the module that owns the solve, never its cell: parameters are gathered once a solve
    return fully_shard(model)


def train(name, model):
    optimizer, start = torch.optim.Adam(model.parameters(), lr=5e-3), time.perf_counter()
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(train_x), generator=shuffle)[: 64 * BATCHES].split(64):
            mine = rows.chunk(WORLD)[RANK]
            optimizer.zero_grad()
            cross_entropy(model(train_x[mine]), train_y[mine]).backward()
            optimizer.step()
    counts = [None] * WORLD
    dist.all_gather_object(counts, getattr(model, "module", model)[0].forward_solution.evaluations)
    with torch.no_grad():
        accuracy = (model.eval()(test_x).argmax(1) == test_y).double().mean()
    show(f"{name:>18} {accuracy:9.1%} {counts!s:>12} {time.perf_counter() - start:8.1f}")


show(f"{WORLD} processes\n{'':>18} {'accuracy':>9} {'evaluations':>12} {'seconds':>8}")
train("DDP", DDP(classifier()))
train("FSDP2", shard(classifier()))
train("DDP and sync_group", DDP(classifier(sync_group=GROUP)))
gc.collect()  # nothing is left that communicates,
dist.barrier()  # nor anybody who does
dist.destroy_process_group()
