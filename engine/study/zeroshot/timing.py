"""Times the rows of a comparison against each other."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from engine.cost.speed.timing import synchronise
from engine.machine import pick_autocast, pick_device, to_device
from engine.measure.evaluate import eval_mode
from engine.study.zeroshot.evaluate import LabelledImages, batches, merged, pretrained, solved
from engine.study.zeroshot.rows import ZeroshotRow
from engine.study.zeroshot.settings import UNMERGED, ZeroshotSettings


def time_rows(
    settings: ZeroshotSettings, images: LabelledImages, rows: Sequence[ZeroshotRow], rounds: int
) -> dict[str, list[float]]:
    """Measures the forward pass of every row on one batch of real images, in rounds.

    Each round times every row once, so that a machine that slows down slows all rows alike. A call before each timed
    one warms it up, since the model merges in another way than in the call before.

    Args:
        settings: the comparison; its batch size, device, precision and threads are used.
        images: the images, of which the first batch is used.
        rows: the rows to time.
        rounds: timed calls of each row.

    Returns:
        Milliseconds per image, `rounds` for each row's name.
    """
    device = pick_device(settings.device)
    model, _ = pretrained(settings, device)
    autocast = pick_autocast(settings.precision, device)
    ways = {UNMERGED: None, **settings.all_rows()}
    batch = to_device(next(iter(batches(images, settings.batch_size)))[0], device)
    times: dict[str, list[float]] = {row.name: [] for row in rows}
    schedules = {row.name: solved(ways[row.name], row.removed) for row in rows}
    with eval_mode(model), torch.inference_mode(), autocast:
        for _ in range(rounds):
            for name, merge in schedules.items():
                merged(model, name, merge)
                model(batch)
                synchronise(device)
                start = time.perf_counter()
                model(batch)
                synchronise(device)
                times[name].append(1e3 * (time.perf_counter() - start) / len(batch))
    return times
