"""TIFF files: the pixels are those that were written, in every way of storing them, or the file is refused."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import pytest
from PIL import Image

from engine.data.formats.tiff import BITS, CMYK, GREY, LAB, PALETTE, RGB, SAMPLES, WHITE_IS_ZERO, YCBCR
from engine.data.images import open_rgb, read_with_facts, reason
from engine.data.reading import decode
from tests.engine.data.conftest import files
from tests.engine.data.formats.tiff_files import COMPRESSIONS, write_tiff

HEIGHT, WIDTH = 11, 19
RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (3, 256))
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return colours * alpha + 255 * (1 - alpha)


def of_cmyk(a: np.ndarray) -> np.ndarray:
    return (255 - a[..., :3]) * (255 - a[..., 3:4]) / 255


def of_ycbcr(a: np.ndarray) -> np.ndarray:
    y, cb, cr = a[..., 0], a[..., 1] - 128, a[..., 2] - 128
    return np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1).clip(0, 255)


def of_lab(a: np.ndarray) -> np.ndarray:
    """CIELAB with the white of D50, as the format has it, to sRGB."""
    level, red, yellow = a[..., 0] / 2.55, (a[..., 1] + 128) % 256 - 128, (a[..., 2] + 128) % 256 - 128
    y = (level + 16) / 116
    curves = np.stack([y + red / 500, y, y - yellow / 200], -1)
    xyz = np.where(curves > 6 / 29, curves**3, 3 * (6 / 29) ** 2 * (curves - 4 / 29)) * (0.96422, 1, 0.82521)
    to_linear = [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.033454]]
    linear = (xyz @ np.array([*to_linear, [0.0719453, -0.2289914, 1.4052427]]).T).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


class Kind(NamedTuple):
    """What the samples of a file mean."""

    bands: int
    photometric: int
    bits: int
    truth: Callable[[np.ndarray], np.ndarray]  # samples, float, to RGB from 0 to 255
    alpha: int | None = None  # ExtraSamples: 0 unknown, 1 premultiplied, 2 transparency
    planes: bool = True  # whether the channels may be stored one after another
    orders: str = "<>"  # of bytes


KINDS = {
    "1": Kind(1, GREY, 1, lambda a: a * 255),
    "1, white is 0": Kind(1, WHITE_IS_ZERO, 1, lambda a: 255 - a * 255),
    "L of 4 bits": Kind(1, GREY, 4, lambda a: a * 17),
    "L": Kind(1, GREY, 8, lambda a: a),
    "L, white is 0": Kind(1, WHITE_IS_ZERO, 8, lambda a: 255 - a),
    "I;12": Kind(1, GREY, 12, lambda a: a * 255 / 4095, orders="<"),
    "I;16": Kind(1, GREY, 16, lambda a: a / 257),
    "I;16, white is 0": Kind(1, WHITE_IS_ZERO, 16, lambda a: 255 - a / 257, orders="<"),
    "P": Kind(1, PALETTE, 8, lambda a: COLOURS.T[a[..., 0].astype(int)]),
    "P of 4 bits": Kind(1, PALETTE, 4, lambda a: COLOURS.T[a[..., 0].astype(int)]),
    "LA": Kind(2, GREY, 8, lambda a: over_white(a[..., :1], a[..., 1:] / 255), alpha=2, planes=False),
    "La": Kind(2, GREY, 8, lambda a: a[..., :1] + 255 - a[..., 1:], alpha=1, planes=False),
    "RGB": Kind(3, RGB, 8, lambda a: a),
    "RGB of 16 bits": Kind(3, RGB, 16, lambda a: a / 257),
    "RGBA": Kind(4, RGB, 8, lambda a: over_white(a[..., :3], a[..., 3:] / 255), alpha=2),
    "RGBA of 16 bits": Kind(4, RGB, 16, lambda a: over_white(a[..., :3] / 257, a[..., 3:] / 65535), alpha=2),
    "RGBa": Kind(4, RGB, 8, lambda a: a[..., :3] + 255 - a[..., 3:], alpha=1),
    "RGBX": Kind(4, RGB, 8, lambda a: a[..., :3], alpha=0),
    "CMYK": Kind(4, CMYK, 8, of_cmyk),
    "CMYK of 16 bits": Kind(4, CMYK, 16, lambda a: of_cmyk(a / 257)),
    "YCbCr": Kind(3, YCBCR, 8, of_ycbcr),
    "LAB": Kind(3, LAB, 8, of_lab, planes=False),
}


def samples_of(kind: Kind, compression: str) -> np.ndarray:
    if compression == "jpeg":  # of which fine detail would be lost
        down, across = np.mgrid[:HEIGHT, :WIDTH]
        a = np.stack([60 + 4 * down + (i + 2) * across for i in range(kind.bands)], -1)
    else:
        a = RANDOM.integers(0, 2**kind.bits, (HEIGHT, WIDTH, kind.bands))
    if kind.photometric == LAB:
        a[..., 0], a[..., 1:] = 100 + a[..., 0] % 100, a[..., 1:] % 30 - 15  # colours that a screen has
    if kind.alpha == 1:
        a[..., :-1] = np.minimum(a[..., :-1], a[..., -1:])
    return (a % 2**kind.bits).astype(np.uint8 if kind.bits <= 8 else np.uint16)


def extra_of(kind: Kind) -> tuple:
    extra = [] if kind.alpha is None else [(338, "H", [kind.alpha])]
    if kind.photometric == PALETTE:
        extra.append((320, "H", (COLOURS[:, : 2**kind.bits] * 257).ravel().tolist()))
    if kind.photometric == YCBCR:
        extra.append((530, "H", [1, 1]))  # no subsampling
    return tuple(extra)


def can(kind: Kind, compression: str, planar: bool) -> bool:
    if compression == "jpeg" and (kind.bits != 8 or kind.photometric in (PALETTE, LAB)):
        return False
    if compression == "jpeg" and not planar and kind.bands not in (1, 3):
        return False
    return not planar or (kind.planes and kind.bands > 1)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", KINDS)
def test_pixels(tmp_path, name, compression):
    if name == "La" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow 13 is the first that reads it")
    kind, tried = KINDS[name], 0
    turns = (None, *UPRIGHT) if compression == "raw" else (None, 3, 6, 7)
    layouts = ({"rows": 4}, {"rows": HEIGHT}, {"tile": 16})
    for planar, order, turn, layout in itertools.product((False, True), kind.orders, turns, layouts):
        if not can(kind, compression, planar):
            continue
        samples, tried = samples_of(kind, compression), tried + 1
        how = {"planar": planar, "order": order, "orientation": turn, **layout}
        predictor = compression in ("lzw", "deflate") and kind.bits in (8, 16) and turn == 3
        path = write_tiff(
            tmp_path / "a.tif",
            samples,
            kind.photometric,
            bits=kind.bits,
            compression=compression,
            predictor=predictor,
            extra=extra_of(kind),
            **how,
        )
        truth = np.broadcast_to(kind.truth(samples.astype(float)), (HEIGHT, WIDTH, 3))
        truth, read = UPRIGHT[turn or 1](truth), np.asarray(open_rgb(path, files(8))).astype(float)
        assert read.shape == truth.shape, how
        assert np.abs(read - truth).max() <= (12 if compression == "jpeg" else 4), how
    assert tried or compression == "jpeg"


def test_subsampled_colours(tmp_path):
    """Four values of brightness share two of colour, in blocks of 2 x 2, which is the default."""
    level = RANDOM.integers(60, 200, (8, 8)).astype(np.uint8)
    blocks = b"".join(
        level[y : y + 2, x : x + 2].tobytes() + bytes([100, 150]) for y in range(0, 8, 2) for x in range(0, 8, 2)
    )
    size = ((256, "I", [8]), (257, "I", [8]), (258, "H", [8] * 3), (277, "H", [3]))
    stored = np.frombuffer(blocks, np.uint8).reshape(1, -1, 1)
    path = write_tiff(tmp_path / "a.tif", stored, YCBCR, rows=8, extra=size)
    flat = np.dstack([level, np.full_like(level, 100), np.full_like(level, 150)])
    read = np.asarray(open_rgb(path, files(8))).astype(float)
    assert np.abs(read - of_ycbcr(flat.astype(float))).max() <= 2


def test_the_facts_are_those_of_the_file(tmp_path):
    path = write_tiff(tmp_path / "a.tif", samples_of(KINDS["L"], "raw"), GREY, rows=HEIGHT, orientation=6)
    image, facts = read_with_facts(path, files(8))
    assert image.size == (HEIGHT, WIDTH) and facts[:2] == ("TIFF", "L")


def why(path: Path) -> str:
    with pytest.raises(Exception) as caught:
        open_rgb(path, files(8))
    return reason(caught.value)


def test_fields_of_another_type_are_a_damaged_header(tmp_path):
    """Texts where there should be numbers, as single damaged bytes make of them."""
    whole = write_tiff(tmp_path / "a.tif", zeros(3), RGB).read_bytes()
    for field in (BITS, SAMPLES):
        at = whole.index(struct.pack("<HH", field, 3))
        (tmp_path / "a.tif").write_bytes(whole[: at + 2] + b"\2" + whole[at + 3 :])
        assert why(tmp_path / "a.tif") == "damaged header"


def zeros(bands: int, dtype: type = np.uint8) -> np.ndarray:
    return np.zeros((4, 4, bands), dtype)


def test_a_palette_of_8_bits(tmp_path):
    """Some programs write it as bytes in fields of 16 bits, which are black if they are taken for 16 bits."""
    indexes = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 1)).astype(np.uint8)
    for compression, turn in itertools.product(("raw", "deflate"), (1, 6)):
        path = write_tiff(
            tmp_path / "a.tif",
            indexes,
            PALETTE,
            compression=compression,
            orientation=turn,
            extra=((320, "H", COLOURS.ravel().tolist()),),
        )
        truth = UPRIGHT[turn](COLOURS.T[indexes[..., 0]])
        assert np.array_equal(np.asarray(open_rgb(path, files(8))), truth)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", ["raw", "deflate"])
def test_many_bands(tmp_path, caplog, planar, compression):
    how = {"planar": planar, "compression": compression}
    for bands, photometric in ((13, GREY), (13, RGB), (5, RGB), (4, GREY), (6, CMYK), (2, GREY), (2, PALETTE)):
        channels = {GREY: 1, PALETTE: 1, RGB: 3, CMYK: 4}[photometric]
        for unknown in ((), ((338, "H", [0] * (bands - channels)),)):
            path = write_tiff(tmp_path / "a.tif", zeros(bands), photometric, extra=unknown, **how)
            assert why(path) == f"{bands} bands; save it as grey or RGB"
        path = write_tiff(tmp_path / "a.tif", zeros(bands, np.float32), photometric, bits=32, **how)
        assert why(path) == f"{bands} bands; save it as grey or RGB"
    assert not caplog.records


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "dtype, sample_format, said",
    [
        (np.int8, 2, "signed 8-bit pixels; save it with 8 or 16 bits, without a sign"),
        (np.int16, 2, "signed 16-bit pixels; save it with 8 or 16 bits, without a sign"),
        (np.int32, 2, "signed 32-bit pixels; save it with 8 or 16 bits, without a sign"),
        (np.uint32, 1, "32-bit pixels; save it with 8 or 16 bits"),
        (np.float32, 3, "floating-point pixels; save it with 8 or 16 bits"),
        (np.float64, 3, "floating-point pixels; save it with 8 or 16 bits"),
        (np.complex64, 6, "complex numbers as pixels; save it with 8 or 16 bits"),
    ],
)
def test_other_types_of_pixels(tmp_path, dtype, sample_format, said, order):
    """Also those whose values happen to fit: what they mean is not known."""
    for bands, photometric in ((1, GREY), (3, RGB)):
        extra = ((339, "H", [sample_format] * bands),)
        bits = np.dtype(dtype).itemsize * 8
        path = write_tiff(tmp_path / "a.tif", zeros(bands, dtype), photometric, bits=bits, order=order, extra=extra)
        assert why(path) == said


def test_kinds_that_no_one_reads(tmp_path):
    path = tmp_path / "a.tif"
    for kind in ("LA", "La", "LAB"):
        layout = KINDS[kind]
        write_tiff(path, zeros(layout.bands), layout.photometric, planar=True, extra=extra_of(layout))
        assert why(path) == (
            f"{layout.bands} bands that are stored one after another (PlanarConfiguration 2); save it as RGB"
        )
    write_tiff(path, zeros(1, np.uint16), WHITE_IS_ZERO, bits=16, order=">")
    said = "a kind of TIFF that is not read (1 band of 16 bits with PhotometricInterpretation 0); save it as grey or"
    assert why(path) == said + " RGB with 8 bits"
    for compression in (34712, 34887, 50002, 32771):  # JPEG 2000, LERC, JPEG XL, CCITT with words
        write_tiff(path, zeros(1), GREY, extra=((259, "H", [compression]),))
        assert why(path) == f"compression {compression}, which is not read; save it with LZW or without compression"
    path.write_bytes(b"MM\0+\0\x08\0\0" + bytes(24))
    assert why(path) == "BigTIFF in big-endian byte order, which is not read; save it in another"


def test_the_raw_files_of_cameras_and_previews(tmp_path):
    path = tmp_path / "a.tif"
    write_tiff(path, zeros(3), RGB, extra=((50706, "B", [1, 4, 0, 0]),))  # the thumbnail of a DNG file
    assert why(path) == "camera raw; convert it to JPEG or PNG"
    write_tiff(path, zeros(1), 32803)
    assert why(path) == "camera raw; convert it to JPEG or PNG"
    write_tiff(path, zeros(3), RGB, extra=((254, "I", [1]),))
    assert why(path) == "its first image is a preview, as in cameras' raw files; convert it to JPEG or PNG"
    named = write_tiff(tmp_path / "a.NEF", zeros(3), RGB)
    assert why(named) == "camera raw; convert it to JPEG or PNG"
    write_tiff(path, zeros(3), RGB, extra=((254, "I", [0]),))
    assert (np.asarray(open_rgb(path, files(8))) == 0).all()


def test_a_file_that_is_cut_is_not_mapped(tmp_path):
    path = write_tiff(tmp_path / "a.tif", samples_of(KINDS["L"], "raw"), GREY, rows=HEIGHT)
    image = open_rgb(path, files(8))
    os.truncate(path, 0)  # the process would be killed if it read a mapped file
    assert np.asarray(image).shape == (HEIGHT, WIDTH, 3)


def test_damage_is_said_in_words_and_libtiff_is_silent(tmp_path, capfd):
    paths = [tmp_path / f"{compression}.tif" for compression in ("lzw", "deflate", "packbits", "jpeg")]
    for path in paths:
        write_tiff(path, samples_of(KINDS["RGB"], "jpeg"), RGB, compression=path.stem)
        body = bytearray(path.read_bytes())
        body[12:40] = bytes(range(200, 228))
        path.write_bytes(body)
    bad = decode(paths, files(8))[1]
    assert "damaged pixels" in bad.values() and not any("decoder error" in why for why in bad.values())
    assert capfd.readouterr() == ("", "")  # also of what is printed in C


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_our_limit_of_pixels_is_the_only_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = write_tiff(tmp_path / "a.tif", zeros(3), RGB)
    assert open_rgb(path, files(8)).size == (4, 4)
    with pytest.raises(Image.DecompressionBombError, match="4 x 4 pixels"):
        open_rgb(path, files(8, max_pixels=15))
