#!/usr/bin/env python3
"""Looks at data, and at what is handed in: tools/data.py validate submission.csv --sample sample_submission.csv.

tools/data.py COMMAND --help says what a command takes. A wrong file ends with exit code 2 and one line; what is wrong
in detail is printed before it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from engine.cli import cli


class Command(NamedTuple):
    """A subcommand. A new one is two functions and a line in COMMANDS; what it needs it imports itself."""

    summary: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.arguments(commands.add_parser(name, help=command.summary, description=command.summary))
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse(argv)
    COMMANDS[args.command].run(args)


def validate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="submission.csv", help="the file to check")
    parser.add_argument("--sample", type=Path, required=True, metavar="FILE.csv", help="the competition's sample file")
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--run", type=Path, metavar="DIR", help="a run folder: its labels are the ones allowed")
    known.add_argument("--classes", type=Path, metavar="FOLDER", help="class folders: their names are the ones allowed")
    parser.add_argument(
        "--formulas",
        choices=["guard", "keep"],
        default="guard",
        help="keep: a cell that a spreadsheet would compute, such as =A1, is no mistake (default: guard)",
    )


def validate_file(args: argparse.Namespace) -> None:
    from engine.submit.sample import read_sample
    from engine.submit.validate import class_folders, validate
    from models.settings import UserError

    classes, many = None, None
    if args.run:
        from engine.submit.ensemble import classes_of

        classes, task = classes_of(args.run)
        many = not task.one_class
    elif args.classes:
        classes, many = class_folders(args.classes), False
    sample = read_sample(args.sample)
    report = validate(args.file, sample, classes, many=many, keep_formulas=args.formulas == "keep")
    for line in report.problems:
        print(f"wrong: {line}")
    for line in report.warnings:
        print(f"warning: {line}")
    if report.problems:
        count = len(report.problems)
        raise UserError(
            f"{args.file}: {count} kind{'s' * (count > 1)} of mistakes, said above; "
            f"correct the file, or write it with tools/predict.py --sample {args.sample}"
        )
    print(f"{args.file}: valid; {report.summary}")


def check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a folder of images, or a CSV file of paths and labels")
    parser.add_argument("overrides", nargs="*", metavar="data.key=value", help="how it is read, as in training")
    parser.add_argument("--kind", help="data.name in training: folder, csv, kaggle ... (default: what PATH looks like)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write check.png there: images of each class, sizes")


def check(args: argparse.Namespace) -> None:
    from engine.data.check.preflight import check_source, source_settings
    from engine.data.check.words import words
    from engine.figures.check import picture
    from engine.settings.layers import parse_overrides
    from models.settings import UserError

    given = parse_overrides(args.overrides)
    if strange := next((key for key in given if key != "data"), None):
        raise UserError(f"{strange}: not a setting of the data; write data.key=value, as in data.max_pixels=1000000")
    settings = source_settings(args.path, args.kind, given.get("data"))
    report = check_source(settings)
    for line in words(report):
        print(line)
    if args.out:
        from engine.figures.drawing import save_figure

        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {args.out}: cannot be made ({error.strerror}); give another folder") from None
        save_figure(picture(report), args.out / "check.png")
        print(f"picture: {args.out / 'check.png'}")
    if report.errors:
        first = "; ".join(finding.text for finding in report.errors)
        raise UserError(f"{report.where}: training cannot start: {first}; see above")
    print(f"training can start: data.name={settings.name}")


def preview_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg", required=True, help="a YAML file, or its name under configs/")
    parser.add_argument("--out", type=Path, default=Path("preview.png"), metavar="FILE.png", help="(preview.png)")
    parser.add_argument("--epoch", type=int, default=0, help="from 0; each has other draws")
    parser.add_argument("--images", type=int, default=32, help="at most so many of the batch (32)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")


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


COMMANDS = {
    "check": Command("look at images as training would, and say all that is wrong with them", check_arguments, check),
    "preview": Command("draw a training batch as the model will see it", preview_arguments, preview),
    "validate": Command("check a submission against its sample file", validate_arguments, validate_file),
}


if __name__ == "__main__":
    sys.exit(cli(main))
