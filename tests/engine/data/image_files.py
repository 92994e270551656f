"""Image files for the tests of reading them, and what is said of those that cannot be read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.images import reason
from engine.data.reading import read_splits
from models.settings import UserError
from tests.engine.data.conftest import files, read_image

CORNERS = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40  # every turn and mirroring of it differs


def saved(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def png(width: int, height: int, bits: int, kind: int, rows: list[bytes], extra: bytes = b"") -> bytes:
    """A PNG of a kind that PIL does not write; `rows` are the pixels' bytes."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def why(path: Path, **options) -> str:
    """The reason for which a file cannot be read."""
    with pytest.raises(Exception) as caught:
        read_image(path, files(8, **options))
    return reason(caught.value)


def error_of(paths: list[Path]) -> str:
    """The one line that a user sees."""
    with pytest.raises(UserError) as caught:
        read_splits(
            {"train": (paths, torch.zeros(len(paths), dtype=torch.int64))},
            ["a"],
            files(8),
            "data.path = 'x'",
            "repair them",
        )
    assert "\n" not in str(caught.value)
    return str(caught.value)
