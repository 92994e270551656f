#!/usr/bin/env python3
"""Predicts a folder of images: tools/predict.py --run runs/x --images test --out submission.csv --sample sample.csv.

Columns, their order, the separator, the rows' order and the spelling of ids are those of the sample file; without one,
ID and Label, and a row for each file in the order 1, 2, 10. A sample with a column for each class gets probabilities.
Several --run, or a run of several folds, predict together: their probabilities are averaged. The runs' data are not
needed. Merging may be another than in training: merge.r=4.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is quiet while libraries are imported, which takes seconds
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # engine/ and models/ are run from the checkout

import argparse
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.cli import cli
from models.settings import UserError

if TYPE_CHECKING:
    from engine.submit.predict import Ensemble, Predictions
    from engine.submit.sample import Sample


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run",
        type=Path,
        required=True,
        action="append",
        metavar="DIR",
        help="a run folder, or that of all folds of one; several times: they predict together",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="the images")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="the submission")
    parser.add_argument("--sample", type=Path, metavar="FILE.csv", help="the competition's sample file")
    parser.add_argument("--weights", metavar="2,1", help="how much each --run counts (default: all the same)")
    parser.add_argument(
        "--tta",
        metavar="flip,crops",
        default="",
        help="average over views; flip: the image and its mirror image; crops: its corners and middle; or both",
    )
    parser.add_argument("--probabilities", type=Path, metavar="FILE.csv", help="write every class's probability, too")
    parser.add_argument("--top-k", type=int, metavar="K", help="--probabilities gets the K most probable classes alone")
    parser.add_argument(
        "--extra",
        choices=["stop", "ignore"],
        default="stop",
        help="images that the sample does not name are an error (default), or left out",
    )
    parser.add_argument(
        "--formulas",
        choices=["guard", "keep"],
        default="guard",
        help="texts that a spreadsheet would compute, such as =A1, get an apostrophe (default), or are written as is",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of every run, such as merge.r=4")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str]) -> None:
    args = parse(argv)
    weights = numbers(args.weights)
    check_outputs(args)
    tta = views(args.tta)

    from engine.submit import predict

    started = time.perf_counter()
    ensemble = predict.gather(args.run, weights, args.overrides)
    if args.top_k is not None and args.top_k > len(ensemble.classes):
        raise UserError(f"--top-k {args.top_k}: there are {len(ensemble.classes)} classes; use that or less")
    sample, files = test_set(args)
    wants = sample.asks_for_probabilities(ensemble.classes, not ensemble.task.one_class)
    names = spelled(sample, ensemble)
    found = predict.predict(ensemble, [args.images / file for file in files], tta)
    found = replace(found, classes=names)
    if args.probabilities:
        write_probabilities(args, sample, found)
    summary = write_submission(args, sample, found, wants)
    count = len(ensemble.members)
    print(f"{args.out}: {summary}")
    print(f"{len(files)} images by {count} model{'s' * (count > 1)} in {time.perf_counter() - started:.1f} s")


def views(text: str) -> list[str]:
    """What --tta says."""
    from engine.submit.predict import TTA

    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in TTA]:
        raise UserError(f"--tta {text}: {unknown[0]} is unknown; use {', '.join(TTA)}, or both with a comma")
    return names


def numbers(text: str | None) -> list[float] | None:
    """What --weights says."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--weights {text}: write numbers with commas between them, as in 2,1") from None


def check_outputs(args: argparse.Namespace) -> None:
    """Finds what would keep the files from being written while nothing is lost by it."""
    from engine.files import demand_writable

    if args.top_k is not None and args.top_k < 1:
        raise UserError(f"--top-k {args.top_k}: must be 1 or more")
    if args.top_k is not None and not args.probabilities:
        raise UserError(f"--top-k {args.top_k}: says what --probabilities holds; give --probabilities FILE.csv")
    others = {"--sample": args.sample, "--out": args.out}
    for option, path in (("--out", args.out), ("--probabilities", args.probabilities)):
        if path is None:
            continue
        demand_writable(option, path, "submission.csv")
        if path.exists() and not is_text(path):
            raise UserError(
                f"{option} {path}: is there already and no text file, so that it is not replaced; give another name"
            )
        for other, there in others.items():
            if other != option and there is not None and there.resolve() == path.resolve():
                raise UserError(f"{option} {path}: is the file of {other}; give another")


def is_text(path: Path) -> bool:
    """Whether a file may be a table of before: not an image, a checkpoint, a device or a pipe."""
    if not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            return b"\0" not in file.read(4096)
    except OSError:
        return True  # the caller says that it may not be written


def test_set(args: argparse.Namespace) -> tuple[Sample, list[str]]:
    """What to hand in, and the image of each of its rows, as a path from the folder of images."""
    from engine.submit.images import find_images, match, spelled
    from engine.submit.sample import Sample, read_sample

    files = find_images(args.images)
    if args.sample is None:
        return Sample("ID,Label", ["ID", "Label"], 0, files), files
    sample = read_sample(args.sample, lambda cells: spelled(cells, files)[1])
    return sample, match(sample, files, args.images, args.extra == "ignore")


def spelled(sample: Sample, ensemble: Ensemble) -> list[str]:
    """The names of the classes as they will be written."""
    spelling = sample.spelling(ensemble.classes, not ensemble.task.one_class)
    if other := [name for name in ensemble.classes if spelling[name] != name]:
        print(f"note: names are spelled as in {sample.where}, such as {spelling[other[0]]!r} for {other[0]!r}")
    return [spelling[name] for name in ensemble.classes]


def write_submission(args: argparse.Namespace, sample: Sample, found: Predictions, wants: bool) -> str:
    """Writes --out; returns a line about it."""
    from engine.submit.sample import TOGETHER, number, write
    from engine.submit.validate import validate

    if wants:
        at = [[name.strip() for name in found.classes].index(column) for column in sample.others]
        rows = [[number(value) for value in row] for row in found.probabilities[:, at].tolist()]
    else:
        rows = [[TOGETHER.join(names)] for names in found.names()]
        known = {name.strip() for name in found.classes}
        strange = [label for label in sample.labels if label and label not in known]
        if strange and found.task.one_class:
            print(
                f"note: {sample.where} has labels such as {strange[0]!r}, which are no classes of the run; "
                f"the run's names are written, such as {found.classes[0]!r}"
            )
    many = not found.task.one_class
    keep, reports = args.formulas == "keep", []

    def check(path: Path):
        reports.append(validate(path, sample, found.classes, many, keep))
        return reports[-1]

    write(args.out, sample, rows, keep, check)
    for line in reports[-1].warnings:
        print(f"note: {line}")
    return f"{reports[-1].summary}; read back and valid"


def write_probabilities(args: argparse.Namespace, sample: Sample, found: Predictions) -> None:
    """Writes --probabilities: a column for each class, or the K most probable names and their probabilities."""
    from engine.submit.sample import Sample, number, write
    from engine.submit.validate import validate

    many = not found.task.one_class
    header, keep = sample.columns[sample.ids_at], args.formulas == "keep"
    if args.top_k is None:
        while header in found.classes:
            header = f"{header}_"
        wanted = Sample(str(args.probabilities), [header, *found.classes], 0, sample.ids, numeric=True)
        rows = [[number(value) for value in row] for row in found.probabilities.tolist()]
        return write(args.probabilities, wanted, rows, keep, lambda p: validate(p, wanted, found.classes, many, keep))
    columns = [f"{what}{i + 1}" for i in range(args.top_k) for what in ("label", "probability")]
    while header in columns:
        header = f"{header}_"
    wanted = Sample(str(args.probabilities), [header, *columns], 0, sample.ids)
    rows = [[cell for name, value in row for cell in (name, number(value))] for row in found.top(args.top_k)]
    write(args.probabilities, wanted, rows, keep)


if __name__ == "__main__":
    sys.exit(cli(main))
