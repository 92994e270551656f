"""TGA files, whose fourth channel is transparency only if the header says so."""

from __future__ import annotations

from typing import BinaryIO

from PIL import TgaImagePlugin


class OpaqueTga(TgaImagePlugin.TgaImageFile):
    """A file without transparency, although its pixels have room for it."""

    def load_end(self) -> None:
        super().load_end()
        if self.mode in ("LA", "RGBA"):
            self.im.fillband(len(self.mode) - 1, 255)


def open_tga(file: BinaryIO) -> TgaImagePlugin.TgaImageFile:
    """Opens a TGA file; its pixels are read later.

    Raises:
        Exception: whatever Pillow raises for a damaged file.
    """
    file.seek(0)
    header = file.read(18)
    file.seek(0)
    depth, alpha_bits = header[16], header[17] & 15
    # Programs disagree on the meaning of the one bit that 16-bit colours have.
    transparent = alpha_bits and not (header[2] & 7 == 2 and depth <= 16)
    return (TgaImagePlugin.TgaImageFile if transparent else OpaqueTga)(file)
