#!/usr/bin/env python3
"""Measures speed: tools/bench.py --speedup CFG [section.key=value ...] | --merging | --selection | --attention | ....

--speedup: a config's model with its merging and without, in turns: realised speed-up, the MAC ratio, the one over the
  other, and the share of the forward pass that matching and merging take.
--merging: milliseconds of match, merge, unmerge and attention, by method and shape, fp32.
--means: milliseconds of the size-weighted mean, by how it is computed; with --train forward and backward.
--selection: milliseconds per image of facility location, beside a plain loop and, if installed, submodlib-py.
--attention: milliseconds of fused attention with a size bias, by precision; with --train forward and backward.
--data: images per second of the training pipeline, on random images of CIFAR's shape, without a model.
--files: the same from JPEG files of 200 x 200 pixels, beside a plain DataLoader with the same transforms.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is quiet while libraries are imported, which takes seconds
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # engine/ and models/ are run from the checkout

import argparse
import statistics
import tempfile
from itertools import product

import torch

from engine.cli import cli
from engine.cost import speed as benchmark
from engine.machine import device_name, pick_device
from engine.settings.layers import load_settings
from models.merging import MERGERS

IMAGES, SHAPE = 50_000, (3, 32, 32)  # CIFAR's training set
HEADS = ((64, 3, 57, 32), (8, 12, 197, 64), (4, 12, 577, 64))  # (B, heads, T, width): hybrid_merge; ViT-B, 224 and 384
TOKENS = (((8, 197, 768), 14), ((64, 65, 192), 8), ((4, 1025, 1024), 64))  # (B, T, C), r: a row or two of the grid
SELECTION = (32, 196, 98)  # batch, patches, kept
TAKEN = {  # what is measured: the arguments that it takes, besides --repeats and --threads
    "speedup": ("batch_size", "train", "precision", "device", "overrides"),
    "merging": ("device",),
    "means": ("train", "device"),
    "selection": (),
    "attention": ("train", "device"),
    "data": ("batch_size",),
    "files": ("batch_size", "workers"),
}
FILES, SIDE, SIZE = 1000, 200, 160  # JPEG files of --files, pixels of a side, and what they are brought to


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--speedup", metavar="CFG", help="a YAML file, or its name under configs/")
    for name in list(TAKEN)[1:]:
        what.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--batch-size", type=int, help=f"of --speedup (8), --files (32), --data (128, to {IMAGES})")
    parser.add_argument("--workers", type=int, help="of --files: processes that read; default 2")
    parser.add_argument("--train", action="store_true", help="--speedup, --means, --attention: and backward")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="of --speedup; default fp32")
    parser.add_argument("--device", help="cpu or cuda; default cpu; not of --selection and --data")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs, after one that is not; default 9")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default 1")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of --speedup")
    args = parser.parse_intermixed_args(argv)
    refuse_unused(parser, args)
    args.precision, args.device = args.precision or "fp32", args.device or "cpu"
    args.workers = 2 if args.workers is None else args.workers
    if args.workers < 0:
        parser.error(f"--workers {args.workers}: must be at least 0")
    if args.batch_size is None:
        args.batch_size = 128 if args.data else 32 if args.files else 8
    for name, most in (("batch_size", FILES if args.files else IMAGES), ("repeats", None), ("threads", None)):
        value = getattr(args, name)
        if value < 1 or (most and value > most):
            parser.error(f"--{name.replace('_', '-')} {value}: must be from 1" + (f" to {most}" if most else ""))
    return args


def refuse_unused(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends with an error for the first argument that what is measured would not look at."""
    what = next(name for name in TAKEN if getattr(args, name) not in (None, False))
    for name in dict.fromkeys(name for taken in TAKEN.values() for name in taken):
        default = [] if name == "overrides" else parser.get_default(name)
        if getattr(args, name) != default and name not in TAKEN[what]:
            written = " ".join(args.overrides) if name == "overrides" else f"--{name.replace('_', '-')}"
            takers = ", ".join(f"--{other}" for other in TAKEN if name in TAKEN[other])
            parser.error(f"{written}: --{what} has no use for it; leave it out (it is of {takers})")


def main(argv: list[str]) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    print(f"{device_name(device)}, {args.threads} threads, torch {torch.__version__}")
    if args.speedup is not None:
        speedup(args, device)
    elif args.merging:
        merging(args.repeats, device)
    elif args.means:
        for (shape, r), (word, dtype) in product(TOKENS, (("fp32", torch.float32), ("bf16", torch.bfloat16))):
            for name, times in benchmark.mean_times(shape, r, dtype, args.repeats, device, args.train).items():
                print(f"{'x'.join(map(str, shape))}  {word}  {name:24} ms: {spread(times, '.2f')}")
    elif args.selection:
        for name, times in benchmark.selection_times(*SELECTION, args.repeats).items():
            print(f"{name:24} ms per image: {spread(times, '.3f')}")
    elif args.attention:
        for shape in HEADS:
            for name, times in benchmark.attention_times(shape, args.repeats, device, args.train).items():
                print(f"{'x'.join(map(str, shape))}  {name:24} ms: {spread(times, '.2f')}")
    elif args.files:
        files(args)
    else:
        from engine.cost.data_speed import data_speeds

        print(f"{IMAGES:,} images of {'x'.join(map(str, SHAPE))}: crop 4, flip, normalise; batch {args.batch_size}")
        print("images/s:", spread(data_speeds(IMAGES, SHAPE, args.batch_size, args.repeats), ",.0f"))


def files(args: argparse.Namespace) -> None:
    from engine.cost.data_speed import file_speeds, write_photographs

    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), FILES, SIDE)
        found = file_speeds(Path(folder), SIZE, args.batch_size, args.workers, args.repeats)
    print(
        f"{FILES:,} JPEG files of {SIDE} x {SIDE} to {SIZE}: RandomResizedCrop, flip, jitter, erasing, normalise; "
        f"batch {args.batch_size}, {args.workers} processes"
    )
    plain = found.pop("plain DataLoader")
    print(f"{'plain DataLoader':16} images/s: {spread(plain, ',.0f')}")
    for name, speeds in found.items():
        ratios = [ours / theirs for ours, theirs in zip(speeds, plain, strict=True)]
        print(f"{name:16} images/s: {spread(speeds, ',.0f')}; over plain: {spread(ratios, '.2f')}")


def speedup(args: argparse.Namespace, device: torch.device) -> None:
    settings = load_settings(args.speedup, args.overrides).model
    what = "forward and backward" if args.train else "forward"
    macs, times = benchmark.speedup(settings, args.batch_size, args.precision, args.train, args.repeats, device)
    gains = [plain / merged for plain, merged in zip(times["unmerged"], times["merged"], strict=True)]
    print(f"{args.speedup}, {settings.merge.method}, batch {args.batch_size}, {args.precision}, {what}")
    for name in ("unmerged", "merged"):
        print(f"{name:10} ms: {spread(times[name], '.1f')}")
    print(f"speed-up      {spread(gains, '.3f')}")
    print(f"MAC ratio     {macs:.3f}")
    print(f"speed-up over MAC ratio  {spread([gain / macs for gain in gains], '.3f')}")
    if args.train and MERGERS[settings.merge.method].soft is not None:
        print(f"note: merging does not shorten a training step of {settings.merge.method}: it learns with all tokens")
    if not args.train:
        shares = [100 * part / whole for part, whole in zip(times["merging"], times["inside"], strict=True)]
        print(f"matching and merging, % of the forward pass  {spread(shares, '.2f')}")


def merging(repeats: int, device: torch.device) -> None:
    columns = ("match", "merge", "unmerge", "attention")
    for shape, asked in TOKENS:
        print(f"\n{'x'.join(map(str, shape))}, fp32, median ms of {repeats}\n")
        print("| method | removed | " + " | ".join(columns) + " |\n" + "|---" * (2 + len(columns)) + "|")
        for name in MERGERS:
            # Grid methods are asked for what pooling removes: less would leave them nothing to do.
            r = 3 * (shape[1] - 1) // 4 if name == "pool" else asked
            removed, times = benchmark.merging_times(name, shape, r, repeats, device)
            cells = (f"{statistics.median(times[column]):.2f}" for column in columns)
            print(f"| {name} | {removed} | " + " | ".join(cells) + " |")


def spread(values: list[float], form: str) -> str:
    """Median, minimum and maximum, in words."""
    median, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return f"median {median}, min {low}, max {high} of {len(values)}"


if __name__ == "__main__":
    sys.exit(cli(main))
