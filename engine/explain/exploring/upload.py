"""Reads an image that somebody dropped on the page: nothing in it is trusted, and nothing of it stays on the disk."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.data.images import read_with_facts, reason, to_square
from engine.data.settings import FileSettings
from engine.wording import shown
from models.settings import UserError


@dataclass(frozen=True)
class Limits:
    """The most that is read.

    Attributes:
        megabytes: of a file, each 2^20 bytes.
        megapixels: of an image, by its header.
    """

    megabytes: int = 10
    megapixels: int = 25

    @property
    def bytes(self) -> int:
        return self.megabytes * 2**20


def take(path: Path, reading: FileSettings, limits: Limits) -> tuple[Tensor, str]:
    """Reads a file that was uploaded and deletes it, whether or not it could be read.

    Args:
        path: the file, by the name that it was uploaded as.
        reading: as the model sees images.
        limits: of its size.

    Returns:
        The image, uint8 (3, size, size), and a line that says what was read.

    Raises:
        UserError: the file is no image, damaged or too large. The message is one line.
    """
    try:
        return _read(path, reading, limits)
    finally:
        with suppress(OSError):
            path.unlink()


def _read(path: Path, reading: FileSettings, limits: Limits) -> tuple[Tensor, str]:
    name = shown(path.name)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({reason(error)}); give it again") from None
    if size > limits.bytes:
        raise UserError(f"{name}: {size / 2**20:.1f} MB, more than {limits.megabytes} MB; give a smaller file")
    reading = reading.model_copy(update={"max_pixels": limits.megapixels * 10**6})
    try:
        with warnings.catch_warnings():  # about faults that do not prevent decoding
            warnings.filterwarnings("ignore", module="PIL")
            image, facts = read_with_facts(path, reading)
            square = to_square(image, reading)
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: {error}, more than {limits.megapixels} million; give a smaller image") from None
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise UserError(f"{name}: cannot be read ({reason(error)}); give a JPEG or PNG file") from None
    part = "the square in the middle" if reading.fit == "crop" else "all of it"
    note = f"{name}, {facts.width} × {facts.height} pixels: the model sees {part} at {reading.size} × {reading.size}"
    return torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1)).copy()), note
