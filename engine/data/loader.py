"""Batches from images in memory: shuffled and augmented for training, in order for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.data.arrays import Arrays
from engine.data.augment import augment_images, erased_pixels
from engine.data.keyed import ORDER, permutation
from engine.data.settings import AugmentSettings
from models.settings import UserError


class TrainLoader:
    """Training batches whose order is a function of (seed, epoch) and whose images are one of (seed, epoch, index).

    Nothing is carried from one batch to the next: an epoch can be entered anywhere, and gives what it would have given.
    The images that do not fill a last batch are left out; which ones differs from epoch to epoch.

    Raises:
        UserError: fewer images than one batch, a crop that can leave nothing of an image, or quarter turns of images
            that are not square.
    """

    def __init__(
        self,
        arrays: Arrays,
        batch_size: int,
        augment: AugmentSettings,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        resize: int | None = None,
    ) -> None:
        size = min(arrays.images.shape[2:])
        if batch_size > len(arrays):
            raise UserError(f"train.batch_size = {batch_size}: there are only {len(arrays)} training images; "
                            f"set it to {len(arrays)} or less, or raise split.part")
        if augment.crop >= size:
            raise UserError(f"augment.crop = {augment.crop}: must be less than the images' {size} pixels")
        if augment.rotate90 and arrays.images.shape[2] != arrays.images.shape[3]:
            raise UserError(f"augment.rotate90 = True: images are {arrays.images.shape[2]} x {arrays.images.shape[3]}, "
                            "not square; set it to false")
        self.arrays = arrays
        self.batch_size = batch_size
        self.augment = augment
        self.seed = seed
        self._normalise, self.resize = Normalise(mean, std), resize

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.arrays) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images, float32 (B, C, H, W), and their labels, of an epoch (from 0), from batch `start` on.

        Labels are int64 (B,), or float32 (B, K) where images have many.
        """
        order = torch.from_numpy(permutation(len(self.arrays), ORDER, self.seed, epoch))
        for batch in range(start, len(self)):
            index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield self._images(index, epoch), self.arrays.labels.index_select(0, index)

    def _images(self, index: Tensor, epoch: int) -> Tensor:
        images = self.arrays.images.index_select(0, index).numpy()
        images = augment_images(images, index.numpy(), self.augment, self.seed, epoch)
        normalised = self._normalise(torch.from_numpy(images))
        if self.augment.erase > 0:
            erased = erased_pixels(images.shape[2:], index.numpy(), self.augment.erase, self.seed, epoch)
            if erased is not None:
                normalised.masked_fill_(torch.from_numpy(erased)[:, None], 0.0)  # the mean
        return brought_to(normalised, self.resize)


def eval_batches(
    arrays: Arrays, batch_size: int, mean: Sequence[float], std: Sequence[float], resize: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images, float32 (B, C, H, W), and labels, once and in order; the last batch may be smaller.

    Labels are int64 (B,), or float32 (B, K) where images have many.
    """
    normalise = Normalise(mean, std)
    for start in range(0, len(arrays), batch_size):
        part = slice(start, start + batch_size)
        yield brought_to(normalise(arrays.images[part]), resize), arrays.labels[part]


def brought_to(images: Tensor, size: int | None) -> Tensor:
    """Images (B, C, H, W) at size x size pixels, bicubic and antialiased; None leaves them as they are."""
    if size is None or images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)


class Normalise:
    """uint8 (B, C, H, W) -> float32: pixels in [0, 1], less the mean, over the standard deviation of their channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        mean, std = (torch.tensor(list(values), dtype=torch.float64)[:, None, None] for values in (mean, std))
        self.scale = (1 / (255 * std)).float()
        self.shift = (-mean / std).float()

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mul_(self.scale).add_(self.shift)
