#!/usr/bin/env python3
"""How fast a step is on many GPUs, by three numbers: python docs/results/scaling/model.py

A step takes as long as its slowest part: computing, with the part of the exchange of gradients that is not hidden
behind it, or reading images. Ring all-reduce sends 2 (N - 1) / N times the gradients' bytes from each process; between
machines, the processes of one share its network.

What is printed is a forecast. No more than two processes, on one CPU, were measured (measure.py).
"""

from __future__ import annotations

from typing import NamedTuple

BYTES = 4  # of a gradient in fp32, which DistributedDataParallel sends whatever the precision of autocast


class Work(NamedTuple):
    """What one process does in a step."""

    name: str
    parameters: float  # that learn
    images: int  # of a process in a step
    compute: float  # seconds that one process alone takes for them


class Machine(NamedTuple):
    """One machine of a cluster."""

    gpus: int
    inside: float  # bytes a second of an all-reduce between its GPUs, that each sends
    network: float  # bytes a second between machines, all GPUs together
    readers: int  # processes of each GPU that read images, on cores of their own
    reading: float  # images a second that one of them decodes and augments


def exchange(work: Work, machine: Machine, processes: int) -> float:
    """Seconds of an all-reduce of all gradients."""
    sent = 2 * (processes - 1) / processes * BYTES * work.parameters
    if processes <= machine.gpus:
        return sent / machine.inside
    return sent / min(machine.inside, machine.network)  # a ring crosses each machine's border once


def step(work: Work, machine: Machine, processes: int, hidden: float) -> dict[str, float]:
    """Seconds of the parts of a step, and of the whole.

    Args:
        work: of each process.
        machine: of which as many are used as the processes need.
        processes: one on each GPU.
        hidden: the share of the exchange that is hidden behind the backward pass, from 0 to 1.
    """
    sent = exchange(work, machine, processes) if processes > 1 else 0.0
    seen = max((1 - hidden) * sent, sent - 2 / 3 * work.compute)  # there is no more to hide behind than backward
    read = work.images / (machine.readers * machine.reading)
    return {"exchange": sent, "reading": read, "step": max(work.compute + seen, read)}


# ViT-B/16, bf16, 256 images on one H100: a training step of 101.9 ms, measured (docs/performance.md).
VIT_B = Work("ViT-B/16", 86.6e6, 256, 0.1019)
# DeiT-Tiny: three times its forward pass of 7.74 ms there, since a training step was not measured.
DEIT_TINY = Work("DeiT-Tiny", 5.7e6, 256, 3 * 0.00774)
# Assumed, not measured: 300 GB/s between the GPUs of a machine, 400 Gbit/s of network for each of its 8 GPUs, and 8
# processes for each GPU that read images, which is the most that `data.workers: null` starts. The last number is what
# one core of ours reads (reading.py), of images of 224 px.
FAST = Machine(8, 300e9, 8 * 400e9 / 8, 8, 800.0)
SLOW = FAST._replace(network=100e9 / 8)  # one card of 100 Gbit/s for the machine


def main() -> None:
    print("| model | machines | GPUs | exchange, ms | reading, ms | step, ms | images/s | of linear |")
    print("|---|---|---|---|---|---|---|---|")
    for work in (VIT_B, DEIT_TINY):
        for name, machine in (("400 Gbit/s for each GPU", FAST), ("100 Gbit/s for each machine", SLOW)):
            for processes in (1, 8, 64):
                found = step(work, machine, processes, hidden=0.5)
                speed = processes * work.images / found["step"]
                share = speed / (processes * work.images / work.compute)
                times = " | ".join(f"{1e3 * found[part]:.1f}" for part in ("exchange", "reading", "step"))
                print(f"| {work.name} | {name} | {processes} | {times} | {speed:,.0f} | {100 * share:.0f} % |")


if __name__ == "__main__":
    main()
