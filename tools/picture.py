#!/usr/bin/env python3
"""Draws what each method merges on photographs: tools/picture.py --images china cat.jpg --out merged.png.

Without --run no model takes part: patches are compared by their colours. With it, a run's model merges:
tools/picture.py --run runs/hybrid_merge --images cat.jpg --out merged.png --methods tome pitome merge.r=8.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is quiet while libraries are imported, which takes seconds
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # engine/ and models/ are run from the checkout

import argparse

from matplotlib.figure import Figure

from engine.cli import cli
from engine.figures import merging as pictures
from engine.figures.drawing import save_figure
from engine.runs.restore import load_run
from models.merging import MERGERS
from models.settings import UserError, nearest

COLOURS = {"size": 224, "patch": 16, "keep": 0.25}  # defaults of what a run's settings say where one merges
MOST = 4096  # pixels on a side, and patches
TRAINED = [name for name, merger in MERGERS.items() if merger.metric == "learned"]
DRAWN = [name for name in MERGERS if name not in ("none", *TRAINED)]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    at_hand, drawn, trained = (", ".join(names) for names in (pictures.PHOTOGRAPHS, DRAWN, TRAINED))
    parser.add_argument(
        "--images",
        nargs="+",
        required=True,
        metavar="FILE",
        help=f"image files, or photographs that installed packages bring along: {at_hand}",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="the picture")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help=f"columns (default: the run's own; without --run {drawn}; not {trained}, which compares by what it has "
        "learned: without a run that is nothing)",
    )
    parser.add_argument("--keep", type=float, help="share of the patches that is left (default: 0.25); not with --run")
    parser.add_argument("--size", type=int, help="pixels that an image is resized to (default: 224); not with --run")
    parser.add_argument("--patch", type=int, help="pixels on a side of a patch (default: 16); not with --run")
    parser.add_argument("--run", type=Path, metavar="DIR", help="a run folder, whose model merges")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the run, such as merge.r=4")
    args = parser.parse_intermixed_args(argv)
    # `--images a.jpg merge.r=4`: argparse cannot tell where the list ends.
    for key in ("images", "methods"):
        given = getattr(args, key) or []
        swallowed = [item for item in given if "=" in item and not Path(item).exists()]
        setattr(args, key, [item for item in given if item not in swallowed])
        args.overrides = args.overrides + swallowed
    if not args.images:
        parser.error("give --images at least one file")
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    for name in args.methods:
        if name not in MERGERS:
            raise UserError(f"--methods {name}: unknown; {nearest(name, list(MERGERS))}")
    save_figure(of_run(args) if args.run else of_colours(args), args.out)


def of_colours(args: argparse.Namespace) -> Figure:
    """The picture without a model."""
    if args.overrides:
        raise UserError(f"{args.overrides[0]}: changes a run's settings; give --run DIR")
    for name in args.methods:
        if name in TRAINED:
            raise UserError(f"--methods {name}: compares by what it has learned; give the --run that trained it")
    size, patch, keep = (
        given if (given := getattr(args, key)) is not None else default for key, default in COLOURS.items()
    )
    check(size, patch, keep)
    methods, rows = args.methods or DRAWN, []
    for name in args.images:
        image = pictures.square(pictures.read_image(name), size)
        merged = [pictures.merged_by_colour(image, patch, method, keep) for method in methods]
        rows.append(pictures.Row(Path(name).stem, image, merged))
    return pictures.merging(rows, caption(pictures.caption_by_colour(patch, methods), args.images))


def check(size: int, patch: int, keep: float) -> None:
    """Demands values that something can be drawn with."""
    for key, value in (("size", size), ("patch", patch)):
        if not 1 <= value <= MOST:
            raise UserError(f"--{key} {value}: must be from 1 to {MOST}")
    if size % patch:
        near = " or ".join(str(n) for n in (size - size % patch, size - size % patch + patch) if n)
        raise UserError(f"--size {size}: not divisible by --patch {patch}; use {near}")
    if (size // patch) ** 2 > MOST:
        raise UserError(f"--patch {patch}: makes {(size // patch) ** 2} patches, more than {MOST}; use a larger one")
    if not 0 < keep <= 1:
        raise UserError(f"--keep {keep:g}: must be greater than 0 and at most 1")


def of_run(args: argparse.Namespace) -> Figure:
    """The picture of what a run's model merges."""
    for key in COLOURS:
        if getattr(args, key) is not None:
            raise UserError(f"--{key}: a run has its own, and merges as merge.r or merge.keep say; leave it out")
    photographs = [pictures.read_image(name) for name in args.images]
    rows, data = [[] for _ in photographs], None
    for change in [[f"merge.method={name}"] for name in args.methods] or [[]]:
        run = load_run(args.run, [*args.overrides, *change], data=data)
        model, data = run.settings.model, run.data
        if model.in_chans not in pictures.MODES:
            raise UserError(f"{args.run}: the model takes {model.in_chans} channels, a photograph has 1 or 3")
        for row, photograph in zip(rows, photographs):
            row.append(pictures.merged_by_run(run, pictures.square(photograph, model.img_size, model.in_chans)))
    named = [
        pictures.Row(Path(name).stem, pictures.square(photograph, model.img_size), row)
        for name, photograph, row in zip(args.images, photographs, rows)
    ]
    return pictures.merging(named, caption(pictures.caption_of_run(run, args.methods), args.images))


def caption(how: str, images: list[str]) -> list[str]:
    """What stands below a picture."""
    what = "Every patch has the mean colour of the token that it ended in; lines run between different tokens."
    return [f"{what} {how}", *filter(None, [pictures.credit_line(images)])]


if __name__ == "__main__":
    sys.exit(cli(main))
