"""A picture of a training batch as the model will see it: transformed, mixed, brought to size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from engine.data import Data, build_data
from engine.data.loader import TrainLoader
from engine.data.mix import Mix
from engine.data.workers import deaths_in_words
from engine.figures.gallery import MOST, gallery, shown
from engine.runs.compatibility import check_fits
from engine.runs.folds import of_fold
from engine.runs.weights import with_statistics
from engine.settings.schema import RunSettings

NAMED = 0.02  # of a mixture, shares above this are written
LINES = 3  # under a picture


def preview(settings: RunSettings, epoch: int, most: int) -> Figure:
    """The first images of an epoch's first batch, from 0, at most so many, each under its label. Of several folds it is
    the first fold's batch.

    Raises:
        UserError: what training would say of data, augmentation or batch size.
    """
    if settings.split.all_folds:
        settings = of_fold(settings, 0)
    data = build_data(settings.data, settings.split, settings.seed)
    check_fits(settings, data)
    data = with_statistics(data, settings)
    images, targets = first_batch(data, settings, epoch)
    titles = [described(target, data.classes) for target in targets[:most]]
    title = f"{settings.title}, epoch {epoch}: {settings.model.img_size} px"
    return gallery(as_pixels(images[:most], data), titles, min(MOST, len(titles)), title)


def first_batch(data: Data, settings: RunSettings, epoch: int) -> tuple[Tensor, Tensor]:
    """Normalised images (B, C, H, W), and their labels, (B,), or their targets, (B, classes), as a step has them."""
    t, augment = settings.train, settings.augment
    loader = TrainLoader(data.train, t.batch_size, augment, data.mean, data.std, settings.seed, data.resize, workers=0)
    with deaths_in_words():
        images, labels = next(loader.epoch(epoch))
    if any(augment.mixing()):
        mix = Mix(augment, len(data.classes), 0.0, data.task)
        images, labels = mix(images, labels, epoch * (len(loader) // t.accumulate) * t.accumulate, settings.seed)
    return images, labels


def as_pixels(images: Tensor, data: Data) -> Tensor:
    """Normalised images back to uint8 (B, C, H, W)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return ((images * std + mean) * 255).round_().clamp_(0, 255).to(torch.uint8)


def described(target: Tensor, classes: Sequence[str]) -> str:
    """A label's name, a mixture's names and shares, or the names of many labels."""
    if target.ndim == 0:
        return shown(classes[int(target)])
    ranked = target.argsort(descending=True).tolist()[:LINES]
    shares = {shown(classes[i]): float(target[i]) for i in ranked if target[i] > NAMED}
    if all(share == 1 for share in shares.values()):
        return "\n".join(shares) or "none"
    return "\n".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
