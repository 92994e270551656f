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
import sys
from pathlib import Path

from engine.cli import cli, parser_of
from engine.tables import print_table
from models.settings import UserError

EXAMPLE = "example: tools/compare.py runs/hybrid_s0 runs/hybrid_s1 runs/vit_s0 --csv table.csv --plot curves.png"


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
        "--plot", type=Path, metavar="FILE.png", help="draw loss and accuracy (or mAP) over the training"
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse(argv)
    check_outputs(args)
    from engine.study.compare import outputs
    from engine.study.compare.reading import read

    comparison = read(args.runs)
    print_table(*outputs.table(comparison.points))
    for note in comparison.notes:
        print(note)
    if args.csv:
        outputs.write_csv(comparison.points, args.csv)
    if args.markdown:
        outputs.write_markdown(comparison.points, args.markdown, comparison.notes)
    if args.json:
        outputs.write_json(comparison.points, args.json, comparison.notes)
    if args.plot:
        from engine.figures.drawing import save_figure  # only pictures need matplotlib
        from engine.study.curves import curves

        save_figure(curves(comparison.folders), args.plot)


def check_outputs(args: argparse.Namespace) -> None:
    """Refuses files that cannot be written, or must not be, before anything is read."""
    from engine.files import demand_writable
    from engine.runs.folder import RunFolder

    options = {"csv": "table.csv", "markdown": "table.md", "json": "table.json", "plot": "curves.png"}
    taken: dict[Path, str] = {}
    for option, example in options.items():
        path = getattr(args, option)
        if path is None:
            continue
        demand_writable(f"--{option}", path, example)
        if RunFolder(path.parent).owns(path):
            raise UserError(f"--{option} {path}: is a file of a run; give another name")
        if path.resolve() in taken:
            raise UserError(f"--{option} {path}: is the file of --{taken[path.resolve()]}; give another")
        if path.resolve() in {given.resolve() for given in args.runs}:
            raise UserError(f"--{option} {path}: is what is compared; give another name")
        taken[path.resolve()] = option


if __name__ == "__main__":
    sys.exit(cli(main))
