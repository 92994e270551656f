"""Images and labels: one split, a dataset as its source gives it, and the data that a run trains on."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.tasks import ONE_LABEL, TASKS, Task

CHUNK, VALUES = 1024, 2**24  # images, and values of theirs, converted to float64 at once: 128 MiB


def digest_of(image: np.ndarray) -> bytes:
    """Of an image's pixels, contiguous uint8 (C, H, W): equal for equal images, whatever file they are from."""
    return hashlib.blake2b(image, digest_size=16).digest()


class Split(ABC):
    """N images of one size and their labels, (N, ...), as the task of the data has them; see engine.tasks.

    `paths` names the files that the images are from, in their order; None where they have none.
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
        """The images at `index`, int64 (M,): uint8 (M, C, H, W)."""

    @abstractmethod
    def take(self, indices: Tensor) -> Split:
        """The images at `indices`, int64 (M,), in that order, as a split."""

    @abstractmethod
    def digests(self) -> Iterable[bytes]:
        """`digest_of` each image, in order."""

    @abstractmethod
    def pixels(self) -> Any:
        """What stands for all the images in a fingerprint: bytes, or what has them."""


@dataclass(frozen=True)
class Arrays(Split):
    """A split in memory: images are uint8 (N, C, H, W)."""

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
    """A dataset as its source gives it.

    Without `test`, and then without `val`, one is taken off `train`; without `mean` both statistics are computed.
    `task` is what the labels mean.
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
    """What a run trains on: three splits of equal image shape, and the statistics that normalise them.

    `val` is empty when split.val is 0, `test` when split.test is 0 and the dataset has none. `classes` are the names in
    the order of the labels. `mean` and `std` are per channel, of pixels in [0, 1]. `resize` is the size, in pixels,
    that batches are brought to; None leaves them as they are. `task` is what the labels mean.
    """

    train: Split
    val: Split
    test: Split
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    task: Task = ONE_LABEL

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image as a model sees it."""
        channels, height, width = self.train.shape
        return (channels, height, width) if self.resize is None else (channels, self.resize, self.resize)

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of all images and labels in their order and of the classes' names."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for split in (self.train, self.val, self.test):
            digest.update(str((len(split), *split.shape)).encode())
            digest.update(split.pixels())
            digest.update(split.labels.contiguous().numpy())
        return digest.hexdigest()


def channel_stats(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1], summed in float64.

    A channel of a single value gets the standard deviation 1/255, so that it normalises to zero, not to infinity.

    Args:
        split: of one image or more.
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
