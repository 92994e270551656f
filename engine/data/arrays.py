"""Containers for images and labels: a split, a dataset as its source provides it, and the data of a run."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.data.names import nfc
from engine.tasks import ONE_LABEL, TASKS, Task

CHUNK, VALUES = 1024, 2**24  # largest number of images, and of their values, converted to float64 at once: 128 MiB


def digest_of(image: np.ndarray) -> bytes:
    """Returns a digest of an image's pixels, contiguous uint8 (C, H, W); copies of an image have the same digest."""
    return hashlib.blake2b(image, digest_size=16).digest()


class Split(ABC):
    """N images of one size and their labels.

    Attributes:
        labels: (N, ...), with the type and shape that the task requires; see engine.tasks.
        paths: the files of the images, in order, or None.
    """

    labels: Tensor
    paths: tuple[str, ...] | None

    def __post_init__(self) -> None:
        assert any(task.accepts(self.labels) for task in TASKS.values()), (self.labels.dtype, self.labels.shape)
        assert self.paths is None or len(self.paths) == len(self.labels), (len(self.paths), len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""

    @abstractmethod
    def read(self, index: Tensor) -> Tensor:
        """Returns the images at `index`, int64 (M,), as uint8 (M, C, H, W)."""

    @abstractmethod
    def take(self, indices: Tensor) -> Split:
        """Returns a split of the images at `indices`, int64 (M,), in that order."""

    @abstractmethod
    def digests(self) -> Iterable[bytes]:
        """Returns the digest of each image, in order; see `digest_of`."""

    @abstractmethod
    def pixels(self) -> Any:
        """Returns a bytes-like object that identifies the pixels of all images, for fingerprints."""


@dataclass(frozen=True)
class Arrays(Split):
    """A split in memory, with images uint8 (N, C, H, W)."""

    images: Tensor
    labels: Tensor
    paths: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.images.dtype == torch.uint8 and self.images.ndim == 4, (self.images.dtype, self.images.shape)
        assert self.labels.shape[:1] == self.images.shape[:1], (self.labels.shape, self.images.shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    def read(self, index: Tensor) -> Tensor:
        return self.images.index_select(0, index)

    def take(self, indices: Tensor) -> Arrays:
        paths = None if self.paths is None else tuple(self.paths[i] for i in indices.tolist())
        return Arrays(self.images[indices], self.labels[indices], paths)

    def digests(self) -> Iterable[bytes]:
        return (digest_of(image) for image in self.images.contiguous().numpy())

    def pixels(self) -> np.ndarray:
        return self.images.contiguous().numpy()


@dataclass(frozen=True)
class RawData:
    """A dataset as its source provides it.

    Attributes:
        train: training images.
        test: test images; None: they are held out of `train`.
        classes: names, in the order of the labels.
        val: validation images; None: they are held out of `train`.
        mean, std: published statistics of each channel, for pixels in [0, 1]; None: they are computed.
        task: what the labels mean.
    """

    train: Split
    test: Split | None
    classes: list[str]
    val: Split | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    task: Task = ONE_LABEL

    def __post_init__(self) -> None:
        splits = [split for split in (self.train, self.val, self.test) if split is not None]
        assert all(self.task.accepts(split.labels) for split in splits), f"labels are not those of {self.task}"


@dataclass(frozen=True)
class Data:
    """The data of a run: three splits of equal image shape, and the statistics that normalise them.

    Attributes:
        train: training images.
        val: validation images, possibly none.
        test: test images, possibly none.
        classes: names, in the order of the labels.
        mean, std: statistics of each channel, for pixels in [0, 1].
        resize: height and width to which batches are resized, pixels; None: unchanged.
        task: what the labels mean.
        absent: why there are no "val" or "test" images, such as "split.test = 0", where there are none.
    """

    train: Split
    val: Split
    test: Split
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    task: Task = ONE_LABEL
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image as the model gets it."""
        channels, height, width = self.train.shape
        return (channels, height, width) if self.resize is None else (channels, self.resize, self.resize)

    @property
    def train_class_images(self) -> list[int]:
        """The number of training images of each class."""
        return self.task.counts(self.train.labels, len(self.classes)).tolist()

    def fingerprint(self) -> str:
        """Returns the SHA-256, in hexadecimal, of all images and labels in order and of the names of the classes.

        Names count in Unicode's composed form: an archive that was unpacked on another system is the same data.
        """
        digest = hashlib.sha256("\0".join(map(nfc, self.classes)).encode())
        for split in (self.train, self.val, self.test):
            digest.update(str((len(split), *split.shape)).encode())
            digest.update(split.pixels())
            digest.update(split.labels.contiguous().numpy())
        return digest.hexdigest()


def channel_stats(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes the mean and standard deviation of each channel in float64, for pixels in [0, 1].

    A constant channel gets the standard deviation 1/255, so that it is normalised to zero.

    Args:
        split: a split with at least one image.
    """
    channels, height, width = split.shape
    total = torch.zeros(channels, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in torch.arange(len(split)).split(min(CHUNK, max(1, VALUES // (channels * height * width)))):
        values = split.read(chunk).double().transpose(0, 1).flatten(1)  # (B, C, H, W) -> (C, B H W)
        total += values.sum(1)
        squares += values.square().sum(1)
    count = len(split) * height * width
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=1)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
