#!/usr/bin/env python3
"""Checks images before training, draws a training batch, packs images into shards, and checks a submission.

tools/data.py COMMAND --help describes a command. If anything is wrong the exit code is 2, and details are printed above
the last line.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from engine.cli import cli, parser_of
from engine.wording import counted

EXAMPLE = "example: tools/data.py check my_images --out report"


class Command(NamedTuple):
    """A subcommand. A new one needs two functions and a line in COMMANDS; it imports what it needs after parsing."""

    summary: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLE)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {}
    for name, command in COMMANDS.items():
        example = f"example: tools/data.py {name} {command.example}"
        parsers[name] = commands.add_parser(name, help=command.summary, description=command.summary, epilog=example)
        command.arguments(parsers[name])
    if argv and argv[0] in parsers:  # by itself, since argparse mixes options and overrides only without subcommands
        return parsers[argv[0]].parse_intermixed_args(argv[1:], argparse.Namespace(command=argv[0]))
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse(argv)
    COMMANDS[args.command].run(args)


def check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a folder of images or shards, or a CSV file of paths and labels")
    parser.add_argument("overrides", nargs="*", metavar="data.key=value", help="settings of the data, as in training")
    parser.add_argument(
        "--kind", help="data.name in training: folder, csv, kaggle, shards (default: guessed from PATH)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write a picture, check.png, there: images of each class, and sizes"
    )


def check(args: argparse.Namespace) -> None:
    from engine.data.check.preflight import check_source, source_settings
    from engine.data.check.text import report_lines
    from models.settings import UserError

    settings = source_settings(args.path, args.kind, data_keys(args.overrides))
    report = check_source(settings)
    for line in report_lines(report):
        print(line)
    if args.out:
        from engine.figures.check import save_picture

        print(f"picture: {save_picture(report, args.out)}")
    if report.errors:
        errors = "; ".join(finding.text for finding in report.errors)
        raise UserError(f"{report.where}: training cannot start: {errors}; see above")
    print(f"training can start: data.name={settings.name}")


def data_keys(overrides: list[str]) -> dict[str, Any]:
    """Returns the settings of the data among overrides.

    Raises:
        UserError: there is another setting.
    """
    from engine.settings.layers import parse_overrides
    from models.settings import UserError

    values = parse_overrides(overrides)
    if strange := next((key for key in values if key != "data"), None):
        raise UserError(f"{strange}: not a setting of the data; write data.key=value, as in data.max_pixels=1000000")
    return values.get("data", {})


def pack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", nargs="+", metavar="PATH | data.key=value", help="a folder or table, or data.name=... as in training"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the shards")
    parser.add_argument("--kind", help="data.name in training: folder, csv, kaggle (default: guessed from PATH)")
    parser.add_argument(
        "--megabytes", type=int, default=256, metavar="N", help="size at which a shard ends, 10^6 bytes (default: 256)"
    )


def pack(args: argparse.Namespace) -> None:
    from engine.data import DATASETS, Source
    from engine.data.check.preflight import source_settings
    from engine.data.shards.packing import pack
    from models.settings import UserError, check

    paths = [word for word in args.source if "=" not in word]
    values = data_keys([word for word in args.source if "=" in word])
    if args.megabytes < 1:
        raise UserError(f"--megabytes {args.megabytes}: must be at least 1")
    if len(paths) > 1 or (not paths and values.get("name") not in DATASETS):
        raise UserError(f"pack: give one PATH, or data.name= one of {', '.join(DATASETS)}")
    if paths:
        settings = source_settings(paths[0], args.kind, values)
    else:
        settings = check(DATASETS[values["name"]][0], values, "data")
    data = DATASETS[settings.name][1](settings)
    if isinstance(data, Source):
        data.report()
    index = pack(data, args.out, args.megabytes * 10**6)
    for split in dict.fromkeys(shard.split for shard in index.shards):
        of_split = [shard for shard in index.shards if shard.split == split]
        images, size = sum(shard.samples for shard in of_split), sum(shard.bytes for shard in of_split)
        print(f"{split:<8}{images:,} images in {counted(len(of_split), 'shard')}, {size / 1e6:.1f} MB")
    many = "" if index.labels == "one" else f" data.labels={index.labels}"
    print(f"train on them: data.name=shards data.path={args.out}{many}")


def preview_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg", required=True, help="a settings file, or its name under configs/")
    parser.add_argument(
        "--out", type=Path, default=Path("preview.png"), metavar="FILE.png", help="the picture (default: preview.png)"
    )
    parser.add_argument("--epoch", type=int, default=0, help="epoch, from 0; augmentation differs in each (default: 0)")
    parser.add_argument("--images", type=int, default=32, help="largest number of images of the batch (default: 32)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changed settings")


def preview(args: argparse.Namespace) -> None:
    from engine.settings.layers import load_settings
    from models.settings import UserError

    for name, least in (("epoch", 0), ("images", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least {least}")
    settings = load_settings(args.cfg, args.overrides)
    from engine.figures.drawing import save_figure
    from engine.figures.preview import preview

    save_figure(preview(settings, args.epoch, args.images), args.out)
    print(f"picture: {args.out}")


def validate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="submission.csv", help="the file to check")
    parser.add_argument("--sample", type=Path, required=True, metavar="FILE.csv", help="the competition's sample file")
    allowed = parser.add_mutually_exclusive_group()
    allowed.add_argument("--run", type=Path, metavar="DIR", help="a run folder, whose classes are the allowed labels")
    allowed.add_argument("--classes", type=Path, metavar="DIR", help="a folder of class folders: the allowed labels")
    parser.add_argument(
        "--formulas",
        choices=["guard", "keep"],
        default="guard",
        help="keep: cells that a spreadsheet would compute, such as =A1, are allowed (default: guard)",
    )


def validate_file(args: argparse.Namespace) -> None:
    from engine.submit.sample import read_sample
    from engine.submit.validate import class_folders, validate
    from engine.tasks import ONE_LABEL
    from models.settings import UserError

    classes, task = None, None
    if args.run:
        from engine.submit.ensemble import classes_of

        classes, task = classes_of(args.run)
    elif args.classes:
        classes, task = class_folders(args.classes), ONE_LABEL
    report = validate(args.file, read_sample(args.sample), classes, task, keep_formulas=args.formulas == "keep")
    for line in report.problems:
        print(f"wrong: {line}")
    for line in report.warnings:
        print(f"warning: {line}")
    if report.problems:
        kinds = counted(len(report.problems), "kind of mistake", "kinds of mistakes")
        raise UserError(
            f"{args.file}: {kinds}, listed above; correct the file, or write it with "
            f"tools/predict.py --sample {args.sample}"
        )
    print(f"{args.file}: valid; {report.summary}")


COMMANDS = {
    "check": Command(
        "Decodes all images as training will, and lists everything that is wrong with them.",
        "my_images --out report",
        check_arguments,
        check,
    ),
    "preview": Command(
        "Draws a training batch as the model will see it, with augmentation and labels.",
        "--cfg zoo/resnet18 data.path=my_images",
        preview_arguments,
        preview,
    ),
    "pack": Command(
        "Packs a data set into WebDataset shards: few large files, for disks that are slow with many small ones.",
        "my_images --out shards",
        pack_arguments,
        pack,
    ),
    "validate": Command(
        "Checks a submission against the competition's sample file.",
        "submission.csv --sample sample_submission.csv --run runs/x",
        validate_arguments,
        validate_file,
    ),
}


if __name__ == "__main__":
    sys.exit(cli(main))
