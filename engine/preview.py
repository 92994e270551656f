"""A picture of a training batch as the model will see it: transformed, mixed, brought to size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from engine.config import RunSettings
from engine.data import Data, build_data
from engine.data.loader import TrainLoader
from engine.data.mix import Mix
from engine.data.workers import deaths_in_words
from engine.experiment import with_statistics
from engine.finished import check_fits

COLUMNS = 8
NAMED = 0.02  # of a mixture, shares above this are written


def preview(settings: RunSettings, epoch: int, most: int) -> Figure:
    """The first images of an epoch's first batch, from 0, at most so many, each under its label.

    Raises:
        UserError: what training would say of data, augmentation or batch size.
    """
    data = build_data(settings.data, settings.split, settings.seed)
    check_fits(settings, data)
    data = with_statistics(data, settings)
    images, targets = first_batch(data, settings, epoch)
    titles = [described(target, data.classes) for target in targets[:most]]
    title = f"{settings.name}, epoch {epoch}: {settings.model.img_size} px"
    return drawn(as_pixels(images[:most], data), titles, title)


def first_batch(data: Data, settings: RunSettings, epoch: int) -> tuple[Tensor, Tensor]:
    """Normalised images (B, C, H, W), and their labels, (B,), or their targets, (B, classes), as a step has them."""
    t, augment = settings.train, settings.augment
    loader = TrainLoader(data.train, t.batch_size, augment, data.mean, data.std, settings.seed, data.resize, workers=0)
    with deaths_in_words():
        images, labels = next(loader.epoch(epoch))
    if any(augment.mixing()):
        mix = Mix(augment, len(data.classes), 0.0, data.multi_label)
        images, labels = mix(images, labels, epoch * (len(loader) // t.accumulate) * t.accumulate, settings.seed)
    return images, labels


def as_pixels(images: Tensor, data: Data) -> Tensor:
    """Normalised images back to uint8 (B, C, H, W)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return ((images * std + mean) * 255).round_().clamp_(0, 255).to(torch.uint8)


def described(target: Tensor, classes: Sequence[str]) -> str:
    """A label's name, a mixture's names and shares, or the names of many labels."""
    if target.ndim == 0:
        return classes[int(target)]
    shares = {classes[i]: float(target[i]) for i in target.argsort(descending=True).tolist() if target[i] > NAMED}
    if all(share == 1 for share in shares.values()):
        return "\n".join(shares) or "none"
    return "\n".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())


def drawn(pixels: Tensor, titles: Sequence[str], title: str) -> Figure:
    """Images, uint8 (B, C, H, W), under their titles; of other channels than one and three their mean."""
    columns = min(COLUMNS, len(pixels))
    rows = math.ceil(len(pixels) / columns)
    figure = Figure(figsize=(1.6 * columns, 1.95 * rows + 0.4), layout="constrained")  # inches
    figure.suptitle(title, fontsize=9, color="0.35", parse_math=False)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, name in zip(axes.flat, pixels, titles):
        array = image.permute(1, 2, 0).numpy() if len(image) == 3 else image.float().mean(0).numpy()
        axis.imshow(array, cmap="gray", vmin=0, vmax=255)
        short = "\n".join(line if len(line) <= 20 else line[:19] + "…" for line in name.splitlines()[:3])
        axis.set_title(short, fontsize=8, parse_math=False)
    return figure
