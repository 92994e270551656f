#!/usr/bin/env python3
"""Measures speed on this machine: of whole models with merging and without, of merging's parts, and of loading data.

tools/bench.py WHAT --help describes a measurement. Everything is timed in rounds, in which each variant is run in turn,
after a warm-up.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.cli import cli, parser_of, take_overrides
from engine.tables import Column, print_table

if TYPE_CHECKING:
    import torch

EXAMPLE = (
    "example: tools/bench.py model timm:deit_tiny_patch16_224 merge.r=13 --methods tome dpc_knn --batch-size 1 8 32"
)
IMAGES, SHAPE = 50_000, (3, 32, 32)  # CIFAR's training set
HEADS = ((64, 3, 57, 32), (8, 12, 197, 64), (4, 12, 577, 64))  # (B, heads, T, width): 32 px; ViT-B, 224 and 384
TOKENS = (((8, 197, 768), 14), ((64, 65, 192), 8), ((4, 1025, 1024), 64))  # (B, T, C), r: a row or two of the grid
SELECTION = (32, 196, 98)  # batch, patches, kept
FILES, SIDE, SIZE = 1000, 200, 160  # JPEG files, their width and height in pixels, and what they are resized to
OPTIONS: dict[str, dict[str, Any]] = {
    "repeats": {"type": int, "default": 9, "metavar": "N", "help": "timed rounds (default: 9)"},
    "threads": {"type": int, "default": 1, "metavar": "N", "help": "threads of torch (default: 1)"},
    "device": {"default": "cpu", "help": "cpu, cuda or mps (default: cpu)"},
    "train": {"action": "store_true", "help": "time the backward pass too"},
    "batch_size": {"type": int, "metavar": "N", "help": "images in a batch (default: data 128, files 32)"},
    "workers": {"type": int, "default": 2, "metavar": "N", "help": "processes that read files (default: 2)"},
}
LISTS = (  # options of `model` that take several values, in the order of Asked: name, default, description
    ("batch-size", "8", "images in a batch"),
    ("runtimes", "eager", "eager, compiled, onnx (ONNX Runtime), openvino, graph (CUDA graphs), compiled-graph"),
    ("precision", "fp32", "fp32; bf16 or fp16, fp16 on CUDA alone; int8 for onnx and openvino"),
    ("attention", "auto", "auto: torch chooses; on a CPU fused, math; on CUDA flash, efficient, cudnn, math"),
    ("steps", "forward", "forward: in evaluation mode; train: forward, loss, backward and update"),
)
# option, the least and the most that it may be
RANGES = (
    ("batch_size", 1, IMAGES),
    ("workers", 0, None),
    ("repeats", 1, None),
    ("threads", 1, None),
    ("warmup", 1, None),
)


class Measurement(NamedTuple):
    """A subcommand. A new one needs a function and a line in MEASUREMENTS; it imports what it needs after parsing."""

    summary: str
    run: Callable[[argparse.Namespace, torch.device], None]
    options: tuple[str, ...] = ()  # of OPTIONS, besides --repeats and --threads


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLE)
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    parsers = {}
    for name, measurement in MEASUREMENTS.items():
        parsers[name] = commands.add_parser(name, help=measurement.summary, description=measurement.summary)
        if name == "model":
            model_arguments(parsers[name])
        for option in (*measurement.options, "repeats", "threads"):
            parsers[name].add_argument(f"--{option.replace('_', '-')}", **OPTIONS[option])
    if not argv or argv[0] not in parsers:
        return parser.parse_args(argv)
    # By itself, since argparse mixes options and overrides only without subcommands.
    args = parsers[argv[0]].parse_intermixed_args(argv[1:], argparse.Namespace(what=argv[0]))
    if args.what == "model":
        complete(parsers["model"], args)
    if getattr(args, "batch_size", 0) is None:
        args.batch_size = 128 if args.what == "data" else 32
    for option, least, most in RANGES if args.what != "files" else (("batch_size", 1, FILES), *RANGES):
        values = getattr(args, option, None)
        for value in values if isinstance(values, list) else [] if values is None else [values]:
            if value < least or (most and value > most):
                limits = f"from {least} to {most}" if most else f"at least {least}"
                parsers[args.what].error(f"--{option.replace('_', '-')} {value}: must be {limits}")
    return args


def model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a YAML file or its name under configs/, timm:NAME, "
        "torchvision:NAME, or a model of ours by its name, such as lenet5",
    )
    parser.add_argument("overrides", nargs="*", metavar="model.key=value", help="its settings, such as merge.r=8")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="merging methods (default: merge.method)")
    text = "other models in the same rounds: a name, settings such as model.img_size=192, or both in quotes; comes last"
    parser.add_argument("--beside", nargs="+", default=[], metavar="MODEL", help=text)
    for option, default, text in LISTS:
        parser.add_argument(
            f"--{option}",
            nargs="+",
            default=[default],
            metavar=option.split("-")[0].upper(),
            help=f"{text} (default: {default})",
        )
    parser.add_argument("--memory", action="store_true", help="the peak memory too, of each row in its own process")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="rounds that are not timed (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the time of every round there")


def complete(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Moves overrides out of the lists that they follow, and reads the batch sizes."""
    options = {"methods": args.methods is not None, **{option: True for option, *_ in LISTS}}
    take_overrides(args, *(option.replace("-", "_") for option in options))
    for option, given in options.items():
        if given and not getattr(args, option.replace("-", "_")):
            parser.error(f"argument --{option}: expected at least one argument")
    for text in args.batch_size:
        if not (text.isascii() and text.isdigit()):
            parser.error(f"--batch-size {text}: must be a whole number")
    args.batch_size = [int(text) for text in args.batch_size]


def main(argv: list[str]) -> None:
    args = parse(argv)
    import torch  # after parsing: --help is fast

    from engine.machine import device_name, pick_device

    torch.set_num_threads(args.threads)
    device = pick_device(getattr(args, "device", "cpu"))
    print(f"{device_name(device)}, {args.threads} threads, torch {torch.__version__}")
    MEASUREMENTS[args.what].run(args, device)


def model(args: argparse.Namespace, device: torch.device) -> None:
    from engine.cost.speed.model.benchmark import measure
    from engine.cost.speed.model.candidates import candidates
    from engine.cost.speed.model.record import notes, record
    from engine.cost.speed.model.table import failures, table
    from engine.cost.speed.model.variants import Asked, check_installed, variants
    from engine.files import demand_writable, write_json_atomic
    from engine.settings.models import load_beside, load_models

    if args.json:
        demand_writable("--json", args.json, "speed.json")
    asked = Asked(*(getattr(args, option.replace("-", "_")) for option, *_ in LISTS))
    variants([], asked, device)  # a mistake is found before models are built
    check_installed(asked)
    beside = load_beside(args.beside, args.model, args.overrides)
    models = candidates(load_models(args.model, args.overrides, args.methods), beside)
    wanted = variants(models, asked, device)
    rows = measure(models, wanted, args.repeats, device, warmup=args.warmup, memory=args.memory, progress=say)
    values = record(args.model, args.overrides, rows, device, repeats=args.repeats, warmup=args.warmup)
    if args.json:
        write_json_atomic(args.json, values)
    print(f"{args.model} {' '.join(args.overrides)}".strip() + f", median of {args.repeats} rounds\n")
    print_table(*table(values["rows"]))
    for line in (*failures(values["rows"]), *notes(values["rows"])):
        print(line)


def say(line: str) -> None:
    """Prints a line of progress where a person may read it."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr)


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
        measured, refused = attention_times(shape, args.repeats, device, train=args.train)
        for name, times in measured.items():
            print(f"{by(shape)}  {name:28} ms: {summary(times, '.2f')}")
        for name, reason in refused.items():
            print(f"{by(shape)}  {name:28} not computed: {reason}")


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
    "model": Measurement(
        "a model with its merging and without: time, images a second, the speed-up, the ratio of the MACs, the "
        "quotient of the two, and the share of the forward pass that matching and merging take",
        model,
        ("device",),
    ),
    "merging": Measurement(
        "milliseconds of matching, merging, unmerging and attention, by method and shape, in fp32", merging, ("device",)
    ),
    "means": Measurement(
        "milliseconds of the size-weighted mean over tokens that merge, for several ways to compute it",
        means,
        ("train", "device"),
    ),
    "selection": Measurement(
        "milliseconds per image of facility location, a plain loop and, if installed, submodlib", selection
    ),
    "attention": Measurement(
        "milliseconds of attention with a size bias, as a mask and without one, by precision and implementation",
        attention,
        ("train", "device"),
    ),
    "data": Measurement(
        "images per second of the training loader, on random images of CIFAR's shape, without a model",
        data,
        ("batch_size",),
    ),
    "files": Measurement(
        "the same from JPEG files of 200 x 200 pixels, compared with a plain DataLoader with the same transforms",
        files,
        ("batch_size", "workers"),
    ),
}

if __name__ == "__main__":
    sys.exit(cli(main))
