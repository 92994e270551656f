#!/usr/bin/env python3
"""Measures speed on this machine: the speed-up of a model by merging, the parts of merging, and the training loader.

Everything is timed in rounds, after one round to warm up. An option that has no effect on the measurement is an error.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli import cli, parser_of
from engine.tables import Column, print_table

if TYPE_CHECKING:
    import torch

EXAMPLE = "example: tools/bench.py --speedup vit_b16 model.merge.r=13 --threads 2"
IMAGES, SHAPE = 50_000, (3, 32, 32)  # CIFAR's training set
HEADS = ((64, 3, 57, 32), (8, 12, 197, 64), (4, 12, 577, 64))  # (B, heads, T, width): hybrid_merge; ViT-B, 224 and 384
TOKENS = (((8, 197, 768), 14), ((64, 65, 192), 8), ((4, 1025, 1024), 64))  # (B, T, C), r: a row or two of the grid
SELECTION = (32, 196, 98)  # batch, patches, kept
HELP = {  # measurement -> its description
    "speedup": "a model with its merging and without: the speed-up, the ratio of their MACs, the quotient of the two, "
    "and the share of the forward pass that matching and merging take. CFG is a YAML file, or its name under configs/",
    "merging": "milliseconds of matching, merging, unmerging and attention, by method and shape, in fp32",
    "means": "milliseconds of the size-weighted mean over tokens that merge, for several ways to compute it",
    "selection": "milliseconds per image of facility location, a plain loop and, if installed, submodlib",
    "attention": "milliseconds of fused attention with a size bias, by precision",
    "data": "images per second of the training loader, on random images of CIFAR's shape, without a model",
    "files": "the same from JPEG files of 200 x 200 pixels, compared with a plain DataLoader with the same transforms",
}
OPTIONS = {  # measurement -> its options, besides --repeats and --threads
    "speedup": ("batch_size", "train", "precision", "device", "overrides"),
    "merging": ("device",),
    "means": ("train", "device"),
    "selection": (),
    "attention": ("train", "device"),
    "data": ("batch_size",),
    "files": ("batch_size", "workers"),
}
BATCH_SIZE = {"speedup": 8, "data": 128, "files": 32}  # default of --batch-size
FILES, SIDE, SIZE = (
    1000,
    200,
    160,
)  # JPEG files of --files, their width and height in pixels, and the size to which they are resized


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLE)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--speedup", metavar="CFG", help=HELP["speedup"])
    for name in list(OPTIONS)[1:]:
        target.add_argument(f"--{name}", action="store_true", help=HELP[name])
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"images in a batch (default: --speedup 8, --files 32, --data 128; at most {IMAGES})",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read --files (default: 2)")
    parser.add_argument(
        "--train", action="store_true", help="time the backward pass too: --speedup, --means, --attention"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="precision of --speedup (default: fp32)")
    parser.add_argument("--device", help="cpu or cuda, not for --selection, --data and --files (default: cpu)")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="timed rounds (default: 9)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of torch (default: 1)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings of --speedup's model")
    args = parser.parse_intermixed_args(argv)
    args.target = next(name for name in OPTIONS if getattr(args, name) not in (None, False))
    refuse_unused(parser, args)
    args.precision, args.device = args.precision or "fp32", args.device or "cpu"
    args.workers = 2 if args.workers is None else args.workers
    if args.workers < 0:
        parser.error(f"--workers {args.workers}: must be at least 0")
    if args.batch_size is None:
        args.batch_size = BATCH_SIZE.get(args.target, 1)
    for name, most in (("batch_size", FILES if args.files else IMAGES), ("repeats", None), ("threads", None)):
        value = getattr(args, name)
        if value < 1 or (most and value > most):
            parser.error(f"--{name.replace('_', '-')} {value}: must be from 1" + (f" to {most}" if most else ""))
    return args


def refuse_unused(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Reports an error for the first option that has no effect on the measurement."""
    for name in dict.fromkeys(name for options in OPTIONS.values() for name in options):
        default = [] if name == "overrides" else parser.get_default(name)
        if getattr(args, name) != default and name not in OPTIONS[args.target]:
            option = " ".join(args.overrides) if name == "overrides" else f"--{name.replace('_', '-')}"
            takers = ", ".join(f"--{other}" for other in OPTIONS if name in OPTIONS[other])
            parser.error(f"{option}: has no effect on --{args.target}; leave it out (it applies to {takers})")


def main(argv: list[str]) -> None:
    args = parse(argv)
    import torch  # after parsing: --help is fast

    from engine.machine import device_name, pick_device

    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    print(f"{device_name(device)}, {args.threads} threads, torch {torch.__version__}")
    MEASUREMENTS[args.target](args, device)


def speedup(args: argparse.Namespace, device: torch.device) -> None:
    from engine.cost.speed.speedup import measure_speedup
    from engine.settings.layers import load_settings
    from models.interface import merging_method
    from models.merging import MERGERS

    settings = load_settings(args.speedup, args.overrides).model
    measured = measure_speedup(settings, args.batch_size, args.precision, args.repeats, device, train=args.train)
    method, step = merging_method(settings), "forward and backward" if args.train else "forward"
    print(f"{args.speedup}, {method}, batch {args.batch_size}, {args.precision}, {step}")
    print(f"{'unmerged':10} ms: {summary(measured.unmerged, '.1f')}")
    print(f"{'merged':10} ms: {summary(measured.merged, '.1f')}")
    print(f"speed-up      {summary(measured.gains, '.3f')}")
    if measured.mac_ratio is None:
        print("MAC ratio     not counted")
    else:
        print(f"MAC ratio     {measured.mac_ratio:.3f}")
        print(f"speed-up over MAC ratio  {summary([gain / measured.mac_ratio for gain in measured.gains], '.3f')}")
    if args.train and MERGERS[method].soft is not None:
        print(f"note: merging does not shorten a training step of {method}: it learns with all tokens")
    if not args.train:
        percent = [100 * share for share in measured.shares]
        print(f"matching and merging, % of the forward pass  {summary(percent, '.2f')}")


def merging(args: argparse.Namespace, device: torch.device) -> None:
    from engine.cost.speed.merging import merging_times
    from models.merging import MERGERS

    parts = ("match", "merge", "unmerge", "attention")
    columns = [Column("method", words=True), Column("removed"), *map(Column, parts)]
    for shape, r in TOKENS:
        rows = []
        for method in MERGERS:
            # `pool` is asked for the three quarters that it always removes: asked for less, it does nothing.
            asked = 3 * (shape[1] - 1) // 4 if method == "pool" else r
            removed, times = merging_times(method, shape, asked, args.repeats, device)
            rows.append([method, str(removed), *(f"{statistics.median(times[part]):.2f}" for part in parts)])
        print(f"\n{by(shape)}, fp32, median ms of {args.repeats}\n")
        print_table(columns, rows)


def means(args: argparse.Namespace, device: torch.device) -> None:
    import torch

    from engine.cost.speed.means import mean_times

    for (shape, r), (precision, dtype) in product(TOKENS, (("fp32", torch.float32), ("bf16", torch.bfloat16))):
        for name, times in mean_times(shape, r, dtype, args.repeats, device, train=args.train).items():
            print(f"{by(shape)}  {precision}  {name:24} ms: {summary(times, '.2f')}")


def selection(args: argparse.Namespace, device: torch.device) -> None:
    from engine.cost.speed.selection import selection_times

    for name, times in selection_times(*SELECTION, args.repeats).items():
        print(f"{name:24} ms per image: {summary(times, '.3f')}")


def attention(args: argparse.Namespace, device: torch.device) -> None:
    from engine.cost.speed.attention import attention_times

    for shape in HEADS:
        for name, times in attention_times(shape, args.repeats, device, train=args.train).items():
            print(f"{by(shape)}  {name:24} ms: {summary(times, '.2f')}")


def data(args: argparse.Namespace, device: torch.device) -> None:
    from engine.cost.speed.data import memory_speeds

    print(f"{IMAGES:,} images of {by(SHAPE)}: crop 4, flip, normalise; batch {args.batch_size}")
    print("images/s:", summary(memory_speeds(IMAGES, SHAPE, args.batch_size, args.repeats), ",.0f"))


def files(args: argparse.Namespace, device: torch.device) -> None:
    from engine.cost.speed.data import PLAIN, file_speeds, write_photographs

    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), FILES, SIDE)
        speeds = file_speeds(Path(folder), SIZE, args.batch_size, args.workers, args.repeats)
    print(
        f"{FILES:,} JPEG files of {SIDE} x {SIDE} to {SIZE}: RandomResizedCrop, flip, jitter, erasing, normalise; "
        f"batch {args.batch_size}, {args.workers} processes"
    )
    plain = speeds.pop(PLAIN)
    print(f"{PLAIN:16} images/s: {summary(plain, ',.0f')}")
    for name, ours in speeds.items():
        ratios = [one / other for one, other in zip(ours, plain, strict=True)]
        print(f"{name:16} images/s: {summary(ours, ',.0f')}; over plain: {summary(ratios, '.2f')}")


def by(shape: tuple[int, ...]) -> str:
    """Returns a shape as text: (8, 197, 768) -> 8x197x768."""
    return "x".join(map(str, shape))


def summary(values: Sequence[float], form: str) -> str:
    """Returns the median, the minimum and the maximum as text, each in a format such as ".2f"."""
    median, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return f"median {median}, min {low}, max {high} of {len(values)}"


MEASUREMENTS = {
    "speedup": speedup,
    "merging": merging,
    "means": means,
    "selection": selection,
    "attention": attention,
    "data": data,
    "files": files,
}

if __name__ == "__main__":
    sys.exit(cli(main))
