#!/usr/bin/env python3
"""Finished runs in one table, seeds averaged: tools/compare.py runs/a runs/b [--plot FILE.png]."""

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C is quiet while libraries are imported, which takes seconds
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import sys
from pathlib import Path

from engine.compare import Row, compare
from engine.config import cli

COLUMNS = (
    "run", "seeds", "test top-1, %", "params, M", "GMACs", "training images/s", "training, s", "peak memory, MiB",
)  # fmt: skip


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw loss and accuracy by step as well")
    args = parser.parse_args(argv)
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(cells(row) for row in compare(args.runs))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    for row in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    if args.plot:
        from engine.plots import curves, save_figure

        save_figure(curves(args.runs), args.plot)


def cells(row: Row) -> tuple[str, ...]:
    """A row of a Markdown table."""
    spread = "" if row.spread is None else f" ± {row.spread:.2f}"
    return (
        row.name, str(len(row.seeds)), f"{row.top1:.2f}{spread}", f"{row.params / 1e6:.3f}", f"{row.gmacs:.4f}",
        f"{row.images_per_second:.0f}", f"{row.seconds:.0f}", f"{row.peak_memory_mib:.0f}",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli(main))
