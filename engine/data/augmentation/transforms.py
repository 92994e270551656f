"""torchvision's v2 transforms as settings: a list in YAML, applied in order, with checked arguments.

Names and arguments are torchvision's. The random numbers of an image are a function of (seed, epoch, index): the
transforms use torch's global generator, which is seeded for each image and restored afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from engine.data.keyed import AUGMENT, hash64
from models.settings import Settings, UserError

Pixels = Annotated[int, Field(gt=0, le=16384)]
Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[Pixels | None, Field(None, description="pixels; null: data.size")]
Grey = Annotated[float, Field(ge=0, le=255)]


def _rising(values: list[float]) -> list[float]:
    if values[0] > values[1]:
        raise ValueError(f"{values}: the first must not be more than the second")
    return values


Pair = Field(min_length=2, max_length=2)
Shares = Annotated[list[Annotated[float, Field(gt=0, le=1)]], Pair, AfterValidator(_rising)]
Factors = Annotated[list[Annotated[float, Field(gt=0, le=1000)]], Pair, AfterValidator(_rising)]


class Resize(Settings):
    """Resizes the shorter side to `size`, or both sides to [height, width], antialiased."""

    name: Literal["Resize"]
    size: Pixels | Annotated[list[Pixels], Pair] | None = Field(
        None, description="pixels of the shorter side, or [height, width]; null: data.size"
    )


class CenterCrop(Settings):
    """Crops the square in the middle; smaller images are padded with black."""

    name: Literal["CenterCrop"]
    size: Size = None


class RandomCrop(Settings):
    """Crops a square at a random position; smaller images are padded."""

    name: Literal["RandomCrop"]
    size: Size = None
    padding: int = Field(0, ge=0, le=4096, description="pixels on each side")
    fill: Grey = Field(0, description="grey value of the padding")


class RandomResizedCrop(Settings):
    """Resizes a random part of the image to `size` (Szegedy et al., 2015), antialiased."""

    name: Literal["RandomResizedCrop"]
    size: Size = None
    scale: Shares = Field([0.08, 1.0], description="share of the image's area")
    ratio: Factors = Field([3 / 4, 4 / 3], description="width over height")


class RandomHorizontalFlip(Settings):
    """Mirrors left and right."""

    name: Literal["RandomHorizontalFlip"]
    p: Share = Field(0.5, description="probability")


class RandomVerticalFlip(Settings):
    """Mirrors top and bottom."""

    name: Literal["RandomVerticalFlip"]
    p: Share = Field(0.5, description="probability")


class RandAugment(Settings):
    """Applies a few operations, chosen at random from fourteen (Cubuk et al., 2020)."""

    name: Literal["RandAugment"]
    num_ops: int = Field(2, ge=1, le=14, description="number of operations per image")
    magnitude: int = Field(9, ge=0, le=30, description="of each operation, in 31 steps")
    fill: Grey = Field(0, description="grey value of areas outside the image")


class TrivialAugmentWide(Settings):
    """Applies one random operation of random magnitude (Müller and Hutter, 2021)."""

    name: Literal["TrivialAugmentWide"]
    fill: Grey = Field(0, description="grey value of areas outside the image")


class RandomRotation(Settings):
    """Rotates about the centre, bilinearly."""

    name: Literal["RandomRotation"]
    degrees: float = Field(ge=0, le=180, description="largest angle in either direction")
    fill: Grey = Field(0, description="grey value of areas outside the image")


class ColorJitter(Settings):
    """Changes brightness, contrast and saturation by factors from 1 - x to 1 + x, and hue by up to x of the circle."""

    name: Literal["ColorJitter"]
    brightness: float = Field(0, ge=0, le=1000)
    contrast: float = Field(0, ge=0, le=1000)
    saturation: float = Field(0, ge=0, le=1000)
    hue: float = Field(0, ge=0, le=0.5)


class RandomAffine(Settings):
    """Rotates, translates, scales and shears, bilinearly."""

    name: Literal["RandomAffine"]
    degrees: float = Field(0, ge=0, le=180, description="largest angle in either direction")
    translate: Annotated[list[Share], Pair] | None = Field(
        None, description="largest shifts, as shares of width and height"
    )
    scale: Factors | None = Field(None, description="smallest and largest factor")
    shear: float = Field(0, ge=0, lt=90, description="largest angle along x, degrees")
    fill: Grey = Field(0, description="grey value of areas outside the image")


class RandomErasing(Settings):
    """Fills a random rectangle with one grey value (Zhong et al., 2020)."""

    name: Literal["RandomErasing"]
    p: Share = Field(0.5, description="probability")
    scale: Shares = Field([0.02, 0.33], description="share of the image's area")
    ratio: Factors = Field([0.3, 3.3], description="width over height")
    value: Grey = Field(0, description="grey value of the rectangle")


class MixUp(Settings):
    """Mixup of a batch with itself (Zhang et al., 2018), after all other transforms; the same code as augment.mixup."""

    name: Literal["MixUp"]
    alpha: float = Field(1.0, gt=0, le=1000, description="of the Beta distribution")


class CutMix(Settings):
    """Cutmix of a batch with itself (Yun et al., 2019), after all other transforms; the same code as augment.cutmix."""

    name: Literal["CutMix"]
    alpha: float = Field(1.0, gt=0, le=1000, description="of the Beta distribution")


# (torchvision.transforms.v2, settings, data.size) -> the transform
Make = Callable[[Any, Any, int], Callable[[Tensor], Tensor]]
# name -> its settings, and a function that builds the transform; None: it mixes whole batches
TRANSFORMS: dict[str, tuple[type[Settings], Make | None]] = {
    "Resize": (Resize, lambda v2, s, size: v2.Resize(s.size or size, antialias=True)),
    "CenterCrop": (CenterCrop, lambda v2, s, size: v2.CenterCrop(s.size or size)),
    "RandomCrop": (
        RandomCrop,
        lambda v2, s, size: v2.RandomCrop(s.size or size, padding=s.padding, pad_if_needed=True, fill=s.fill),
    ),
    "RandomResizedCrop": (
        RandomResizedCrop,
        lambda v2, s, size: v2.RandomResizedCrop(s.size or size, s.scale, s.ratio, antialias=True),
    ),
    "RandomHorizontalFlip": (RandomHorizontalFlip, lambda v2, s, size: v2.RandomHorizontalFlip(s.p)),
    "RandomVerticalFlip": (RandomVerticalFlip, lambda v2, s, size: v2.RandomVerticalFlip(s.p)),
    "RandAugment": (
        RandAugment,
        lambda v2, s, size: v2.RandAugment(s.num_ops, s.magnitude, 31, v2.InterpolationMode.BILINEAR, s.fill),
    ),
    "TrivialAugmentWide": (
        TrivialAugmentWide,
        lambda v2, s, size: v2.TrivialAugmentWide(31, v2.InterpolationMode.BILINEAR, s.fill),
    ),
    "RandomRotation": (
        RandomRotation,
        lambda v2, s, size: v2.RandomRotation(s.degrees, v2.InterpolationMode.BILINEAR, fill=s.fill),
    ),
    "ColorJitter": (ColorJitter, lambda v2, s, size: v2.ColorJitter(s.brightness, s.contrast, s.saturation, s.hue)),
    "RandomAffine": (
        RandomAffine,
        lambda v2, s, size: v2.RandomAffine(
            s.degrees, s.translate, s.scale, s.shear or None, v2.InterpolationMode.BILINEAR, s.fill
        ),
    ),
    "RandomErasing": (RandomErasing, lambda v2, s, size: v2.RandomErasing(s.p, s.scale, s.ratio, s.value)),
    "MixUp": (MixUp, None),
    "CutMix": (CutMix, None),
}
COLOURED = ("RandAugment", "TrivialAugmentWide", "ColorJitter")  # work only on grey or RGB images in torchvision


def compose(transforms: Sequence[Settings], shape: tuple[int, int, int], *, whole: bool) -> Callable[[Tensor], Tensor]:
    """Composes the transforms of single images: uint8 (C, height, width) -> uint8 of `shape`.

    Args:
        transforms: settings of TRANSFORMS; those that mix batches are skipped.
        shape: (C, H, W) of the model's input; H = W.
        whole: whether images come at their original sizes instead of `shape`.

    Raises:
        UserError: the output does not have that shape, or a colour transform is used on images of 2 or more than 3
            channels.
    """
    from torchvision.transforms import v2  # slow to import, and not needed to check settings

    coloured = [s.name for s in transforms if s.name in COLOURED]
    if coloured and shape[0] not in (1, 3):
        raise UserError(
            f"augment.transforms: {coloured[0]} needs images with 1 or 3 channels, these have {shape[0]}; remove it"
        )
    chain = [make(v2, s, shape[1]) for s in transforms if (make := TRANSFORMS[s.name][1]) is not None]
    composed = v2.Compose(chain) if chain else lambda image: image
    size = shape[1]
    tried = ((size + 40, 2 * size), (2 * size, size), (max(size // 2, 1), size)) if whole else ((size, size),)
    for height, width in tried:
        result = tuple(transformed(torch.zeros(shape[0], height, width, dtype=torch.uint8), composed, 0).shape)
        if result != shape:
            raise UserError(
                f"augment.transforms: they turn an image of {height} x {width} pixels into one of "
                f"{' x '.join(map(str, result[1:]))}, the model takes {size} x {size}; "
                "end with RandomResizedCrop, RandomCrop or CenterCrop"
            )
    return composed


def keys(seed: int, epoch: int, index: np.ndarray) -> list[int]:
    """Returns the seed of each image's random numbers."""
    return (hash64(AUGMENT, seed, epoch, index) >> np.uint64(1)).tolist()


def transformed(image: Tensor, composed: Callable[[Tensor], Tensor], key: int) -> Tensor:
    """Transforms one image, uint8 (C, h, w) -> uint8 (C, H, W), with random numbers seeded by `key`."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(key)  # torch.manual_seed takes 0.4 ms: it formats a traceback for GPUs
    try:
        return composed(image)
    finally:
        torch.set_rng_state(state)
