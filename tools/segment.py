#!/usr/bin/env python3
"""Puts merging into a pretrained ViT, fits a probe to its features, and segments images with it.

  tools/segment.py --cfg deit_tiny data.path=photographs              # planted masks
  tools/segment.py --cfg deit_tiny data.path=my_set data.name=masks   # my_set/images and my_set/masks
  tools/segment.py --cfg deit_tiny_cnn data.path=photographs          # merged tokens feed a CNN stage
  tools/segment.py --cfg deit_tiny_tuned data.path=photographs        # and the model is trained together with it

For each row: mean intersection over union (mIoU) and pixel accuracy on the same test images, their differences from the
unmerged model with 95 % intervals (bootstrap over images), and GMACs. Features of merged tokens are those of all their
patches, a linear probe or a CNN stage (`probe.cnn`) is fitted to each row, and logits of patches are enlarged to
pixels. The model is frozen, unless `probe.cnn.model_lr` trains it together with the stage. Rows without merging on
smaller images (`sizes`) are what merging at equal cost has to beat.

With data.name=planted, the folder has photographs in a folder for each class; some are pasted onto others, so that the
class of every pixel is known. With data.name=masks, it has images and masks (PNG files of classes' numbers; 255 is
ignored). Results go to runs/NAME: a table, segment.json, counts.npz, and masks.png, a picture of the first test images
and what the first rows predict. Rows that were evaluated before are not evaluated again.
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
    return parse_comparison(argv, __doc__, "segment", "data.train=100")


def main(argv: list[str]) -> None:
    args = parse(argv)
    import torch

    from engine.runs.lock import take_lock
    from engine.settings.layers import load_file
    from engine.study.segment.evaluate import evaluate_rows
    from engine.study.segment.report import RECORD, compared, table, undrawn, write_outputs
    from engine.study.segment.settings import SegmentSettings
    from engine.study.segment.timing import check_timed, time_rows
    from engine.study.zeroshot.each import folder_of
    from engine.study.zeroshot.report import earlier_times, notes

    settings = load_file(SegmentSettings, args.cfg, args.overrides, "segment")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if args.time:
        check_timed(settings)
    folder = folder_of(settings)
    with take_lock(folder, resume=True):
        subject, rows = evaluate_rows(settings, folder, again=args.again)
        times = time_rows(settings, subject, rows, args.time) if args.time else earlier_times(folder, rows, RECORD)
        results = compared(rows, times)
        write_outputs(folder, settings, subject, results)
    print_table(*table(results))
    for note in [*notes(rows), *undrawn(rows)]:
        print(note)
    print(f"{folder}: table.md, masks.png, segment.json, counts.npz")


if __name__ == "__main__":
    sys.exit(cli(main))
