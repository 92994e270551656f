"""Augmentation of a batch of images, each by draws of its own, keyed by (seed, epoch, index).

What happens to an image depends on its key alone: not on the batch that it is in, nor on what was drawn before.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import grid_sample

from engine.data.keyed import AUGMENT, uniform
from engine.data.settings import AugmentSettings

ERASE_AREA = (0.02, 0.33)  # share of the image
ERASE_ASPECT = (0.3, 3.3)  # height / width
SCALE_ASPECT = (3 / 4, 4 / 3)  # height / width
TRIES = 10  # of drawing a rectangle that fits

# The last part of the key. Rectangles take four draws for each try: erasing has 4 to 43, scaling 68 to 107.
CROP_Y, CROP_X, FLIP, ERASE, RECTANGLE = range(5)
VFLIP, ROTATE90, BRIGHTNESS, CONTRAST, BOX = range(64, 69)


def augment_images(
    images: np.ndarray, index: np.ndarray, augment: AugmentSettings, seed: int, epoch: int
) -> np.ndarray:
    """Crops, scales, flips, turns and jitters a batch, in this order.

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
    if augment.scale:
        images = random_scale(images, augment.scale, (AUGMENT, seed, epoch, index[:, None]))
    if not (augment.crop or augment.scale) and (augment.flip or augment.vflip or augment.rotate90):
        images = images.copy()  # the following write
    if augment.flip:
        mirrored = uniform(*key, FLIP) < 0.5
        images[mirrored] = images[mirrored][..., ::-1]
    if augment.vflip:
        mirrored = uniform(*key, VFLIP) < 0.5
        images[mirrored] = images[mirrored][..., ::-1, :]
    if augment.rotate90:
        turns = np.floor(4 * uniform(*key, ROTATE90))
        for quarters in (1, 2, 3):
            turned = turns == quarters
            images[turned] = np.rot90(images[turned], quarters, axes=(2, 3))
    if augment.jitter:
        images = jitter(images, augment.jitter, uniform(*key, BRIGHTNESS), uniform(*key, CONTRAST))
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


def random_scale(images: np.ndarray, least: float, key: tuple) -> np.ndarray:
    """A random part of each image, brought to the size of the whole (Szegedy et al., 2015), bilinearly.

    The part has from `least` to all of the image's area, uniformly, and an aspect ratio from 3/4 to 4/3, uniform in its
    logarithm; it lies anywhere inside, at fractions of a pixel too. The first of ten tries that fits is taken; where
    none does, which happens near the whole area, the image stays as it is. Parts are never larger than the image, so
    there is nothing to antialias.

    Args:
        images: uint8 (B, C, H, W); not changed.
        least: share of the area, in (0, 1).
        key: of the draws, (B, 1) each or numbers.
    """
    height, width = images.shape[2:]
    tries = BOX + 4 * np.arange(TRIES)
    area = height * width * (least + uniform(*key, tries) * (1 - least))  # (B, tries)
    aspect = _log_uniform(SCALE_ASPECT, uniform(*key, tries + 1))
    rows, columns = np.sqrt(area * aspect), np.sqrt(area / aspect)
    fits = (rows <= height) & (columns <= width)
    rows, columns = np.where(fits, rows, height), np.where(fits, columns, width)
    top, left = uniform(*key, tries + 2) * (height - rows), uniform(*key, tries + 3) * (width - columns)
    top, left, rows, columns = _first_fit(fits, top, left, rows, columns)  # (B, 1) each, pixels
    # Pixel centres in grid_sample's coordinates, where an image goes from -1 to 1. Computed element by element in
    # float64: affine_grid multiplies matrices, whose last bits may depend on the batch.
    y = (2 * top + rows * (np.arange(height) + 0.5) / height * 2) / height - 1  # (B, H)
    x = (2 * left + columns * (np.arange(width) + 0.5) / width * 2) / width - 1  # (B, W)
    grid = torch.empty(len(images), height, width, 2)
    grid[..., 0], grid[..., 1] = torch.from_numpy(x)[:, None, :], torch.from_numpy(y)[:, :, None]
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float()
    scaled = grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return scaled.round_().clamp_(0, 255).to(torch.uint8).numpy()


def jitter(images: np.ndarray, most: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Multiplies each image by a brightness, and its distance from its own mean by a contrast; cut off at 0 and 255.

    Args:
        images: uint8 (B, C, H, W); not changed.
        most: both factors lie in [1 - most, 1 + most].
        u, v: where in this range brightness and contrast lie, in [0, 1), (B,).
    """
    brightness, contrast = (1 - most + 2 * most * draw for draw in (u, v))
    mean = images.sum((1, 2, 3), dtype=np.int64) / images[0].size
    # x -> brightness * (mean + contrast * (x - mean)), for each of the 256 values that a pixel can have
    values = (brightness * contrast)[:, None] * np.arange(256) + (brightness * (1 - contrast) * mean)[:, None]
    table = np.clip(np.rint(values), 0, 255).astype(np.uint8)  # (B, 256)
    return np.stack([one[image] for one, image in zip(table, images)])


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


def _log_uniform(limits: tuple[float, float], u: np.ndarray) -> np.ndarray:
    low, high = np.log(limits)
    return np.exp(low + u * (high - low))


def _first_fit(fits: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of each image's tries, (B, tries), the first that fits, or the first of all; (B, 1) each."""
    first = fits.argmax(1)[:, None]
    return tuple(np.take_along_axis(value, first, 1) for value in values)


def _rectangles(shape: tuple[int, int], key: tuple) -> tuple[np.ndarray, ...]:
    """Top, left, height and width of a rectangle for each image, (B, 1) each; height 0 where none of the tries fits."""
    tries = RECTANGLE + 4 * np.arange(TRIES)
    pixels = shape[0] * shape[1]
    area = pixels * (ERASE_AREA[0] + uniform(*key, tries) * (ERASE_AREA[1] - ERASE_AREA[0]))  # (B, tries)
    aspect = _log_uniform(ERASE_ASPECT, uniform(*key, tries + 1))
    height, width = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    share = height * width / pixels
    fits = (height <= shape[0]) & (width <= shape[1]) & (share >= ERASE_AREA[0]) & (share <= ERASE_AREA[1])
    height = height * fits
    top = np.floor(uniform(*key, tries + 2) * (shape[0] - height + 1))
    left = np.floor(uniform(*key, tries + 3) * (shape[1] - width + 1))
    return _first_fit(fits, top, left, height, width)
