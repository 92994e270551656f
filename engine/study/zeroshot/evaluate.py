"""Evaluates the rows of a comparison: the same model and images with every way of merging."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.cost.images import ImageCounter
from engine.cost.macs import measure_or_say
from engine.machine import pick_autocast, pick_device, to_device
from engine.measure.evaluate import eval_mode
from engine.study.zeroshot.each import Comparison, evaluate_ways, pretrained
from engine.study.zeroshot.images import LabelledImages, batches, labelled_images
from engine.study.zeroshot.rows import ZeroshotRow, spread_of
from engine.study.zeroshot.settings import ZeroshotSettings
from engine.study.zeroshot.ways import Way


def evaluate_rows(
    settings: ZeroshotSettings, folder: Path, report: Callable[[str], None] = print, *, again: bool = False
) -> tuple[LabelledImages, list[ZeroshotRow]]:
    """Evaluates every row that has not been evaluated yet.

    Args:
        settings: the comparison.
        folder: where rows are kept; it is created.
        report: called with a line for each row.
        again: whether to evaluate rows once more that another version of the merging code evaluated.

    Returns:
        The images and the rows, the unmerged one first.

    Raises:
        UserError: as `evaluate_ways`, `pretrained` and `labelled_images`.
    """
    device = pick_device(settings.device)
    model, weights = pretrained(settings, device)
    images = labelled_images(settings)

    def evaluate(model: nn.Module, way: Way) -> dict[str, Any]:
        cost, shown = measure_or_say(model), images if way.size is None else replace(images, resize=way.size)
        autocast = pick_autocast(settings.precision, device)
        with ImageCounter(model) as counter:
            predicted = predictions(model, shown, settings.batch_size, device, autocast)
        costs = counter.costs()
        gmacs = cost.gmacs if costs is None else costs.mean
        return {
            "gmacs": gmacs,
            "gmacs_spread": spread_of(costs),
            "params": cost.params,
            "predicted": predicted.tolist(),
        }

    def says(row: ZeroshotRow) -> str:
        return f"{100 * (row.predictions == images.targets.numpy()).mean():.2f} %"

    content = images.fingerprint, images.mean, images.std
    comparison = Comparison(settings, ZeroshotRow, content, evaluate, says)
    return images, evaluate_ways(comparison, model, weights, folder, report, again=again)


def predictions(
    model: nn.Module, images: LabelledImages, batch_size: int, device: torch.device, autocast: torch.autocast
) -> Tensor:
    """Returns the predicted class of every image, int64 (N,), on the CPU."""
    found = []
    with eval_mode(model):
        for batch, _ in batches(images, batch_size, device):
            with autocast:
                logits = model(to_device(batch, device))
            found.append(logits.float().argmax(dim=-1).cpu())
    return torch.cat(found)
