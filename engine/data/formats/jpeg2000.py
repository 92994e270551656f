"""JPEG 2000 files with 8 bits a channel, or grey of 10 to 16 bits. Other depths get wrong colours, and are refused."""

from __future__ import annotations

from typing import BinaryIO

from PIL import Jpeg2KImagePlugin

CODESTREAM = b"\xff\x4f\xff\x51"  # how the compressed image begins
CHANNELS_AT = 40  # where its header has the number of channels, and then three bytes for each
SIGNED = 0x80


def open_jpeg2000(file: BinaryIO) -> Jpeg2KImagePlugin.Jpeg2KImageFile:
    """Opens a JPEG 2000 file; its pixels are read later.

    Raises:
        ValueError: the file has more than four channels, or a depth that Pillow reads wrongly; the message says which.
        Exception: whatever Pillow raises for a damaged file.
    """
    file.seek(_start(file))
    header = file.read(CHANNELS_AT + 2)
    bands = int.from_bytes(header[CHANNELS_AT:], "big")
    if header.startswith(CODESTREAM) and bands:
        _refuse(bands, file.read(3 * min(bands, 4))[::3])
    file.seek(0)
    return Jpeg2KImagePlugin.Jpeg2KImageFile(file)


def _refuse(bands: int, components: bytes) -> None:
    if bands > 4:
        raise ValueError(f"{bands} bands; save it as grey or RGB")
    depths = sorted({(component & ~SIGNED) + 1 for component in components})
    if any(component & SIGNED for component in components):
        raise ValueError(f"signed {depths[-1]}-bit pixels; save it with 8 bits, without a sign")
    if depths != [8] and not (bands == 1 and 10 <= depths[0] <= 16):
        said = "/".join(map(str, depths))
        raise ValueError(f"JPEG 2000 with {said} bits a channel; save it with 8")


def _start(file: BinaryIO) -> int:
    """Returns where the compressed image begins: at once, or in the box `jp2c`; 0 if there is none."""
    file.seek(0)
    if file.read(4) == CODESTREAM:
        return 0
    at = 0
    while True:
        file.seek(at)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        body = 8
        if length == 1:
            length, body = int.from_bytes(header[8:16], "big"), 16
        if header[4:8] == b"jp2c":
            return at + body
        if length < body or len(header) < 8:
            return 0
        at += length
