#!/usr/bin/env python3
"""Draws which patches of photographs each merging method merges into one token.

With --run, a run's model merges, and photographs are read exactly as by tools/predict.py. Without --run no model is
used, and patches are compared by their colours, as in
tools/picture.py --images china cat.jpg --out merged.png.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import sys
from pathlib import Path

from engine.cli import cli, parser_of, take_overrides
from engine.figures.photographs import PHOTOGRAPHS
from models.settings import UserError

EXAMPLE = "example: tools/picture.py --run runs/x --images cat.jpg --out merged.png --methods tome pitome merge.r=8"
BY_COLOUR = ("size", "patch", "keep")  # options of pictures without a run


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLE)
    parser.add_argument(
        "--images",
        nargs="+",
        required=True,
        metavar="FILE",
        help=f"image files, or photographs that come with installed packages: {', '.join(PHOTOGRAPHS)}",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="the picture")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="merging methods, a column for each (default: the run's own; without --run all that need no training)",
    )
    parser.add_argument("--keep", type=float, help="share of the patches that remain (default: 0.25); not with --run")
    parser.add_argument(
        "--size", type=int, help="size to which images are resized, pixels (default: 224); not with --run"
    )
    parser.add_argument("--patch", type=int, help="side of a patch, pixels (default: 16); not with --run")
    parser.add_argument("--run", type=Path, metavar="DIR", help="a run folder, whose model merges")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="changed settings of the run, such as merge.r=4"
    )
    args = take_overrides(parser.parse_intermixed_args(argv), "images", "methods")
    if not args.images:
        parser.error("give --images at least one file")
    by_colour = {key: getattr(args, key) for key in BY_COLOUR if getattr(args, key) is not None}
    if args.run and by_colour:
        raise UserError(
            f"--{next(iter(by_colour))}: not with --run, which has its own; set merge.r or merge.keep, or leave it out"
        )
    if args.overrides and not args.run:
        raise UserError(f"{args.overrides[0]}: changes a run's settings; give --run DIR")
    args.by_colour = by_colour
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    from engine.figures.drawing import save_figure
    from engine.figures.merge_picture import picture_by_colour, picture_of_run

    if args.run:
        figure = picture_of_run(args.run, args.images, args.methods, args.overrides)
    else:
        figure = picture_by_colour(args.images, args.methods, **args.by_colour)
    save_figure(figure, args.out)


if __name__ == "__main__":
    sys.exit(cli(main))
