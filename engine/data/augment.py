"""Augmentation of a batch of images, each by draws of its own, keyed by (seed, epoch, index).

What happens to an image depends on its key alone: not on the batch that it is in, nor on what was drawn before.
"""

from __future__ import annotations

import numpy as np

from engine.data.keyed import AUGMENT, uniform
from engine.data.settings import AugmentSettings

ERASE_AREA = (0.02, 0.33)  # share of the image
ERASE_ASPECT = (0.3, 3.3)  # height / width
ERASE_TRIES = 10

CROP_Y, CROP_X, FLIP, ERASE, RECTANGLE = range(5)  # the last part of the key; rectangles take four draws for each try


def augment_images(
    images: np.ndarray, index: np.ndarray, augment: AugmentSettings, seed: int, epoch: int
) -> np.ndarray:
    """Crops and flips a batch.

    Args:
        images: uint8 (B, C, H, W); not changed.
        index: of each image in its dataset, int64 (B,).
        augment: what is on.
        seed: of the run.
        epoch: from 0.

    Returns:
        uint8 (B, C, H, W).
    """
    key = (AUGMENT, seed, epoch, index)
    if augment.crop:
        images = random_crop(images, augment.crop, uniform(*key, CROP_Y), uniform(*key, CROP_X))
    if augment.flip:
        mirrored = uniform(*key, FLIP) < 0.5
        images = images if augment.crop else images.copy()
        images[mirrored] = images[mirrored][..., ::-1]
    return images


def random_crop(images: np.ndarray, pad: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Pads each side with black and cuts out the old size, at row offset u and column offset v of the room there is.

    Args:
        images: uint8 (B, C, H, W).
        pad: pixels on each side; there are 2 pad + 1 offsets in each direction.
        u, v: in [0, 1), (B,).
    """
    batch, channels, height, width = images.shape
    padded = np.zeros((batch, channels, height + 2 * pad, width + 2 * pad), images.dtype)
    padded[:, :, pad : pad + height, pad : pad + width] = images
    y, x = ((draw * (2 * pad + 1)).astype(np.int64) for draw in (u, v))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    return windows[np.arange(batch), :, y, x]


def erased_pixels(shape: tuple[int, int], index: np.ndarray, erase: float, seed: int, epoch: int) -> np.ndarray | None:
    """The pixels that random erasing (Zhong et al., 2020) takes from each image.

    A rectangle of 2 % to 33 % of the image, of an aspect ratio from 0.3 to 3.3 before rounding (uniform in its
    logarithm, so that tall and wide are alike), anywhere inside. The first of ten tries that fits is taken; where none
    does, which is rare above a few pixels, the image stays whole.

    Args:
        shape: height and width of the images.
        index: of each image in its dataset, int64 (B,).
        erase: probability.
        seed: of the run.
        epoch: from 0.

    Returns:
        bool (B, H, W), or None if no image of the batch loses any.
    """
    key = (AUGMENT, seed, epoch, index)
    chosen = uniform(*key, ERASE) < erase
    if not chosen.any():
        return None
    top, left, height, width = _rectangles(shape, (AUGMENT, seed, epoch, index[:, None]))
    rows, columns = np.arange(shape[0]), np.arange(shape[1])
    inside_rows = (rows >= top) & (rows < top + height) & chosen[:, None]  # (B, H)
    inside_columns = (columns >= left) & (columns < left + width)  # (B, W)
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def _rectangles(shape: tuple[int, int], key: tuple) -> tuple[np.ndarray, ...]:
    """Top, left, height and width of a rectangle for each image, (B, 1) each; height 0 where none of the tries fits."""
    tries = RECTANGLE + 4 * np.arange(ERASE_TRIES)
    pixels = shape[0] * shape[1]
    area = pixels * (ERASE_AREA[0] + uniform(*key, tries) * (ERASE_AREA[1] - ERASE_AREA[0]))  # (B, tries)
    low, high = np.log(ERASE_ASPECT)
    aspect = np.exp(low + uniform(*key, tries + 1) * (high - low))
    height, width = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    share = height * width / pixels
    fits = (height <= shape[0]) & (width <= shape[1]) & (share >= ERASE_AREA[0]) & (share <= ERASE_AREA[1])
    height = height * fits
    top = np.floor(uniform(*key, tries + 2) * (shape[0] - height + 1))
    left = np.floor(uniform(*key, tries + 3) * (shape[1] - width + 1))
    first = fits.argmax(1)[:, None]
    return tuple(np.take_along_axis(values, first, 1) for values in (top, left, height, width))
