"""PNG files with large compressed texts or colour profiles, which Pillow refuses to unpack."""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

from PIL import PngImagePlugin

SIGNATURE = 8  # bytes
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
ORIENTED = (b"Raw profile type exif", b"Raw profile type APP1", b"XML:com.adobe.xmp")  # may say which way up


def too_large(error: Exception) -> bool:
    """Returns whether Pillow gave up because of texts or a profile, which have nothing to do with the pixels."""
    return isinstance(error, ValueError) and "MAX_TEXT" in str(error)


def without_texts(file: BinaryIO) -> io.BytesIO:
    """Returns a copy of a PNG file without texts and profile, except for a small one that may hold the orientation."""
    file.seek(0)
    kept = [file.read(SIGNATURE)]
    while header := file.read(8):
        chunk = header + file.read(int.from_bytes(header[:4], "big") + 4)  # with its checksum
        if header[4:] not in TEXTS or _is_small_and_oriented(header[4:], chunk[8:-4]):
            kept.append(chunk)
    return io.BytesIO(b"".join(kept))


def _is_small_and_oriented(kind: bytes, body: bytes) -> bool:
    name, _, rest = body.partition(b"\0")
    if name not in ORIENTED or len(body) > PngImagePlugin.MAX_TEXT_CHUNK:
        return False
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] == b"\0"):
        return True
    unpacker = zlib.decompressobj()
    try:
        # Compressed text follows the method of compression; in iTXt also a flag before it, and two texts behind it.
        unpacker.decompress(
            rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1], PngImagePlugin.MAX_TEXT_CHUNK
        )
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail
