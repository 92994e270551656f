#!/usr/bin/env python3
"""Puts merging into a pretrained model without training, and compares methods and budgets on labelled images.

  tools/zeroshot.py --cfg deit_tiny data.path=imagenet/val
  tools/zeroshot.py --cfg deit_tiny data.path=some methods=[tome] budgets='[{target_gmacs: 0.9}]' --fit schedule

For each row: accuracy, its difference from the unmerged model on the same images with a 95 % interval and McNemar's
p-value (corrected for the number of rows), agreement with the unmerged model, and GMACs. Results go to runs/NAME: a
table, zeroshot.json, and every prediction. Rows that were evaluated before are not evaluated again.

--fit schedule finds, for every row with a budget of multiply-adds, how many patches each block should remove, by the
divergence from the unmerged model on some images; --fit threshold finds the threshold that costs as much on average. It
prints rows for a settings file. Evaluate them on other images.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import logging
import sys

from engine.cli import cli, parse_comparison
from engine.tables import print_table


def parse(argv: list[str]) -> argparse.Namespace:
    return parse_comparison(argv, __doc__, "zeroshot", "budgets=[{r: 8}]", fits=("schedule", "threshold"))


def main(argv: list[str]) -> None:
    args = parse(argv)
    import torch

    from engine.runs.lock import take_lock
    from engine.settings.layers import load_file
    from engine.study.zeroshot.each import folder_of
    from engine.study.zeroshot.evaluate import evaluate_rows
    from engine.study.zeroshot.fitting import fit_rows
    from engine.study.zeroshot.report import compared, earlier_times, notes, table, write_outputs
    from engine.study.zeroshot.settings import ZeroshotSettings
    from engine.study.zeroshot.timing import time_rows

    settings = load_file(ZeroshotSettings, args.cfg, args.overrides, "zeroshot")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if args.fit:
        fit_rows(settings, args.fit, args.images or 256)
        return
    folder = folder_of(settings)
    with take_lock(folder, resume=True):
        images, rows = evaluate_rows(settings, folder, again=args.again)
        times = time_rows(settings, images, rows, args.time) if args.time else earlier_times(folder, rows)
        results = compared(images, rows, times)
        write_outputs(folder, settings, images, results)
    print_table(*table(results))
    for note in notes(rows):
        print(note)
    print(f"{folder}: table.md, zeroshot.json, predictions.npz")


if __name__ == "__main__":
    sys.exit(cli(main))
