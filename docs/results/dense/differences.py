#!/usr/bin/env python3
"""Prints how rows differ from images of another size at equal cost: python docs/results/dense/differences.py

A merged row costs 6 % less than the row beside it to 1.3 % more. Intervals are paired bootstraps over test images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

from engine.measure.segmentation import mean_iou, paired_images, pixel_accuracy  # noqa: E402

BESIDE = {"1 GMACs": "208 px", "0.9 GMACs": "192 px", "0.7 GMACs": "176 px", "1.25 GMACs": "unmerged"}


def main() -> None:
    for folder in ("four_blocks", "last_block"):
        with np.load(HERE / folder / "counts.npz") as arrays:
            counts = dict(zip(map(str, arrays["rows"]), arrays["counts"].astype(np.int64), strict=True))
        print(f"\n{folder}\n\n| row | beside | mIoU, points | 95 % interval | pixels, points | 95 % interval |")
        print("|---|---|---|---|---|---|")
        for name, own in counts.items():
            beside = BESIDE.get(name.rpartition(", ")[2])
            if beside is not None:
                both = [paired_images(score, own, counts[beside]) for score in (mean_iou, pixel_accuracy)]
                cells = [f"{100 * d.mean:+.2f} | {100 * d.low:+.2f} to {100 * d.high:+.2f}" for d in both]
                print(f"| {name} | {beside} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
