"""Uploads: limits, files that are no images, and that nothing of them stays."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.settings import FileSettings
from engine.explain.exploring.upload import Limits, take
from models.settings import UserError

READING = FileSettings(size=16)


def png(width: int, height: int) -> bytes:
    """A PNG whose header says so many pixels, and that has none: all that a bomb needs."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_an_image_is_read_and_deleted(tmp_path):
    file = tmp_path / "cat.png"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    image, words = take(file, READING, Limits())
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1)) and not file.exists()
    assert words == "cat.png, 16 × 16 pixels: the model sees the square in the middle at 16 × 16"


def truncated(path):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8) + 7).save(path)
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("text.jpg", b"Dear reader,\n" * 9, "text.jpg: cannot be read (not JPEG, PNG, BMP"),
        ("empty.png", b"", "empty.png: cannot be read (empty file); give a JPEG or PNG file"),
        ("cut.jpg", truncated, "cut.jpg: cannot be read ("),
        ("bomb.png", png(50_000, 50_000), "bomb.png: 50000 x 50000 pixels, more than 25 million; give a smaller image"),
        ("just.png", png(5001, 5000), "just.png: 5001 x 5000 pixels, more than 25 million"),
        ("large.png", b"\0" * (10 * 2**20 + 1), "large.png: 10.0 MB, more than 10 MB; give a smaller file"),
        ("two\nlines.png", b"no", "'two\\nlines.png': cannot be read ("),
    ],
)
def test_what_cannot_be_read_is_said_on_one_line_and_deleted(tmp_path, name, content, says):
    file = tmp_path / name
    file.write_bytes(content) if isinstance(content, bytes) else content(file)
    with pytest.raises(UserError) as raised:
        take(file, READING, Limits())
    assert str(raised.value).startswith(says) and "\n" not in str(raised.value)
    assert not file.exists()


def test_other_limits(tmp_path):
    Image.fromarray(np.zeros((1000, 1001, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="1001 x 1000 pixels, more than 1 million"):
        take(tmp_path / "a.png", READING, Limits(megapixels=1))
