#!/usr/bin/env python3
"""Puts merging into a pretrained model without training, and compares methods and budgets on labelled images.

  tools/zeroshot.py --cfg deit_tiny data.path=imagenet/val

For each row: accuracy, agreement with the unmerged model, whether the difference is more than noise (McNemar's test on
the same images), and GMACs. Rows that were evaluated before are not evaluated again.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import logging
import sys
from pathlib import Path

from engine.cli import cli, parser_of


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--cfg", required=True, help="a YAML file, or its name under configs/zeroshot/")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that override the file's"
    )
    return parser.parse_intermixed_args(argv)


def main(argv: list[str]) -> None:
    args = parse(argv)
    import torch

    from engine.settings.layers import load_file
    from engine.study.zeroshot.evaluate import evaluate_rows
    from engine.study.zeroshot.settings import ZeroshotSettings

    settings = load_file(ZeroshotSettings, args.cfg, args.overrides, "zeroshot")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    folder = Path(settings.out or f"runs/{settings.name}")
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    evaluate_rows(settings, folder)


if __name__ == "__main__":
    sys.exit(cli(main))
