#!/usr/bin/env python3
"""Finds the thresholds at which a mean cost is that of a method that removes the same number from every image.

  python docs/results/off_the_shelf/adaptive/fit.py --cfg deit_tiny_adaptive data.path=DIR ...

The arguments are those of tools/zeroshot.py. Only costs are looked at, never labels: the mean GMACs of all images of
the comparison, by the secant method until they are within 0.3 % of the target.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))
from engine.cost.images import ImageCounter
from engine.settings.layers import load_file
from engine.study.zeroshot.each import pretrained
from engine.study.zeroshot.evaluate import predictions
from engine.study.zeroshot.images import labelled_images
from engine.study.zeroshot.settings import ZeroshotSettings
from models.merging import wrap

WITHIN = 0.003  # share of the target
SLOPE = 4.6  # GMACs per unit of the threshold, of the first step
# merge: section, target in GMACs, and the threshold to begin with
WANTED: list[tuple[dict[str, Any], float, float]] = [
    ({"method": "tome"}, 0.7345, 0.873),
    ({"method": "tome", "first_block": 4}, 0.8999, 0.86),
    ({"method": "tome"}, 0.9289, 0.915),
    ({"method": "atc"}, 0.7446, 0.885),
    ({"method": "topk", "first_block": 4}, 0.8999, 0.95),
]


def main(argv: list[str]) -> None:
    settings = load_file(ZeroshotSettings, argv[1], argv[2:], "zeroshot")
    torch.set_num_threads(settings.threads or 1)
    device = torch.device("cpu")
    model, _ = pretrained(settings, device)
    images = labelled_images(settings)
    for merge, target, threshold in WANTED:
        tried: list[tuple[float, float]] = []
        slope = SLOPE
        while not tried or abs(tried[-1][1] - target) > WITHIN * target:
            wrap(model, threshold=threshold, **merge)
            with ImageCounter(model) as counter:
                predictions(model, images, settings.batch_size, device, torch.autocast("cpu", enabled=False))
            costs = counter.costs()
            assert costs is not None
            print(merge, threshold, costs.in_words(), flush=True)
            if tried and threshold != tried[-1][0]:
                slope = (costs.mean - tried[-1][1]) / (threshold - tried[-1][0])
            tried.append((threshold, costs.mean))
            threshold = round(threshold + (target - costs.mean) / slope, 4)


if __name__ == "__main__":
    main(sys.argv[1:])
