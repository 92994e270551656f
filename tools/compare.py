#!/usr/bin/env python3
"""Finished runs in one table, seeds and folds averaged: tools/compare.py runs/a runs/b [--plot FILE.png]."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is quiet while libraries are imported, which takes seconds
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # engine/ and models/ are run from the checkout

import argparse

from engine.cli import cli
from engine.study.table import Row, compare, runs_in

COLUMNS = (
    "run",
    "seeds",
    "test {}, %",
    "model",
    "training",
    "params, M",
    "learnt, M",
    "learnt, %",
    "GMACs",
    "images/s",
    "training, s",
    "peak memory, MiB",
    "saved, MiB",
)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of folds")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw loss and accuracy, or mAP, by step as well")
    args = parser.parse_args(argv)
    from engine.tasks import title_of

    found = compare(args.runs)
    metrics = " or ".join(dict.fromkeys(title_of(row.metric) for row in found))
    header = tuple(title.format(metrics) for title in COLUMNS)
    rows = [header, ("---",) * len(COLUMNS), *(cells(row) for row in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    for row in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    if args.plot:
        from engine.figures.drawing import save_figure
        from engine.study.curves import curves

        save_figure(curves(runs_in(args.runs)), args.plot)


def cells(row: Row) -> tuple[str, ...]:
    """A row of a Markdown table."""
    spread = "" if row.spread is None else f" ± {row.spread:.2f}"
    top1 = "-" if row.top1 is None else f"{row.top1:.2f}{spread}"
    return (
        row.name,
        counted(row),
        top1,
        row.model,
        row.method,
        f"{row.params / 1e6:.3f}",
        f"{row.trained_params / 1e6:.3f}",
        f"{100 * row.trained_params / row.params:.2f}",
        f"{row.gmacs:.4f}",
        f"{row.images_per_second:.0f}",
        f"{row.seconds:.0f}",
        f"{row.peak_memory_mib:.0f}",
        "-" if row.saved_mib is None else f"{row.saved_mib:.2f}",
    )


def counted(row: Row) -> str:
    """How many runs the row is of: seeds, folds, or both."""
    seeds, folds = len(row.seeds), f"{len(row.folds)} fold{'s' * (len(row.folds) > 1)}"
    if not row.folds:
        return str(seeds)
    return folds if seeds == 1 else f"{seeds} x {folds}"


if __name__ == "__main__":
    sys.exit(cli(main))
