#!/usr/bin/env python3
"""Shows which parts of images a run's answer depends on, also where the model merged them.

For each image and method a figure: photograph, explanation, the model's first five classes; a sheet of all of them;
and the maps as numbers, in explanations.npz. Images are read exactly as by tools/predict.py.

  tools/explain.py --run runs/x --images photos --method gradcam rollout lime --out explained
  tools/explain.py --run runs/x --run runs/y --images cat.jpg --out side_by_side     (several runs beside each other)

An option of a method is set as METHOD.option=value: lime.samples=200. merge.r=8 merges otherwise than the run did.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import sys
from pathlib import Path

from engine.cli import add_runs, cli, parser_of, take_overrides

EXAMPLE = "example: tools/explain.py --run runs/x --images cat.jpg --method gradcam lime lime.samples=200 --out cat"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLE)
    add_runs(parser, "put their explanations beside each other")
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True, metavar="PATH", help="image files and folders of images"
    )
    parser.add_argument(
        "--method",
        nargs="+",
        default=["gradcam"],
        metavar="NAME",
        help="gradcam (default), rollout, gradient_rollout, lime, integrated_gradients, occlusion, rise, merge, or all",
    )
    parser.add_argument("--target", metavar="CLASS", help="a class's name or number (default: the predicted class)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write into")
    parser.add_argument("--smooth", action="store_true", help="draw maps interpolated instead of cell by cell")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changed settings of every run, such as merge.r=4, and options of methods, such as lime.samples=200",
    )
    args = take_overrides(parser.parse_intermixed_args(argv), "images", "method")
    if not args.images:
        parser.error("give --images at least one file or folder")
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    from engine.explain.report import Wanted, report

    wanted = Wanted(args.run, args.images, args.method, args.target, args.overrides, args.smooth)
    for line in report(wanted, args.out):
        print(line)


if __name__ == "__main__":
    sys.exit(cli(main))
