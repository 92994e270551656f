"""Images in memory: one split, a dataset as its source gives it, and the data that a run trains on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK, VALUES = 1024, 2**24  # images, and values of theirs, converted to float64 at once: 128 MiB


@dataclass(frozen=True)
class Arrays:
    """One split: images, uint8 (N, C, H, W), and labels: int64 (N,), or of many labels each, float32 (N, K) of 0, 1."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8 and self.images.ndim == 4, (self.images.dtype, self.images.shape)
        assert self.labels.shape[:1] == self.images.shape[:1], (self.labels.shape, self.images.shape)
        if self.multi_label:
            assert self.labels.dtype == torch.float32 and ((self.labels == 0) | (self.labels == 1)).all()
        else:
            assert self.labels.dtype == torch.int64 and self.labels.ndim == 1, (self.labels.dtype, self.labels.shape)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multi_label(self) -> bool:
        """Whether any number of the K labels apply to an image, rather than exactly one."""
        return self.labels.ndim == 2

    def take(self, indices: Tensor) -> Arrays:
        """The images at `indices`, int64 (M,), copied in that order."""
        return Arrays(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class RawData:
    """A dataset as its source gives it.

    Without `test`, and then without `val`, one is taken off `train`; without `mean` both statistics are computed.
    """

    train: Arrays
    test: Arrays | None
    classes: list[str]
    val: Arrays | None = None
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

    train: Arrays
    val: Arrays
    test: Arrays
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image as a model sees it."""
        channels, height, width = self.test.images.shape[1:]
        return (channels, height, width) if self.resize is None else (channels, self.resize, self.resize)

    @property
    def multi_label(self) -> bool:
        """Whether any number of labels apply to an image: labels are float32 (N, K) in every split."""
        return self.train.multi_label

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of all images and labels in their order and of the classes' names."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for arrays in (self.train, self.val, self.test):
            digest.update(str(tuple(arrays.images.shape)).encode())
            digest.update(arrays.images.contiguous().numpy())
            digest.update(arrays.labels.contiguous().numpy())
        return digest.hexdigest()


def channel_stats(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1], summed in float64.

    A channel of a single value gets the standard deviation 1/255, so that it normalises to zero, not to infinity.

    Args:
        images: uint8 (N, C, H, W), N > 0.
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in images.split(min(CHUNK, max(1, VALUES // images[0].numel()))):
        values = chunk.double().transpose(0, 1).flatten(1)  # (B, C, H, W) -> (C, B H W)
        total += values.sum(1)
        squares += values.square().sum(1)
    count = images.numel() // images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=1)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
