"""Containers for images with a class for each pixel."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = 255  # in a mask: the pixel has no class, and counts nowhere
MOST_CLASSES = IGNORED  # values 0 to 254


@dataclass(frozen=True)
class Masked:
    """N images of one size in memory, and the class of each pixel.

    Attributes:
        images: uint8 (N, C, H, W).
        masks: uint8 (N, H, W): numbers of classes, or IGNORED.
        names: of the images.
    """

    images: Tensor
    masks: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.images.dtype == self.masks.dtype == torch.uint8, (self.images.dtype, self.masks.dtype)
        assert self.images.shape[0] == self.masks.shape[0] == len(self.names), (self.images.shape, self.masks.shape)
        assert self.images.shape[2:] == self.masks.shape[1:], (self.images.shape, self.masks.shape)

    def __len__(self) -> int:
        return len(self.masks)


@dataclass(frozen=True)
class MaskedImages:
    """What a segmentation is fitted to and measured on.

    Attributes:
        train: images and masks to fit.
        test: others, to measure on.
        classes: names, in the order of the numbers in the masks.
    """

    train: Masked
    test: Masked
    classes: list[str]

    def fingerprint(self) -> str:
        """Returns the SHA-256, in hexadecimal, of all pixels, masks and names of classes, in order."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for part in (self.train, self.test):
            digest.update(str(tuple(part.images.shape)).encode())
            digest.update(part.images.contiguous().numpy())
            digest.update(part.masks.contiguous().numpy())
        return digest.hexdigest()
