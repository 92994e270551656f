"""Evaluates the rows of a comparison: a probe of its own for every way of merging, on the same images and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.cost.images import ImageCounter
from engine.cost.macs import measure_or_say
from engine.machine import pick_autocast, pick_device
from engine.measure.evaluate import eval_mode
from engine.measure.segmentation import mean_iou, pixel_counts
from engine.study.segment.fitting import fitted
from engine.study.segment.maps import Maps
from engine.study.segment.probe import Segmenter
from engine.study.segment.rows import SHOWN, SegmentRow, encoded
from engine.study.segment.settings import SegmentSettings
from engine.study.segment.subject import Subject, batches, load_subject
from engine.study.zeroshot.each import Comparison, evaluate_ways, pretrained
from engine.study.zeroshot.rows import spread_of
from engine.study.zeroshot.ways import Way
from models.settings import UserError


def evaluate_rows(
    settings: SegmentSettings, folder: Path, report: Callable[[str], None] = print, *, again: bool = False
) -> tuple[Subject, list[SegmentRow]]:
    """Evaluates every row that has not been evaluated yet.

    Args:
        settings: the comparison.
        folder: where rows are kept; it is created.
        report: called with a line for each row.
        again: whether to evaluate rows once more that another version of the merging code evaluated.

    Returns:
        The images and masks, and the rows, the unmerged one first.

    Raises:
        UserError: as `evaluate_ways`, `pretrained` and `load_subject`; the model gives no maps of the blocks; or the
            grid is finer than the image.
    """
    device = pick_device(settings.device)
    model, weights = pretrained(settings, device)
    probe, most = settings.probe, settings.model.img_size
    Maps(model, probe.blocks, probe.grid)
    if probe.grid is not None and probe.grid > most:
        raise UserError(f"probe.grid = {probe.grid}: an image has {most} x {most} pixels; give at most {most}")
    subject = load_subject(settings)

    def evaluate(model: nn.Module, way: Way) -> dict[str, Any]:
        segmenter, counts, shown = fitted(settings, subject, model, way), [], []
        cost = measure_or_say(segmenter)  # of an empty image, which is not meant where the image decides
        with ImageCounter(segmenter, part=(segmenter.maps.model, segmenter.maps.depth)) as counter:
            for predicted, place in _predictions(settings, subject, segmenter, way):
                masks = subject.images.test.masks[place].to(device)
                counts.append(pixel_counts(predicted, masks, len(subject.images.classes)).cpu())
                shown.append(predicted[: max(0, SHOWN - place.start)].cpu())
        costs = counter.costs()
        return {
            "gmacs": cost.gmacs if costs is None else costs.mean,
            "gmacs_spread": spread_of(costs),
            "params": cost.params,
            "pixels": torch.cat(counts).tolist(),
            "shown": encoded(torch.cat(shown)),
        }

    def says(row: SegmentRow) -> str:
        return f"mIoU {100 * mean_iou(row.counts.sum(0)):.2f} %"

    content = subject.fingerprint, subject.mean, subject.std, probe.deciding()
    comparison = Comparison(settings, SegmentRow, content, evaluate, says)
    return subject, evaluate_ways(comparison, model, weights, folder, report, again=again)


def _predictions(
    settings: SegmentSettings, subject: Subject, segmenter: Segmenter, way: Way
) -> Iterator[tuple[Tensor, slice]]:
    """Yields the predicted classes of the test images' pixels, int64 (B, H, W), on the device, and their positions."""
    autocast = pick_autocast(settings.precision, pick_device(settings.device))
    for images, place in batches(settings, subject, subject.images.test, way.size):
        with eval_mode(segmenter), autocast:
            predicted = segmenter(images).argmax(1)
        yield predicted, place
