#!/usr/bin/env python3
"""Measures the parts of a step in two processes on one CPU, to check model.py, and prints them.

  OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node=2 docs/results/scaling/measure.py 20

Each round measures, one after the other: a step of one process while the other waits; steps of both without an
exchange; steps with DistributedDataParallel; an all-reduce of as many bytes as the gradients have. Seconds of processor
time are those of a process with all its threads, and say more than those of the clock where other work runs beside.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from models import build_model

IMAGES = 16


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)
    model = build_model("vit", img_size=32, patch_size=4, embed_dim=192, depth=12, num_heads=3, num_classes=10)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images, labels = torch.randn(IMAGES, 3, 32, 32), torch.randint(10, (IMAGES,))
    gradients = torch.randn(sum(parameter.numel() for parameter in model.parameters()))

    def step(network) -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    parts = {
        "a step, one process alone": lambda: step(model) if rank == 0 else None,
        "a step, both, nothing exchanged": lambda: step(model),
        "a step, both, gradients exchanged": lambda: step(wrapped),
        "all-reduce of as many bytes": lambda: dist.all_reduce(gradients),
    }
    found = {name: [] for name in parts}
    for number in range(rounds + 2):  # the first two warm up
        for name, work in parts.items():
            dist.barrier()
            clock, processor = time.perf_counter(), time.process_time()
            work()
            own = torch.tensor([time.perf_counter() - clock, time.process_time() - processor])
            dist.all_reduce(own, dist.ReduceOp.MAX)  # the slower process decides
            if number > 1:
                found[name].append(own.tolist())
    if rank == 0:
        megabytes = 4 * len(gradients) / 1e6
        print(f"{size} processes, {IMAGES} images each, {megabytes:.1f} MB of gradients, {rounds} rounds")
        print("| | clock, ms: median (quartiles) | processor, ms: median (quartiles) |\n|---|---|---|")
        for name, times in found.items():
            print(f"| {name} | " + " | ".join(shown(1e3 * torch.tensor(one)) for one in zip(*times)) + " |")
    dist.destroy_process_group()


def shown(times: torch.Tensor) -> str:
    low, middle, high = statistics.quantiles(times.tolist(), n=4)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main(int(sys.argv[1]))
