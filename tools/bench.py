#!/usr/bin/env python3
"""Measures speed: tools/bench.py --data.

--data: images per second of the training pipeline, on random images of CIFAR's shape, without a model.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time

import torch

from engine.config import cli
from engine.data import Arrays, AugmentSettings
from engine.data.cifar import CIFAR10_MEAN, CIFAR10_STD
from engine.data.loader import TrainLoader

IMAGES, SHAPE = 50_000, (3, 32, 32)  # CIFAR's training set


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", action="store_true", help="crop by 4 pixels, flip and normalise")
    parser.add_argument("--batch-size", type=int, default=128, help=f"1 to {IMAGES}; default 128")
    parser.add_argument("--repeats", type=int, default=9, help="timed epochs, after one that is not; default 9")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default 1")
    args = parser.parse_args(argv)
    for name, most in (("batch_size", IMAGES), ("repeats", None), ("threads", None)):
        value = getattr(args, name)
        if value < 1 or (most and value > most):
            parser.error(f"--{name.replace('_', '-')} {value}: must be from 1" + (f" to {most}" if most else ""))
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    speeds = data_speeds(args.batch_size, args.repeats)
    print(f"{IMAGES:,} images of {'x'.join(map(str, SHAPE))}: crop 4, flip, normalise; batch {args.batch_size}, "
          f"threads {args.threads}, {platform.machine()}, torch {torch.__version__}")  # fmt: skip
    print(f"images/s: median {statistics.median(speeds):,.0f}, min {min(speeds):,.0f}, max {max(speeds):,.0f} "
          f"of {len(speeds)} epochs")  # fmt: skip


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


if __name__ == "__main__":
    sys.exit(cli(main))
