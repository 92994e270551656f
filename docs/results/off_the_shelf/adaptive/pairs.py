#!/usr/bin/env python3
"""Agreement with the unmerged model, and accuracy: numbers that depend on the image minus equal numbers.

  python docs/results/off_the_shelf/adaptive/pairs.py

From predictions.npz beside this file, over the same images: the difference in points, its paired bootstrap interval,
and McNemar's p-value, not corrected.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))
from engine.measure.paired import mcnemar, paired_bootstrap

# A row whose numbers depend on the image, the same number in every merging block, and its own mean numbers by block.
ROWS = (
    ("tome, threshold 0.912", "tome, r = 8", "tome, mean of threshold 0.912"),
    ("tome, threshold 0.8724", "tome, r = 13", "tome, mean of threshold 0.8724"),
    (
        "tome from block 4, threshold 0.8709",
        "tome from block 4, 0.9 GMACs",
        "tome from block 4, mean of threshold 0.8709",
    ),
    ("atc, threshold 0.8876", "atc, r = 13", "atc, mean of threshold 0.8876"),
    (
        "topk from block 4, threshold 0.9677",
        "topk from block 4, 0.9 GMACs",
        "topk from block 4, mean of threshold 0.9677",
    ),
    ("ats in 3 blocks, adaptive", "ats in 3 blocks, 0.738 GMACs", "ats in 3 blocks, mean of adaptive"),
)


if __name__ == "__main__":
    with np.load(Path(__file__).parent / "predictions.npz", allow_pickle=False) as arrays:
        predicted = dict(zip(arrays["rows"].tolist(), arrays["predicted"], strict=True))
        compared_with = {"agreement": predicted["unmerged"], "top-1": arrays["targets"]}
    for measure, right in compared_with.items():
        for adaptive, equal in [(row, other) for row, *others in ROWS for other in others]:
            same = [predicted[name] == right for name in (adaptive, equal)]
            difference, p = paired_bootstrap(*same), mcnemar(*same).p
            interval = f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
            print(f"{measure:10} {adaptive:36} minus {equal:44} {100 * difference.mean:+5.1f} ({interval}), p {p:.2g}")
