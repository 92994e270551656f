#!/usr/bin/env python3
"""Compares models in one table: accuracy, merging, cost, speed, memory, and the size of what was saved.

Takes finished runs, folders of all folds, sweeps (tools/eval.py --sweep ... --json FILE) and studies. Runs that differ
only in seed and fold share a row, with the mean of their numbers. Run folders of a study that are damaged or not
finished are named and left out.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli import cli, parser_of
from engine.tables import print_table
from models.settings import UserError

if TYPE_CHECKING:
    from engine.study.compare.reading import Comparison

EXAMPLE = "example: tools/compare.py runs/hybrid_s0 runs/hybrid_s1 runs/vit_s0 --csv table.csv --pareto pareto.png"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLE)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN|STUDY",
        help="run folders, folders of all folds, sweeps as JSON, or folders of studies",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV, with full precision")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON, with full precision")
    parser.add_argument(
        "--significance",
        action="store_true",
        help="print which differences are more than noise, over seeds and over images (up to 4 rows: always)",
    )
    parser.add_argument(
        "--pareto", type=Path, metavar="FILE.png|.svg", help="draw accuracy against cost, with the Pareto front"
    )
    parser.add_argument(
        "--cost", choices=["gmacs", "ms", "memory_mib", "params_m", "saved_mib"], help="of --pareto (default: gmacs)"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png|.svg", help="draw loss and accuracy (or mAP) over the training"
    )
    parser.add_argument(
        "--over", choices=["step", "epoch", "seconds"], help="the horizontal axis of --plot (default: step)"
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE.html",
        help="write one page with all of this, mistakes, settings and commands, which opens without a network",
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse(argv)
    check_outputs(args)
    from engine.study.compare import differences, outputs
    from engine.study.compare.reading import read

    comparison = read(args.runs)
    points, notes = comparison.points, list(comparison.notes)
    asked = args.significance or len(points) <= differences.FEW
    needed = asked or (args.html and len(points) <= differences.ON_A_PAGE)
    pairs = differences.differences(points, notes.append) if needed else []
    print_table(*outputs.table(points))
    if asked and pairs:
        print()
        print_table(*differences.table(pairs))
    for line in (differences.explanation(pairs) if asked and pairs else []) + notes:
        print(line)
    if args.csv:
        outputs.write_csv(points, args.csv)
    if args.markdown:
        outputs.write_markdown(points, args.markdown, notes, pairs)
    if args.json:
        outputs.write_json(points, args.json, notes, pairs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a letter that the font lacks is drawn as a box
        draw(args, comparison)
    if args.html:
        from engine.study.page.page import plans_of, write_page

        command = shlex.join(["tools/compare.py", *argv])
        write_page(points, args.html, pairs=pairs, notes=notes, command=command, plan=plans_of(args.runs))


def draw(args: argparse.Namespace, comparison: Comparison) -> None:
    """Draws the figures that were asked for."""
    if args.pareto:
        from engine.figures.drawing import save_figure  # only pictures need matplotlib
        from engine.study.pareto.figure import pareto_figure

        save_figure(pareto_figure(comparison.points, args.cost or "gmacs"), args.pareto)
    if args.plot:
        from engine.figures.drawing import save_figure
        from engine.study.curves import curves

        if not comparison.folders:
            raise UserError(f"--plot {args.plot}: no row is of a run, whose training could be drawn; leave it out")
        save_figure(curves(comparison.folders, args.over or "step"), args.plot)


def check_outputs(args: argparse.Namespace) -> None:
    """Refuses files that cannot be written, or must not be, before anything is read."""
    from engine.files import demand_writable
    from engine.runs.folder import RunFolder
    from engine.study.compare.reading import OF_STUDIES, is_study

    for option, needed in (("cost", "pareto"), ("over", "plot")):
        if getattr(args, option) and not getattr(args, needed):
            raise UserError(f"--{option} {getattr(args, option)}: the axis of --{needed}, which is not given; add it")
    for option in ("pareto", "plot"):
        path = getattr(args, option)
        if path is not None and path.suffix.lower() not in (".png", ".svg"):
            raise UserError(f"--{option} {path}: must end with .png or .svg")
    if args.html and args.html.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--html {args.html}: must end with .html")
    if args.html:
        from engine.study.page.charts import demand_libraries

        demand_libraries("--html")
    options = {"csv": "table.csv", "markdown": "table.md", "json": "table.json"}
    options |= {"pareto": "pareto.png", "plot": "curves.png", "html": "page.html"}
    taken: dict[Path, str] = {}
    for option, example in options.items():
        path = getattr(args, option)
        if path is None:
            continue
        demand_writable(f"--{option}", path, example)
        if RunFolder(path.parent).owns(path):
            raise UserError(f"--{option} {path}: is a file of a run; give another name")
        if is_study(path.parent) and path.name in OF_STUDIES:
            raise UserError(f"--{option} {path}: is a file of the study, which it goes on from; give another name")
        if path.resolve() in taken:
            raise UserError(f"--{option} {path}: is the file of --{taken[path.resolve()]}; give another")
        if path.resolve() in {given.resolve() for given in args.runs}:
            raise UserError(f"--{option} {path}: is what is compared; give another name")
        taken[path.resolve()] = option


if __name__ == "__main__":
    sys.exit(cli(main))
