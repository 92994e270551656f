"""What a file is, by its content and its name; and the formats that are read beside the usual ones."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from engine.data.formats import EXTENSIONS, FOREIGN, FORMATS, HEAD, format_of, has_image_extension
from engine.data.images import has_image, open_rgb, read_with_facts, reason
from tests.engine.data.conftest import files

RANDOM = np.random.default_rng(0)
HEIGHT, WIDTH = 5, 7
GREY = RANDOM.integers(0, 256, (HEIGHT, WIDTH))
COLOURS = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3))


def read(path: Path) -> np.ndarray:
    return np.asarray(open_rgb(path, files(8))).astype(int)


def why(path: Path, **options) -> str:
    with pytest.raises(Exception) as caught:
        open_rgb(path, files(8, **options))
    return reason(caught.value)


def assert_shows(path: Path, body: bytes, truth: np.ndarray, kind: str, most: float = 0.6) -> None:
    """The file shows the picture, grey (H, W) or RGB (H, W, 3)."""
    path.write_bytes(body)
    image, facts = read_with_facts(path, files(8))
    truth = truth if truth.ndim == 3 else truth[..., None].repeat(3, 2)
    assert facts.format == kind and (facts.width, facts.height) == truth.shape[1::-1]
    assert np.abs(np.asarray(image) - truth).max() <= most


def portable(magic: str, most: int | None, values: np.ndarray, comment: str = "") -> bytes:
    head = f"{magic}\n{comment}{values.shape[1]} {values.shape[0]}\n" + ("" if most is None else f"{most}\n")
    if magic in ("P1", "P2", "P3"):
        return head.encode() + " ".join(map(str, values.ravel())).encode()
    if magic == "P4":
        return head.encode() + np.packbits(values.astype(np.uint8), axis=1).tobytes()
    return head.encode() + values.astype("u1" if most < 256 else ">u2").tobytes()


@pytest.mark.parametrize("most", [1, 100, 255, 1000, 4095, 65535])
def test_portable_maps_of_any_range(tmp_path, most):
    grey, colours = RANDOM.integers(0, most + 1, (HEIGHT, WIDTH)), RANDOM.integers(0, most + 1, (HEIGHT, WIDTH, 3))
    grey[0, 0], grey[0, 1] = 0, most
    for magic in ("P2", "P5"):
        assert_shows(tmp_path / "a.pgm", portable(magic, most, grey), grey * 255 / most, "PPM", 1)
    for magic in ("P3", "P6"):
        assert_shows(tmp_path / "a", portable(magic, most, colours, "# made by hand\n"), colours * 255 / most, "PPM", 1)


def test_portable_bit_maps_have_black_ones(tmp_path):
    bits = RANDOM.integers(0, 2, (HEIGHT, WIDTH))
    for magic in ("P1", "P4"):
        assert_shows(tmp_path / "a.pbm", portable(magic, None, bits), 255 - 255 * bits, "PPM")


def test_damaged_portable_maps(tmp_path):
    path = tmp_path / "a.pgm"
    for body, said in (
        (b"P5 2 2 255\nab", "image file is truncated"),
        (b"P5 2 2 4095\nab", "image file is truncated"),
        (b"P2 2 2 255\n1 2", "not enough image data"),
        (b"P5 # 2\n2 x 255\n", "damaged header"),
        (b"P5 90000 90000 255\n", "90000 x 90000 pixels, more than data.max_pixels"),
        (b"P2 90000 90000 1000\n", "90000 x 90000 pixels, more than data.max_pixels"),
        (b"P6 90000 90000 4095\n", "90000 x 90000 pixels, more than data.max_pixels"),
        (b"Pf\n2 2\n-1\n" + bytes(16), "floating-point pixels (PFM); save it with 8 or 16 bits"),
        (b"P7\nWIDTH 2\n", "PAM; convert it to JPEG or PNG"),
    ):
        path.write_bytes(body)
        assert why(path).startswith(said)


def targa(kind: int, bits: int, pixels: bytes, *, flags: int = 0, colours: bytes = b"", footer: bytes = b"") -> bytes:
    head = struct.pack(
        "<BBBHHBHHHHBB",
        3,
        bool(colours),
        kind,
        0,
        len(colours) // 3,
        24 * bool(colours),
        0,
        0,
        *(WIDTH, HEIGHT, bits, flags),
    )
    return head + b"id." + colours + pixels + footer


def test_targa(tmp_path):
    path, top_down = tmp_path / "a.tga", 0x20
    bgr = COLOURS[..., ::-1].astype(np.uint8)
    assert_shows(path, targa(2, 24, bgr.tobytes(), flags=top_down), COLOURS, "TGA")
    assert_shows(path, targa(2, 24, bgr.tobytes()), COLOURS[::-1], "TGA")
    assert_shows(path, targa(2, 24, bgr.tobytes(), flags=0x30), COLOURS[:, ::-1], "TGA")
    assert_shows(path, targa(3, 8, GREY.astype(np.uint8).tobytes(), flags=top_down), GREY, "TGA")
    palette = RANDOM.integers(0, 256, (256, 3))
    stored = palette[:, ::-1].astype(np.uint8).tobytes()
    body = targa(1, 8, GREY.astype(np.uint8).tobytes(), flags=top_down, colours=stored)
    assert_shows(path, body, palette[GREY], "TGA")
    runs = b"".join(bytes([0x80, *pixel]) for pixel in bgr.reshape(-1, 3))  # of one pixel each
    assert_shows(path, targa(10, 24, runs, flags=top_down), COLOURS, "TGA")
    fives = COLOURS // 8
    packed = (fives[..., 0] << 10 | fives[..., 1] << 5 | fives[..., 2]).astype("<u2")
    for bit in (0, 0x8000):
        body = targa(2, 16, (packed | bit).astype("<u2").tobytes(), flags=top_down | bool(bit))
        assert_shows(path, body, fives * 255 / 31, "TGA", 1)


@pytest.mark.parametrize("alpha", [0, 128])
def test_the_fourth_channel_of_targa_is_alpha_if_the_header_says_so(tmp_path, alpha):
    """Programs that know no transparency leave it at 0, and the image would be empty."""
    bgra = np.dstack([COLOURS[..., ::-1], np.full_like(GREY, alpha)]).astype(np.uint8).tobytes()
    assert_shows(tmp_path / "a.tga", targa(2, 32, bgra, flags=0x20), COLOURS, "TGA")
    share = alpha / 255
    assert_shows(tmp_path / "a.tga", targa(2, 32, bgra, flags=0x28), COLOURS * share + 255 * (1 - share), "TGA", 1)


def test_targa_is_told_by_its_name_or_its_end(tmp_path):
    body = targa(3, 8, GREY.astype(np.uint8).tobytes(), flags=0x20)
    (tmp_path / "a.bin").write_bytes(body)
    assert not has_image(tmp_path / "a.bin")
    assert_shows(tmp_path / "a.VST", body, GREY, "TGA")
    footer = struct.pack("<II", 0, 0) + b"TRUEVISION-XFILE.\0"
    assert_shows(tmp_path / "b.bin", body + footer, GREY, "TGA")
    (tmp_path / "c.tga").write_text("no image at all, but a text")
    assert why(tmp_path / "c.tga").startswith("not JPEG, PNG")
    wide = bytearray(body)
    wide[12:16] = b"\xff" * 4
    (tmp_path / "d.tga").write_bytes(wide)
    assert why(tmp_path / "d.tga") == "65535 x 65535 pixels, more than data.max_pixels"


def jpeg2000(pixels: np.ndarray, extension: str) -> bytes:
    """Without loss."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG2000", no_jp2=extension == "j2k")
    return stream.getvalue()


def with_depth(body: bytes, depth: int, *, signed: bool = False) -> bytes:
    """The same file, but another number of bits in its headers: values move by half of the range."""
    at = body.index(b"\xff\x4f\xff\x51") + 40
    channels = int.from_bytes(body[at : at + 2], "big")
    field = bytes([depth - 1 + 128 * signed])
    changed = bytearray(body)
    for i in range(channels):
        changed[at + 2 + 3 * i : at + 3 + 3 * i] = field
    box = body.find(b"ihdr")
    if box >= 0:
        changed[box + 14 : box + 15] = field
    return bytes(changed)


@pytest.mark.parametrize("extension", ["jp2", "j2k"])
def test_jpeg_2000(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    colours, grey = COLOURS.astype(np.uint8), GREY.astype(np.uint8)
    assert_shows(path, jpeg2000(colours, extension), COLOURS, "JPEG2000")
    assert_shows(path, jpeg2000(grey, extension), GREY, "JPEG2000")
    alpha = np.dstack([colours, grey])
    over_white = COLOURS * (GREY[..., None] / 255) + 255 - GREY[..., None]
    assert_shows(path, jpeg2000(alpha, extension), over_white, "JPEG2000", 1)
    deep = RANDOM.integers(0, 65536, (HEIGHT, WIDTH))
    assert_shows(path, jpeg2000(deep.astype(np.uint16), extension), deep / 257, "JPEG2000")
    twelve = RANDOM.integers(0, 4096, (HEIGHT, WIDTH))
    moved = jpeg2000((twelve + 2**15 - 2**11).astype(np.uint16), extension)
    assert_shows(path, with_depth(moved, 12), twelve * 255 / 4095, "JPEG2000")


@pytest.mark.parametrize("extension", ["jp2", "j2k"])
def test_jpeg_2000_that_would_have_wrong_colours(tmp_path, extension):
    """Pillow makes white black with more than 8 bits, and grey with fewer."""
    path, whole = tmp_path / f"a.{extension}", jpeg2000(COLOURS.astype(np.uint8), extension)
    grey = jpeg2000(GREY.astype(np.uint8), extension)
    for body, depth in ((whole, 12), (whole, 4), (grey, 9), (grey, 4), (grey, 20)):
        path.write_bytes(with_depth(body, depth))
        assert why(path) == f"JPEG 2000 with {depth} bits a channel; save it with 8"
    path.write_bytes(with_depth(grey, 16, signed=True))
    assert why(path) == "signed 16-bit pixels; save it with 8 bits, without a sign"
    many = bytearray(whole)
    at = whole.index(b"\xff\x4f\xff\x51") + 40
    many[at : at + 2] = (13).to_bytes(2, "big")
    path.write_bytes(many)
    assert why(path) == "13 bands; save it as grey or RGB"
    path.write_bytes(whole[:60])
    assert why(path)
    assert why_of_bomb(path, whole, at) == "60000 x 60000 pixels, more than data.max_pixels"


def why_of_bomb(path: Path, whole: bytes, at: int) -> str:
    huge = bytearray(whole)
    huge[at - 32 : at - 24] = (60_000).to_bytes(4, "big") * 2
    box = whole.find(b"ihdr")
    if box >= 0:
        huge[box + 4 : box + 12] = (60_000).to_bytes(4, "big") * 2
    path.write_bytes(huge)
    return why(path)


FOREIGN_FILES = {
    "a.heic": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
    "b.hif": (b"\0\0\0\x1cftypmsf1\0\0\0\0msf1hevchevx", "HEIC"),
    "a.avif": (b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiafMA1B", "AVIF"),
    "a.cr3": (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "camera raw"),
    "a.jxl": (b"\xff\x0a\xfa\x1f", "JPEG XL"),
    "b.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    "a.jls": (b"\xff\xd8\xff\xf7\0\x0b", "JPEG-LS"),
    "a.ico": (struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, 99, 22), "ICO"),
    "a.psd": (b"8BPS\0\1", "PSD"),
    "a.svg": (b"<?xml version='1.0'?>\n<!-- a drawing -->\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "a.dcm": (bytes(128) + b"DICM", "DICOM"),
    "b.dcm": (b"II*\0\x08\0\0\0".ljust(128, b"\0") + b"DICM", "DICOM"),  # with a TIFF's directory in front
    "a.cr2": (b"II*\0\x10\0\0\0CR\x02\0", "camera raw"),
    "a.orf": (b"IIRO\x08\0\0\0", "camera raw"),
    "a.raf": (b"FUJIFILMCCD-RAW 0201", "camera raw"),
    "a.xcf": (b"gimp xcf v011", "GIMP"),
    "a.exr": (b"\x76\x2f\x31\x01\2\0\0\0", "OpenEXR"),
    "a.pcx": (b"\x0a\5\1\x08", "PCX"),
    "a.fits": (b"SIMPLE  =                    T", "FITS"),
    "a.qoi": (b"qoif", "QOI"),
    "a.dds": (b"DDS |\0\0\0", "DDS"),
    "a.eps": (b"%!PS-Adobe-3.0 EPSF-3.0", "EPS"),
    "a.nii": (bytes(344) + b"n+1\0", "NIfTI"),
}


@pytest.mark.parametrize("name", FOREIGN_FILES)
def test_formats_that_are_not_read_are_named(tmp_path, name):
    """By their content, and those of the extension are images in any case."""
    body, kind = FOREIGN_FILES[name]
    for path in (tmp_path / name, tmp_path / "no extension", tmp_path / "a.jpg"):
        path.write_bytes(body + bytes(16) if kind != "SVG" else body)
        assert has_image(path) and why(path) == f"{kind}; convert it to JPEG or PNG"
    assert has_image_extension(name)


def test_formats_without_a_signature_are_told_by_their_names(tmp_path):
    for name, kind in (("a.dcm", "DICOM"), ("a.nef", "camera raw"), ("a.svgz", "SVG"), ("a.nii.gz", "NIfTI")):
        (tmp_path / name).write_bytes(b"\x08\0\5\0 and so on")
        assert why(tmp_path / name) == f"{kind}; convert it to JPEG or PNG"
    (tmp_path / "b.dcm").touch()
    assert why(tmp_path / "b.dcm") == "empty file"


@pytest.mark.parametrize(
    "text",
    [
        b"P1 is the first of the portable formats",
        b"P5: five of us",
        b"<html><body><svg></svg></body></html>",
        b"BM is how a bitmap begins",
        b"qoi, a format",
        b"id,label\n1,cat\n",
        b"\0" * 600,
        b"",
        b"\0\0\0\x18ftypisom\0\0\0\1isomavc1",  # a film
        b"%PDF-1.7",
        b"PK\3\4",
    ],
)
def test_other_files_are_no_images(text):
    assert format_of(text[:HEAD], "a.bin") is None


def test_names():
    assert len(set(EXTENSIONS)) == len(EXTENSIONS) and not set(FORMATS) & set(FOREIGN)
    assert all(extension == extension.lower() and extension.startswith(".") for extension in EXTENSIONS)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_png_with_a_large_compressed_text_is_read(tmp_path, kind, after):
    """More than 1 MiB of it, before or behind the pixels, beside an orientation that still counts."""
    packed = zlib.compress(bytes(3_000_000))
    body = {b"zTXt": b"note\0\0", b"iTXt": b"note\0\1\0\0\0", b"iCCP": b"profile\0\0"}[kind] + packed
    info, exif = PngImagePlugin.PngInfo(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS.astype(np.uint8)).save(tmp_path / "a.png", pnginfo=info, exif=exif)
    whole = (tmp_path / "a.png").read_bytes()
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    at = len(whole) - 12 if after else 33
    (tmp_path / "a.png").write_bytes(whole[:at] + chunk + whole[at:])
    assert (read(tmp_path / "a.png") == np.rot90(COLOURS, -1)).all()


def test_a_png_with_many_texts_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 1000)
    info = PngImagePlugin.PngInfo()
    for i in range(9):
        info.add_text(f"note {i}", "x" * 200)
    info.add_text("Raw profile type exif", _raw_profile(6))
    Image.fromarray(COLOURS.astype(np.uint8)).save(tmp_path / "a.png", pnginfo=info)
    assert (read(tmp_path / "a.png") == np.rot90(COLOURS, -1)).all()


def _raw_profile(orientation: int) -> str:
    """EXIF data as ImageMagick writes them into a PNG."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = exif.tobytes()
    return f"\nexif\n{len(data):8}\n{data.hex()}\n"
