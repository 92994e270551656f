#!/usr/bin/env python3
"""Predicts the classes of images with one or more runs, and writes them to a CSV file, such as a submission.

--images takes folders and files, such as photo.jpg. With --sample the columns, their order, the separator, the order
of the rows and the spelling of ids follow that file; for a sample with a column for each class, probabilities are
written. Without it the columns are ID and Label, and the rows are in the order 1, 2, 10. With several --run, or a
folder of all folds, probabilities are averaged. The runs' data are not needed. Merging may differ from training:
merge.r=4.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from engine.cli import add_runs, cli, parser_of, take_overrides
from engine.wording import counted
from models.settings import UserError

EXAMPLE = "example: tools/predict.py --run runs/x --images test --sample sample.csv --out submission.csv"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLE)
    add_runs(parser, "average the probabilities of runs")
    parser.add_argument(
        "--images", type=Path, required=True, nargs="+", metavar="PATH", help="image files and folders of images"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="the file to write")
    parser.add_argument("--sample", type=Path, metavar="FILE.csv", help="the competition's sample file")
    parser.add_argument("--weights", metavar="2,1", help="how much each --run counts (default: all equally)")
    parser.add_argument(
        "--tta",
        metavar="flip,crops",
        default="",
        help="average over views of each image; flip: it and its mirror image; crops: its corners and centre; or both",
    )
    parser.add_argument("--probabilities", type=Path, metavar="FILE.csv", help="also write every class's probability")
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="write only the K most probable classes to --probabilities"
    )
    parser.add_argument(
        "--extra",
        choices=["stop", "ignore"],
        default="stop",
        help="if the sample does not name an image: stop with an error (default), or ignore the image",
    )
    parser.add_argument(
        "--formulas",
        choices=["guard", "keep"],
        default="guard",
        help="write names that a spreadsheet would compute, such as =A1, after an apostrophe (default) or unchanged",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="changed settings of every run, such as merge.r=4"
    )
    args = take_overrides(parser.parse_intermixed_args(argv), "images")
    if not args.images:
        parser.error("give --images at least one file or folder")
    return args


def numbers(text: str | None) -> list[float] | None:
    """Parses the numbers of --weights."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--weights {text}: write numbers with commas between them, as in 2,1") from None


def main(argv: list[str]) -> None:
    args = parse(argv)
    weights = numbers(args.weights)
    from engine.submit.ensemble import gather
    from engine.submit.predict import parse_tta, predict
    from engine.submit.submission import Outputs, target_rows, write_probabilities, write_submission, written_names

    outputs = Outputs(args.out, args.probabilities, args.top_k, keep_formulas=args.formulas == "keep")
    outputs.check(args.sample)
    tta = parse_tta(args.tta)
    started = time.perf_counter()
    ensemble = gather(args.run, weights, args.overrides)
    outputs.check_classes(ensemble.classes)
    target = target_rows(args.images, args.sample, ignore_extra=args.extra == "ignore")
    names, notes = written_names(target.sample, ensemble)
    predictions = replace(predict(ensemble, target.files, tta), classes=names)
    if args.probabilities:
        write_probabilities(outputs, target.sample, predictions)
    summary, more_notes = write_submission(outputs, target.sample, predictions)
    for note in (*notes, *more_notes):
        print(f"note: {note}")
    print(f"{args.out}: {summary}")
    count = len(ensemble.members)
    models = "model" if count == 1 else "models"
    print(f"{counted(len(target.files), 'image')} by {count} {models} in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    sys.exit(cli(main))
