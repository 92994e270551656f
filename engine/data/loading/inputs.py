"""Turns image files into model input, for predictions and pictures.

The run's own settings (`data.size`, `fit`, `crop_pct`, `background`) determine how a file is cropped, resized and
converted, so that the model sees the same pixels as in training and evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine.data.reading import decode
from engine.data.settings import FileSettings
from models.settings import ModelSettings, Settings, UserError

CHANNELS = (1, 3)  # grey and RGB: what an image file can be converted to
GREY = (19595, 38470, 7471)  # ITU-R 601 luma weights of red, green and blue, times 65536


def reading_settings(data: Settings, model: ModelSettings) -> FileSettings:
    """Returns the settings by which image files are read for a run's model.

    Args:
        data: the run's data settings. A run on image files reads other files in the same way as its own. A run on
            arrays (npz, cifar10, digits) uses the square in the middle, resized to the model's input size.
        model: the run's model settings.

    Raises:
        UserError: the model takes neither 1 nor 3 channels, or its input size differs from `data.size`.
    """
    if model.in_chans not in CHANNELS:
        raise UserError(
            f"model.in_chans = {model.in_chans}: an image file has 1 or 3 channels; use a run trained on such images"
        )
    if isinstance(data, FileSettings) and data.size is not None:
        if data.size != model.img_size:
            raise UserError(
                f"data.size = {data.size}: the model takes {model.img_size} px; set data.size={model.img_size}"
            )
        return data
    return FileSettings(size=model.img_size)


def read_images(paths: Sequence[Path], reading: FileSettings, channels: int) -> tuple[Tensor, dict[int, str]]:
    """Reads image files as model input, before normalisation.

    Args:
        paths: N image files.
        reading: the settings returned by `reading_settings`.
        channels: number of channels of the model's input, 1 (grey) or 3 (RGB).

    Returns:
        The images, uint8 (N, channels, size, size), and the reason for each file that cannot be read, by its position
        in `paths`.

    Raises:
        UserError: the images do not fit into memory.
    """
    images, unreadable = decode(paths, reading)
    return (to_grey(images) if channels == 1 else images), unreadable


def to_grey(images: Tensor) -> Tensor:
    """Converts RGB images to grey with Pillow's weights and rounding: uint8 (B, 3, H, W) -> (B, 1, H, W)."""
    weights = torch.tensor(GREY, dtype=torch.int32)[:, None, None]
    return ((images.int() * weights).sum(dim=1, keepdim=True) + 2**15 >> 16).to(torch.uint8)
