"""PPM, PGM and PBM files."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
from PIL import Image, PpmImagePlugin


class Ppm(PpmImagePlugin.PpmImageFile):
    """A file whose values are scaled by NumPy where Pillow would do so in Python, which takes seconds for an image."""

    def load(self) -> Any:
        if self.tile and self.tile[0][0] == "ppm":
            self.im = Image.fromarray(self._scaled()).im
            self.tile = []
        return super().load()

    def _scaled(self) -> np.ndarray:
        """Returns the pixels, scaled from the file's maximal value to 255, or 65535 for 16-bit grey."""
        _, _, start, (_, most) = self.tile[0]
        shape = (self.height, self.width, 3) if self.mode == "RGB" else (self.height, self.width)
        self.fp.seek(start)
        type_of_file = np.dtype("u1" if most < 256 else ">u2")
        data = self.fp.read(int(np.prod(shape)) * type_of_file.itemsize)
        if len(data) < np.prod(shape) * type_of_file.itemsize:
            raise OSError("image file is truncated")
        full = 65535 if self.mode == "I" else 255
        values = np.frombuffer(data, type_of_file).reshape(shape).astype(np.int64)
        scaled = np.minimum((values * full + most // 2) // most, full)
        return scaled.astype(np.int32 if self.mode == "I" else np.uint8)


def open_ppm(file: BinaryIO) -> Ppm:
    """Opens a PPM, PGM or PBM file; its pixels are read later.

    Raises:
        SyntaxError: the header is damaged.
    """
    try:
        return Ppm(file)
    except ValueError as error:  # "invalid literal for int() with base 10", and the like
        raise SyntaxError from error
