"""Augments whole batches; each image has random numbers of its own, keyed by (seed, epoch, index).

The augmentation of an image therefore depends only on its key, not on its batch or on earlier random numbers.
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
TRIES = 10  # attempts to draw a rectangle that fits

# The last part of the key. A rectangle takes four numbers for each try: erasing has 4 to 43, scaling 68 to 107.
CROP_Y, CROP_X, FLIP, ERASE, RECTANGLE = range(5)
VFLIP, ROTATE90, BRIGHTNESS, CONTRAST, BOX = range(64, 69)


def augment_images(
    images: np.ndarray, index: np.ndarray, augment: AugmentSettings, seed: int, epoch: int
) -> np.ndarray:
    """Crops, scales, flips, rotates and jitters a batch, in this order.

    Args:
        images: uint8 (B, C, H, W); not changed.
        index: position of each image in its dataset, int64 (B,).
        augment: which of these to apply.
        seed: the run's seed.
        epoch: the epoch, from 0.

    Returns:
        uint8 (B, C, H, W).
    """
    key = (AUGMENT, seed, epoch, index)
    if augment.crop:
        images = random_crop(images, augment.crop, uniform(*key, CROP_Y), uniform(*key, CROP_X))
    if augment.scale:
        images = random_scale(images, augment.scale, (AUGMENT, seed, epoch, index[:, None]))
    if not (augment.crop or augment.scale) and (augment.flip or augment.vflip or augment.rotate90):
        images = images.copy()  # the next operations write into it
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
    """Pads each side with black and crops to the original size.

    Args:
        images: uint8 (B, C, H, W).
        pad: pixels on each side, which allows 2 pad + 1 offsets in each direction.
        u, v: vertical and horizontal offset of each crop, as fractions of their range, in [0, 1), (B,).
    """
    batch, channels, height, width = images.shape
    padded = np.zeros((batch, channels, height + 2 * pad, width + 2 * pad), images.dtype)
    padded[:, :, pad : pad + height, pad : pad + width] = images
    y, x = ((draw * (2 * pad + 1)).astype(np.int64) for draw in (u, v))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    return windows[np.arange(batch), :, y, x]


def random_scale(images: np.ndarray, least: float, key: tuple) -> np.ndarray:
    """Resizes a random part of each image to full size, bilinearly (Szegedy et al., 2015).

    The area of the part is uniform between `least` and 1 times the image's, its aspect ratio log-uniform between 3/4
    and 4/3, and its position uniform, at fractions of a pixel. The first of ten tries that fits is used; if none does,
    which happens near the full area, the image stays unchanged. Parts are never larger than the image, so there is
    nothing to antialias.

    Args:
        images: uint8 (B, C, H, W); not changed.
        least: smallest share of the area, in (0, 1).
        key: key of the random numbers; each part is (B, 1) or a number.
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
    # Pixel centres in grid_sample's coordinates, which go from -1 to 1. Computed element by element in float64, because
    # affine_grid multiplies matrices, and the last bits of a product may depend on the batch.
    y = (2 * top + rows * (np.arange(height) + 0.5) / height * 2) / height - 1  # (B, H)
    x = (2 * left + columns * (np.arange(width) + 0.5) / width * 2) / width - 1  # (B, W)
    grid = torch.empty(len(images), height, width, 2)
    grid[..., 0], grid[..., 1] = torch.from_numpy(x)[:, None, :], torch.from_numpy(y)[:, :, None]
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float()
    scaled = grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return scaled.round_().clamp_(0, 255).to(torch.uint8).numpy()


def jitter(images: np.ndarray, most: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Changes the brightness and contrast of each image, and clips to 0..255.

    Args:
        images: uint8 (B, C, H, W); not changed.
        most: both factors lie in [1 - most, 1 + most].
        u, v: brightness and contrast as fractions of that range, in [0, 1), (B,).
    """
    brightness, contrast = (1 - most + 2 * most * draw for draw in (u, v))
    mean = images.sum((1, 2, 3), dtype=np.int64) / images[0].size
    # x -> brightness * (mean + contrast * (x - mean)), for each of the 256 possible values of a pixel
    values = (brightness * contrast)[:, None] * np.arange(256) + (brightness * (1 - contrast) * mean)[:, None]
    table = np.clip(np.rint(values), 0, 255).astype(np.uint8)  # (B, 256)
    return np.stack([row[image] for row, image in zip(table, images)])


def erased_pixels(shape: tuple[int, int], index: np.ndarray, erase: float, seed: int, epoch: int) -> np.ndarray | None:
    """Chooses the pixels that random erasing removes from each image (Zhong et al., 2020).

    They form a rectangle of 2 % to 33 % of the image, at a uniform position, with an aspect ratio that is log-uniform
    between 0.3 and 3.3 before rounding. The first of ten tries that fits is used; if none does, which is rare except
    for tiny images, nothing is erased.

    Args:
        shape: height and width of the images.
        index: position of each image in its dataset, int64 (B,).
        erase: probability that anything is erased in an image.
        seed: the run's seed.
        epoch: the epoch, from 0.

    Returns:
        bool (B, H, W), or None if nothing is erased in the whole batch.
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
    """Returns the values of each image's first try that fits, or of its first try: (B, tries) -> (B, 1) each."""
    first = fits.argmax(1)[:, None]
    return tuple(np.take_along_axis(value, first, 1) for value in values)


def _rectangles(shape: tuple[int, int], key: tuple) -> tuple[np.ndarray, ...]:
    """Draws top, left, height and width of a rectangle for each image, (B, 1) each; height 0 if no try fits."""
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
