"""Draws a training batch as the model will see it: augmented, mixed and resized (tools/data.py preview)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from engine.data import Data, build_data
from engine.data.augmentation.mix import Mix
from engine.data.loading.loader import TrainLoader
from engine.data.loading.order import build_order
from engine.data.loading.workers import killed_workers_as_errors
from engine.figures.gallery import MOST, gallery, shown
from engine.runs.checkpoints.weights import with_statistics
from engine.runs.compatibility import check_fits
from engine.runs.folds import of_fold
from engine.settings.schema import RunSettings

NAMED = 0.02  # smallest share of a mixture that is named
LINES = 3  # largest number of lines above a picture


def preview(settings: RunSettings, epoch: int, most: int) -> Figure:
    """Draws the first images of an epoch's first batch, each with its label; with folds, of the first fold.

    Args:
        settings: the run's settings.
        epoch: the epoch, from 0.
        most: largest number of images.

    Raises:
        UserError: training could not start with these data, augmentation or batch size.
    """
    if settings.split.all_folds:
        settings = of_fold(settings, 0)
    data = build_data(settings.data, settings.split, settings.seed)
    settings = settings.with_classes(len(data.classes))
    check_fits(settings, data)
    data = with_statistics(data, settings)
    images, targets = first_batch(data, settings, epoch)
    titles = [described(target, data.classes) for target in targets[:most]]
    title = f"{settings.title}, epoch {epoch}: {settings.model.img_size} px"
    return gallery(as_pixels(images[:most], data), titles, min(MOST, len(titles)), title)


def first_batch(data: Data, settings: RunSettings, epoch: int) -> tuple[Tensor, Tensor]:
    """Returns the first batch: normalised images (B, C, H, W), and labels (B, ...) or soft targets (B, classes)."""
    t, augment = settings.train, settings.augment
    order = build_order(data.train.labels, settings.seed, t.sampling)
    statistics = (data.mean, data.std)
    loader = TrainLoader(data.train, t.batch_size, augment, *statistics, settings.seed, data.resize, 0, order)
    with killed_workers_as_errors():
        images, labels = next(loader.epoch(epoch))
    if any(augment.mixing()):
        mix = Mix(augment, len(data.classes), 0.0, data.task)
        images, labels = mix(images, labels, epoch * (len(loader) // t.accumulate) * t.accumulate, settings.seed)
    return images, labels


def as_pixels(images: Tensor, data: Data) -> Tensor:
    """Converts normalised images back to pixels, uint8 (B, C, H, W)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return ((images * std + mean) * 255).round_().clamp_(0, 255).to(torch.uint8)


def described(target: Tensor, classes: Sequence[str]) -> str:
    """Returns the name of a label, the names and shares of a mixture, or the names of several labels."""
    if target.ndim == 0:
        return shown(classes[int(target)])
    ranked = target.argsort(descending=True).tolist()[:LINES]
    shares = {shown(classes[i]): float(target[i]) for i in ranked if target[i] > NAMED}
    if all(share == 1 for share in shares.values()):
        return "\n".join(shares) or "none"
    return "\n".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
