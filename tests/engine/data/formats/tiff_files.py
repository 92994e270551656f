"""TIFF files written byte by byte, in every way in which the format stores the same pixels."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

COMPRESSIONS = {"raw": 1, "lzw": 5, "jpeg": 7, "deflate": 8, "packbits": 32773}
Extra = tuple[int, str, list[int]]  # a tag, its type for struct, and its values


def write_tiff(
    path: Path,
    samples: np.ndarray,
    photometric: int,
    *,
    bits: int = 8,
    compression: str = "raw",
    planar: bool = False,
    order: str = "<",
    orientation: int | None = None,
    rows: int = 7,
    tile: int = 0,
    predictor: bool = False,
    extra: tuple[Extra, ...] = (),
) -> Path:
    """Writes samples, (height, width, bands), as they are.

    Args:
        path: the file.
        samples: integers below 2**bits; or values of any other type, with `bits` 16, 32 or 64.
        photometric: the PhotometricInterpretation.
        bits: bits of a sample, 1, 2, 4, 8, 12, 16, 32 or 64.
        compression: one of COMPRESSIONS; "jpeg" takes uint8 samples of 1 or 3 bands.
        planar: whether each band is stored by itself.
        order: "<" or ">", the order of bytes.
        orientation: 1 to 8; None leaves the tag out.
        rows: rows of a strip.
        tile: side of a tile, a multiple of 16; 0: strips.
        predictor: whether differences of neighbours are stored.
        extra: other tags.
    """
    height, width, bands = samples.shape
    layers = [samples[..., i : i + 1] for i in range(bands)] if planar else [samples]
    blocks = [
        _compressed(_packed(block, bits, order, predictor), block, compression)
        for layer in layers
        for block in _blocks(layer, rows, tile)
    ]
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * bands),
        259: ("H", [COMPRESSIONS[compression]]),
        262: ("H", [photometric]),
        277: ("H", [bands]),
        284: ("H", [2 if planar else 1]),
    }
    if orientation is not None:
        tags[274] = ("H", [orientation])
    if predictor:
        tags[317] = ("H", [2])
    if tile:
        tags |= {322: ("I", [tile]), 323: ("I", [tile])}
    else:
        tags[278] = ("I", [rows])
    tags |= {tag: (kind, values) for tag, kind, values in extra}
    at, counts = (324, 325) if tile else (273, 279)
    tags[counts] = ("I", [len(block) for block in blocks])
    starts = np.cumsum([8, *(len(block) + len(block) % 2 for block in blocks)]).tolist()
    tags[at] = ("I", starts[:-1])
    body = b"".join(block + b"\0" * (len(block) % 2) for block in blocks)
    path.unlink(missing_ok=True)  # file systems flush what was emptied to be written again, which takes milliseconds
    path.write_bytes(_header(order, starts[-1]) + body + _directory(tags, order, starts[-1]))
    return path


def _header(order: str, directory: int) -> bytes:
    return (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, directory)


def _directory(tags: dict[int, tuple[str, list[int]]], order: str, start: int) -> bytes:
    """The directory at `start`, and behind it the values that do not fit into it."""
    codes = {"B": 1, "H": 3, "I": 4, "b": 6}
    entries, outside = b"", b""
    end = start + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        stored = struct.pack(f"{order}{len(values)}{kind}", *values)
        entries += struct.pack(f"{order}HHI", tag, codes[kind], len(values))
        if len(stored) > 4:
            entries += struct.pack(f"{order}I", end + len(outside))
            outside += stored + b"\0" * (len(stored) % 2)
        else:
            entries += stored.ljust(4, b"\0")
    return struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4 + outside


def _blocks(layer: np.ndarray, rows: int, tile: int) -> list[np.ndarray]:
    height, width, _ = layer.shape
    if not tile:
        return [layer[top : top + rows] for top in range(0, height, rows)]
    whole = np.zeros((-(-height // tile) * tile, -(-width // tile) * tile, layer.shape[2]), layer.dtype)
    whole[:height, :width] = layer
    return [
        whole[top : top + tile, left : left + tile] for top in range(0, height, tile) for left in range(0, width, tile)
    ]


def _packed(block: np.ndarray, bits: int, order: str, predictor: bool) -> bytes:
    if bits >= 8 and bits != 12:
        if predictor:
            block = np.concatenate([block[:, :1], block[:, 1:] - block[:, :-1]], 1)
        return np.ascontiguousarray(block).astype(block.dtype.newbyteorder(order)).tobytes()
    rows = block.reshape(len(block), -1, 1) >> np.arange(bits)[::-1] & 1  # each row begins with a whole byte
    return np.packbits(rows.reshape(len(block), -1).astype(np.uint8), axis=1).tobytes()


def _compressed(data: bytes, block: np.ndarray, compression: str) -> bytes:
    if compression == "deflate":
        return zlib.compress(data)
    if compression == "packbits":  # literal runs alone
        row = len(data) // len(block)  # a run ends where a row does
        parts = [data[i : i + row][j : j + 128] for i in range(0, len(data), row) for j in range(0, row, 128)]
        return b"".join(bytes([len(part) - 1]) + part for part in parts)
    if compression == "lzw":  # codes of nine bits, with a new table before there could be one of ten
        codes = [code for i in range(0, len(data), 250) for code in (256, *data[i : i + 250])] + [257]
        bits = np.array(codes)[:, None] >> np.arange(9)[::-1] & 1
        return np.packbits(bits.astype(np.uint8)).tobytes()
    if compression == "jpeg":
        stream = io.BytesIO()
        Image.fromarray(block.squeeze(2) if block.shape[2] == 1 else block).save(
            stream, "JPEG", quality=100, subsampling=0, keep_rgb=True
        )
        return stream.getvalue()
    return data
