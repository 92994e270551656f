#!/usr/bin/env python3
"""Compares finished runs in one table: accuracy, model, cost, speed, memory, and the size of what was saved.

Runs that differ only in seed and fold share a row, with the mean of their numbers. A folder of all folds stands for its
folds. The numbers come from each run's results.json.
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

EXAMPLE = "example: tools/compare.py runs/hybrid_s0 runs/hybrid_s1 runs/vit_s0 --plot curves.png"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLE)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of all folds")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="also draw loss and accuracy (or mAP) over the training"
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse(argv)
    from engine.study.table import compare, runs_in, table

    print_table(*table(compare(args.runs)))
    if args.plot:
        from engine.figures.drawing import save_figure  # only pictures need matplotlib
        from engine.study.curves import curves

        save_figure(curves(runs_in(args.runs)), args.plot)


if __name__ == "__main__":
    sys.exit(cli(main))
