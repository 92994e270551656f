"""Fits the budgets of a comparison's rows to a few images, and writes the rows that meet them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from statistics import stdev

import torch
from torch import Tensor

from engine.machine import pick_device
from engine.study.zeroshot.each import at_size, pretrained
from engine.study.zeroshot.images import LabelledImages, batches, labelled_images
from engine.study.zeroshot.settings import ZeroshotSettings
from engine.study.zeroshot.ways import SEPARATOR, Way
from models.merging.fitting import fit_schedule, fit_threshold
from models.merging.settings import MergeSettings
from models.settings import UserError

Fit = Callable[[torch.nn.Module, Tensor, MergeSettings, int], tuple[MergeSettings, str]]


def schedule(
    model: torch.nn.Module, images: Tensor, merge: MergeSettings, batch_size: int
) -> tuple[MergeSettings, str]:
    """Returns a row with a fitted number for every block in place of its budget, and what it was fitted by."""
    found = fit_schedule(model, images, batch_size=batch_size, **_given(merge))
    says = f"{found.gmacs:.4f} GMACs, divergence {found.distance:.4f} (spread evenly {found.spread_evenly:.4f})"
    return merge.with_r(found.r), f"{says}, {len(images)} images, {found.tries} schedules"


def threshold(
    model: torch.nn.Module, images: Tensor, merge: MergeSettings, batch_size: int
) -> tuple[MergeSettings, str]:
    """Returns a row with a fitted threshold in place of its budget, and what it was fitted by."""
    found = fit_threshold(model, images, batch_size=batch_size, **_given(merge))
    error = f" ± {stdev(found.gmacs) / len(found.gmacs) ** 0.5:.4f}" if len(found.gmacs) > 1 else ""
    return merge.with_threshold(found.threshold), f"{found.mean:.4f}{error} GMACs, mean of {len(images)} images"


FITS: dict[str, Fit] = {"schedule": schedule, "threshold": threshold}


def fit_rows(settings: ZeroshotSettings, kind: str, count: int, report: Callable[[str], None] = print) -> None:
    """Fits every row that has a budget of multiply-adds, and reports each as a line for `rows:` of a settings file.

    Args:
        settings: the comparison.
        kind: a key of FITS.
        count: how many images to fit to: evenly spaced ones of the dataset.
        report: called with each line.

    Raises:
        UserError: no row has such a budget, or one of them cannot be fitted; or as `pretrained`, `labelled_images`.
    """
    budgets = ("target_gmacs", "target_ratio")
    ways = {name: way for name, way in settings.merged_ways().items() if way.merge and way.merge.target in budgets}
    if not ways:
        raise UserError("budgets: none of multiply-adds, which --fit meets; give budgets=[{target_gmacs: 0.9}]")
    device = pick_device(settings.device)
    model, _ = pretrained(settings, device)
    images = labelled_images(settings)
    for name, way in ways.items():
        assert way.merge is not None
        own = model if way.size is None else at_size(settings, name, way.size, device)
        try:
            row, says = FITS[kind](own, _some(images, way, count, device), way.merge, settings.batch_size)
        except UserError as error:
            raise UserError(f"row {name!r}: {error}") from None
        line, comma, amount = name.partition(SEPARATOR)
        values = {**_given(row), **({} if way.size is None else {"img_size": way.size})}
        report(f"  {json.dumps(f'{line} fitted{comma}{amount}')}: {json.dumps(values)}  # {says}")


def _given(merge: MergeSettings) -> dict[str, object]:
    """The keys that a row gives, its method among them."""
    return {"method": merge.method, **merge.model_dump(mode="json", exclude_defaults=True)}


def _some(images: LabelledImages, way: Way, count: int, device: torch.device) -> Tensor:
    """Evenly spaced images of a comparison, normalised, (count, C, H, W), or all if there are fewer."""
    total = len(images.targets)
    wanted = set(((torch.arange(min(count, total)) + 0.5) * total / min(count, total)).long().tolist())
    parts, before = [], 0
    for split in images.splits:
        parts.append(
            split.take(
                torch.tensor([i - before for i in sorted(wanted) if 0 <= i - before < len(split)], dtype=torch.long)
            )
        )
        before += len(split)
    few = replace(images, splits=[part for part in parts if len(part)], resize=way.size or images.resize)
    return torch.cat([batch for batch, _ in batches(few, count, device)])
