#!/usr/bin/env python3
"""Measures speed: tools/bench.py --data | --attention.

--data: images per second of the training pipeline, on random images of CIFAR's shape, without a model.
--attention: milliseconds of fused attention with a size bias, forward and backward, by precision.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C is quiet while libraries are imported, which takes seconds
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.config import cli
from engine.data import Arrays, AugmentSettings
from engine.data.cifar import CIFAR10_MEAN, CIFAR10_STD
from engine.data.loader import TrainLoader
from engine.runtime import device_name

IMAGES, SHAPE = 50_000, (3, 32, 32)  # CIFAR's training set
HEADS = ((64, 3, 57, 32), (4, 12, 197, 64))  # (B, heads, T, head_dim): hybrid_merge.yaml, ViT-B/16


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", action="store_true", help="crop by 4 pixels, flip and normalise")
    what.add_argument("--attention", action="store_true", help="scaled_dot_product_attention, forward and backward")
    parser.add_argument("--batch-size", type=int, default=128, help=f"of --data, 1 to {IMAGES}; default 128")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs, after one that is not; default 9")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default 1")
    args = parser.parse_args(argv)
    for name, most in (("batch_size", IMAGES), ("repeats", None), ("threads", None)):
        value = getattr(args, name)
        if value < 1 or (most and value > most):
            parser.error(f"--{name.replace('_', '-')} {value}: must be from 1" + (f" to {most}" if most else ""))
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    print(f"{device_name(torch.device('cpu'))}, torch {torch.__version__}")
    if args.data:
        print(f"{IMAGES:,} images of {'x'.join(map(str, SHAPE))}: crop 4, flip, normalise; batch {args.batch_size}")
        print("images/s:", spread(data_speeds(args.batch_size, args.repeats), ",.0f"))
    else:
        for shape in HEADS:
            for name, attend in ATTENTIONS.items():
                times = attention_times(shape, attend, args.repeats)
                print(f"{'x'.join(map(str, shape))}  {name:22} ms: {spread(times, '.2f')}")


def spread(values: list[float], form: str) -> str:
    """Median, minimum and maximum, in words."""
    median, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return f"median {median}, min {low}, max {high} of {len(values)}"


def data_speeds(batch_size: int, repeats: int) -> list[float]:
    """Images per second of each of `repeats` epochs of the training loader, after one to warm up."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, *SHAPE), dtype=torch.uint8, generator=generator)
    arrays = Arrays(images, torch.zeros(IMAGES, dtype=torch.int64))
    loader = TrainLoader(arrays, batch_size, AugmentSettings(crop=4, flip=True), CIFAR10_MEAN, CIFAR10_STD, seed=0)
    speeds = []
    for epoch in range(repeats + 1):
        start = time.perf_counter()
        count = sum(len(labels) for _, labels in loader.epoch(epoch))
        speeds.append(count / (time.perf_counter() - start))
    return speeds[1:]


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))


# name -> what is done with bf16 or fp32 queries, keys, values (B, heads, T, head_dim) and a bias (B, 1, 1, T)
ATTENTIONS: dict[str, tuple[torch.dtype, Callable[..., Tensor]]] = {
    "fp32": (torch.float32, _attend),
    "bf16": (torch.bfloat16, _attend),
    "fp32 inside bf16 (ours)": (
        torch.bfloat16,
        lambda q, k, v, bias: _attend(q.float(), k.float(), v.float(), bias).to(q.dtype),
    ),
}


def attention_times(
    shape: tuple[int, int, int, int], attention: tuple[torch.dtype, Callable[..., Tensor]], repeats: int
) -> list[float]:
    """Milliseconds of each of `repeats` forward and backward passes, after one to warm up."""
    dtype, attend = attention
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    bias = torch.rand(shape[0], 1, 1, shape[2], generator=generator)
    gradient = torch.ones(shape, dtype=dtype)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        attend(q, k, v, bias).backward(gradient)
        times.append(1e3 * (time.perf_counter() - start))
    return times[1:]


if __name__ == "__main__":
    sys.exit(cli(main))
