"""Batches of images: shuffled and augmented for training, in order and unchanged for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.data.arrays import Split
from engine.data.augmentation.augment import augment_images, erased_pixels
from engine.data.loading.order import Order, Shuffled
from engine.data.loading.workers import Reader, Workers
from engine.data.reading import Files
from engine.data.settings import AugmentSettings
from engine.wording import counted
from models.settings import UserError


class TrainLoader:
    """Yields training batches. The order depends only on (seed, epoch), and each image only on (seed, epoch, draw).

    No state is carried from batch to batch, so an epoch can be resumed at any batch with the same result. The images
    left over after the last full batch are not used; they differ from epoch to epoch.

    Args:
        split: the training images.
        batch_size: images per batch.
        augment: how they are augmented.
        mean, std: statistics of each channel, for pixels in [0, 1].
        seed: the run's seed.
        resize: height and width to which batches are resized at the end, pixels; None: unchanged.
        workers: number of processes that read images and apply `augment.transforms`; None: one per processor that this
            process has, at most 8. The result does not depend on it. Images in memory need no processes unless there
            are `transforms`.
        order: which images an epoch draws, in which order; None: every image once, shuffled.
        device: where images are normalised, erased and resized, and where they are yielded; None: the CPU. They travel
            there as uint8, and before they are resized.
        share: the part of each batch that is yielded, where several processes train together.

    Raises:
        UserError: fewer images than one batch, a crop that can miss the image, quarter turns of images that are not
            square, or transforms whose output does not have the model's size.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        augment: AugmentSettings,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        resize: int | None = None,
        workers: int | None = None,
        order: Order | None = None,
        device: torch.device | None = None,
        share: slice = slice(None),
    ) -> None:
        _, height, width = split.shape
        if batch_size > len(split):
            there = f"there {'is' if len(split) == 1 else 'are'} only {counted(len(split), 'training image')}"
            raise UserError(
                f"train.batch_size = {batch_size}: {there}; set it to {len(split)} or less, or raise split.part"
            )
        if augment.crop >= min(height, width):
            raise UserError(f"augment.crop = {augment.crop}: must be less than the images' {min(height, width)} pixels")
        if augment.rotate90 and height != width:
            raise UserError(f"augment.rotate90 = True: images are {height} x {width}, not square; set it to false")
        self.split = split
        self.batch_size = batch_size
        self.augment = augment
        self.seed = seed
        self.order = Shuffled(len(split), seed) if order is None else order
        self.share = share
        self._normalise, self.resize, self.device = Normalise(mean, std, device), resize, device
        self._workers = None
        if augment.transforms is not None or isinstance(split, Files):
            self._workers = Workers(Reader(split, augment.transforms, seed), workers)

    def __len__(self) -> int:
        """Returns the number of batches per epoch."""
        return len(self.split) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images, float32 (B, C, H, W), and labels, (B, ...), of an epoch (from 0), from batch `start` on.

        The labels stay on the CPU.
        """
        draws = self.order(epoch)
        size, share = self.batch_size, self.share
        chosen = [draws[batch * size : (batch + 1) * size][share] for batch in range(start, len(self))]
        indices = [batch % len(self.split) for batch in chosen]
        pixels = self._workers.batches(epoch, chosen) if self._workers else map(self.split.read, indices)
        for batch, index, images in zip(chosen, indices, pixels, strict=True):
            yield self._images(images, batch, epoch), self.split.labels.index_select(0, index)

    def close(self) -> None:
        """Stops the worker processes, if there are any."""
        if self._workers:
            self._workers.close()

    def _images(self, pixels: Tensor, draws: Tensor, epoch: int) -> Tensor:
        images = augment_images(pixels.numpy(), draws.numpy(), self.augment, self.seed, epoch)
        normalised = self._normalise(torch.from_numpy(images).to(self.device, non_blocking=True))
        if self.augment.erase > 0:
            erased = erased_pixels(images.shape[2:], draws.numpy(), self.augment.erase, self.seed, epoch)
            if erased is not None:
                normalised.masked_fill_(torch.from_numpy(erased)[:, None].to(self.device), 0.0)  # the mean
        return resized(normalised, self.resize)


def eval_batches(
    split: Split,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    resize: int | None = None,
    device: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields all images, float32 (B, C, H, W), and labels, (B, ...), in order; the last batch may be smaller.

    Images are normalised and resized on the device, and labels stay on the CPU, as by `TrainLoader`.
    """
    normalise = Normalise(mean, std, device)
    for start in range(0, len(split), batch_size):
        part = torch.arange(start, min(start + batch_size, len(split)))
        yield resized(normalise(split.read(part).to(device, non_blocking=True)), resize), split.labels[part]


def resized(images: Tensor, size: int | None) -> Tensor:
    """Resizes images (B, C, H, W) to size x size pixels, bicubic and antialiased; None: unchanged."""
    if size is None or images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)


class Normalise:
    """Normalises images by the mean and standard deviation of each channel, given for pixels in [0, 1].

    uint8 (B, C, H, W) -> float32 (B, C, H, W), both on `device`; None: the CPU.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | None = None) -> None:
        mean, std = (torch.tensor(list(values), dtype=torch.float64)[:, None, None] for values in (mean, std))
        self.scale = (1 / (255 * std)).float().to(device)
        self.shift = (-mean / std).float().to(device)

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mul_(self.scale).add_(self.shift)
