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

CHUNK, VALUES = 1024, 2**24  # images, and values of theirs, converted to float64 at once: 128 MiB


def digest_of(image: np.ndarray) -> bytes:
    """Of an image's pixels, contiguous uint8 (C, H, W): equal for equal images, whatever file they are from."""
    return hashlib.blake2b(image, digest_size=16).digest()


class Split(ABC):
    """N images of one size and their labels: int64 (N,), or of many labels each, float32 (N, K) of 0 and 1.

    `paths` names the files that the images are from, in their order; None where they have none.
    """

    labels: Tensor
    paths: tuple[str, ...] | None

    def __post_init__(self) -> None:
        if self.multi_label:
            assert self.labels.dtype == torch.float32 and ((self.labels == 0) | (self.labels == 1)).all()
        else:
            assert self.labels.dtype == torch.int64 and self.labels.ndim == 1, (self.labels.dtype, self.labels.shape)
        assert self.paths is None or len(self.paths) == len(self.labels), (len(self.paths), len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multi_label(self) -> bool:
        """Whether any number of the K labels apply to an image, rather than exactly one."""
        return self.labels.ndim == 2

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
    """

    train: Split
    test: Split | None
    classes: list[str]
    val: Split | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def multi_label(self) -> bool:
        """Whether any number of labels apply to an image: labels are float32 (N, K) in every split."""
        return self.train.multi_label


@dataclass(frozen=True)
class Data:
    """What a run trains on: three splits of equal image shape, and the statistics that normalise them.

    `val` is empty when split.val is 0, `test` when split.test is 0 and the dataset has none. `classes` are the names in
    the order of the labels. `mean` and `std` are per channel, of pixels in [0, 1]. `resize` is the size, in pixels,
    that batches are brought to; None leaves them as they are.
    """

    train: Split
    val: Split
    test: Split
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image as a model sees it."""
        channels, height, width = self.train.shape
        return (channels, height, width) if self.resize is None else (channels, self.resize, self.resize)

    @property
    def multi_label(self) -> bool:
        """Whether any number of labels apply to an image: labels are float32 (N, K) in every split."""
        return self.train.multi_label

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
