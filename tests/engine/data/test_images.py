"""Image files: their pixels are right, upright and of one size."""

import logging
import struct

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from engine.data.formats import format_of, has_image_extension
from engine.data.images import has_image, read_with_facts
from engine.data.reading import decode, read_splits
from tests.engine.data.conftest import files, read_image, save_image
from tests.engine.data.image_files import CORNERS, chunk, png, saved


@pytest.mark.parametrize(
    "orientation, upright",
    [
        (1, CORNERS),
        (2, CORNERS[:, ::-1]),
        (3, CORNERS[::-1, ::-1]),
        (4, CORNERS[::-1]),
        (5, CORNERS.T),
        (6, np.rot90(CORNERS, -1)),
        (7, CORNERS[::-1, ::-1].T),
        (8, np.rot90(CORNERS)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "turned.png", CORNERS.repeat(4, 0).repeat(4, 1), exif=exif)
    read = read_image(path, files(48, "squash"))[..., 0]
    height, width = (48 // n for n in upright.shape)
    centres = read[height // 2 :: height, width // 2 :: width]
    assert np.abs(centres.astype(int) - upright).max() <= 2


def test_an_image_of_the_right_size_is_not_touched(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for fit in ("crop", "squash"):
        assert (read_image(saved(tmp_path / "a.png", pixels), files(8, fit)) == pixels).all()
    wide = np.concatenate([pixels[:, :3] * 0, pixels, pixels[:, :4] * 0], 1)  # 15 wide: half a pixel from the middle
    assert (read_image(saved(tmp_path / "b.png", wide), files(8, "crop")) == pixels).all()


def test_crop_keeps_shapes_and_loses_the_ends_and_squash_the_reverse(tmp_path):
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, :16], pixels[:, 32:] = (255, 0, 0), (0, 0, 255)
    pixels[:, 16:32] = (0, 255, 0)
    path = saved(tmp_path / "a.png", pixels)
    assert (read_image(path, files(8, "crop"))[:, 2:-2] == (0, 255, 0)).all()  # the filter's ends reach past the crop
    squashed = read_image(path, files(9, "squash"))
    assert (squashed[:, 0] == (255, 0, 0)).all() and (squashed[:, 4] == (0, 255, 0)).all()
    assert (squashed[:, 8] == (0, 0, 255)).all()
    tall = read_image(saved(tmp_path / "b.png", pixels.transpose(1, 0, 2)), files(8))
    assert (tall[2:-2] == (0, 255, 0)).all()


def test_making_smaller_is_antialiased(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    assert np.abs(read_image(saved(tmp_path / "a.png", stripes), files(8))[:, 1:-1].astype(int) - 127).max() <= 4


def test_what_is_transparent_lies_on_white(tmp_path):
    red = np.zeros((4, 4, 4), np.uint8)
    red[..., 0], red[2:, :, 3] = 255, 255
    red[:1, :, 3] = 51  # a fifth
    rgba = read_image(saved(tmp_path / "rgba.png", red), files(4, "crop"))
    assert (rgba[0] == (255, 204, 204)).all() and (rgba[1] == 255).all() and (rgba[2:] == (255, 0, 0)).all()
    grey = np.zeros((4, 4, 2), np.uint8)
    grey[2:, :, 1] = 255
    la = read_image(saved(tmp_path / "la.png", grey), files(4, "crop"))
    assert (la[:2] == 255).all() and (la[2:] == 0).all()
    indexed = Image.new("P", (4, 4))
    indexed.putpalette([255, 0, 0, 0, 255, 0])
    indexed.putpixel((1, 1), 1)
    indexed.save(tmp_path / "p.gif", transparency=0)
    gif = read_image(tmp_path / "p.gif", files(4, "crop"))
    assert (gif[1, 1] == (0, 255, 0)).all() and (gif[0] == 255).all()


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_grey_is_scaled(tmp_path, extension):
    pixels = np.array([[0, 257], [257 * 100 + 120, 65535]], np.uint16)
    read = read_image(saved(tmp_path / f"a.{extension}", pixels), files(2, "crop"))
    assert (read == np.array([[0, 1], [100, 255]], np.uint8)[..., None]).all()


@pytest.mark.parametrize(
    "mode, extension",
    [("L", "png"), ("1", "png"), ("P", "png"), ("CMYK", "jpg"), ("RGB", "webp"), ("RGB", "bmp"), ("RGB", "tiff")],
)
def test_other_kinds_become_rgb(tmp_path, mode, extension):
    halves = np.zeros((16, 16, 3), np.uint8)
    halves[8:] = 255
    read = read_image(saved(tmp_path / f"a.{extension}", halves, mode), files(16, "crop"))
    assert read.shape == (16, 16, 3) and (read[:6] < 8).all() and (read[10:] > 247).all()


@pytest.mark.parametrize(
    "extension, options",
    [
        ("jpg", {"quality": 95, "subsampling": 0}),
        ("png", {}),
        ("bmp", {}),
        ("webp", {"lossless": True}),
        ("webp", {"quality": 95}),
        ("gif", {}),
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
    ],
)
def test_colours_stay(tmp_path, extension, options):
    colours = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (120, 130, 140)]], np.uint8)
    path = saved(tmp_path / f"a.{extension}", colours.repeat(16, 0).repeat(16, 1), **options)
    lossy = extension == "jpg" or "quality" in options
    read = read_image(path, files(32))[8::16, 8::16].astype(int)
    assert np.abs(read - colours).max() <= (6 if lossy else 0)


@pytest.mark.parametrize("extension, options", [("jpg", {"quality": 95}), ("tif", {"compression": "tiff_lzw"})])
def test_cmyk_is_light_where_there_is_little_ink(tmp_path, extension, options):
    ink = np.array([[(0, 255, 255, 0), (255, 0, 255, 0)], [(0, 0, 0, 128), (30, 0, 200, 80)]], np.uint8)
    path = tmp_path / f"a.{extension}"
    Image.fromarray(ink.repeat(16, 0).repeat(16, 1), "CMYK").save(path, **options)
    assert extension != "jpg" or b"Adobe" in path.read_bytes()  # and so its values are stored inverted
    light = (255 - ink[..., :3].astype(int)) * (255 - ink[..., 3:].astype(int)) // 255
    assert np.abs(read_image(path, files(32))[8::16, 8::16] - light).max() <= 3


def test_16_bits_a_channel_and_a_transparent_grey(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 2, 16, 2, [struct.pack(">6H", 65535, 25700, 0, 0, 0, 65535)] * 2))
    assert (read_image(path, files(2))[0] == [(255, 100, 0), (0, 0, 255)]).all()
    path.write_bytes(png(2, 2, 16, 4, [struct.pack(">4H", 0, 65535, 0, 0)] * 2))  # grey and alpha
    assert (read_image(path, files(2))[0] == [(0, 0, 0), (255, 255, 255)]).all()
    path.write_bytes(png(2, 2, 16, 0, [struct.pack(">2H", 7, 25700)] * 2, chunk(b"tRNS", struct.pack(">H", 7))))
    assert (read_image(path, files(2))[0] == [(255, 255, 255), (100, 100, 100)]).all()
    assert (read_image(path, files(2, background="#0a141e"))[0, 0] == (10, 20, 30)).all()
    lzw = saved(tmp_path / "a.tif", np.full((4, 4), 25700, np.uint16), compression="tiff_lzw")
    assert (read_image(lzw, files(4)) == 100).all()


def test_a_transparent_value_is_on_the_scale_of_the_file(tmp_path):
    path = tmp_path / "a.png"
    for bits, row, other in ((4, b"\x83", 51), (2, b"\x90", 85)):  # two pixels: 8 and 3 of 15, 2 and 1 of 3
        clear = chunk(b"tRNS", struct.pack(">H", 2 ** (bits - 1)))
        path.write_bytes(png(2, 2, bits, 0, [row] * 2, clear))
        assert (read_image(path, files(2, background="#0a141e"))[0] == [(10, 20, 30), (other,) * 3]).all()
    row = struct.pack(">6H", 65535, 25700, 0, 0, 0, 65535)
    path.write_bytes(png(2, 2, 16, 2, [row] * 2, chunk(b"tRNS", row[:6])))
    assert (read_image(path, files(2))[0] == [(255, 255, 255), (0, 0, 255)]).all()


def test_grey_tiffs_of_12_bits_and_with_white_as_zero(tmp_path):
    path = tmp_path / "a.tif"

    def grey(bits: int, white_is_zero: bool, pixels: bytes) -> list[int]:
        known = {
            256: 2,
            257: 2,
            258: bits,
            259: 1,
            262: 0 if white_is_zero else 1,
            273: 122,
            277: 1,
            278: 2,
            279: len(pixels),
        }
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in known.items())
        path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(known)) + entries + b"\0" * 4 + pixels)
        return read_image(path, files(2))[0, :, 0].tolist()

    assert grey(16, False, struct.pack("<4H", 0, 25700, 0, 25700)) == [0, 100]
    assert grey(16, True, struct.pack("<4H", 0, 65535 - 25700, 0, 0)) == [255, 100]
    assert grey(12, False, bytes.fromhex("800fff") * 2) == [128, 255]


def test_what_is_transparent_lies_on_the_background(tmp_path):
    path = saved(tmp_path / "a.png", np.array([[(255, 0, 0, 0), (255, 0, 0, 255)]] * 2, np.uint8))
    assert (read_image(path, files(2, background="black"))[0] == [(0, 0, 0), (255, 0, 0)]).all()
    palette = Image.new("P", (2, 2))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=bytes([0, 51]))  # of each colour of the palette
    assert (read_image(tmp_path / "p.png", files(2, background="blue"))[0] == [(0, 0, 255), (0, 51, 204)]).all()
    with pytest.raises(ValueError, match="'whit' is not a colour"):
        files(2, background="whit")


def test_the_crop_is_a_share_of_the_shorter_side(tmp_path):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[4:12, 8:16] = 255
    path = saved(tmp_path / "a.png", pixels)
    assert (read_image(path, files(8, crop_pct=0.5)) == 255).all()
    assert (read_image(path, files(16))[0] == 0).all()
    assert (read_image(path, files(24, "squash", crop_pct=0.5))[0] == 0).all()


def test_the_orientation_of_a_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    halves = np.zeros((32, 64, 3), np.uint8)
    halves[:, :32] = 255
    read = read_image(saved(tmp_path / "a.jpg", halves, exif=exif), files(16))
    assert (read[:6] > 240).all() and (read[10:] < 15).all()
    path = saved(tmp_path / "b.jpg", halves, exif=b"Exif\0\0no such thing")
    assert (read_image(path, files(16))[:, :6] > 240).all()


@pytest.mark.parametrize("extension", ["gif", "webp", "tif", "png"])
def test_the_first_of_several_images(tmp_path, extension, caplog):
    path, single = tmp_path / f"a.{extension}", tmp_path / f"b.{extension}"
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    first.save(path, save_all=True, append_images=[second])
    second.save(single)
    image, facts = read_with_facts(path, files(16))
    assert np.abs(np.asarray(image).astype(int) - (255, 0, 0)).max() <= 2 and facts.several
    assert not read_with_facts(single, files(16))[1].several
    read_splits({"train": ([path, single], torch.tensor([0, 1]))}, ["a", "b"], files(8), "x")
    assert caplog.text.count("1 file holds more than one image; only the first is used: ") == 1


def test_order_layout_and_type(tmp_path):
    paths = [save_image(tmp_path / f"{i}.png", i, (8, 8)) for i in range(20)]
    images = decode(paths[::-1], files(8))[0]
    assert images.dtype == torch.uint8 and images.shape == (20, 3, 8, 8)
    for path, image in zip(paths[::-1], images):
        assert (image.permute(1, 2, 0).numpy() == np.asarray(Image.open(path))).all()
    assert decode([], files(8))[0].shape == (0, 3, 8, 8)


def test_a_photograph_with_a_preview_is_one_image(tmp_path):
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    image, facts = read_with_facts(tmp_path / "a.jpg", files(16))
    assert image.getpixel((8, 8))[0] > 250 and facts[:] == ("JPEG", "RGB", 16, 16, False)


@pytest.mark.parametrize("alpha, share", [(0, 1), (128, 128 / 255), (255, 1)])
def test_a_bmp_without_any_alpha_is_opaque(tmp_path, alpha, share):
    colours = np.random.default_rng(0).integers(0, 256, (4, 4, 3))
    pixels = np.dstack([colours[::-1, :, ::-1], np.full((4, 4), alpha)]).astype(np.uint8).tobytes()
    header = struct.pack("<IiiHHIIiiII", 124, 4, 4, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = (header + masks).ljust(124, b"\0")
    path = tmp_path / "a.bmp"
    path.write_bytes(b"BM" + struct.pack("<IHHI", 138 + len(pixels), 0, 0, 138) + info + pixels)
    assert np.abs(read_image(path, files(4)) - (colours * share + 255 * (1 - share))).max() <= 1


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 12 gives up on all of such data")
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_an_orientation_among_damaged_exif_data(tmp_path):
    """It counts, whatever else cannot be read or written again."""
    turn, text = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0), struct.pack("<HHII", 0x10E, 2, 500, 99_999)
    for entries in (turn, text + turn, turn + struct.pack("<HHII", 0x8825, 4, 1, 77_777)):
        count = len(entries) // 12
        exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + bytes(4)
        path = saved(tmp_path / "a.png", CORNERS, exif=exif)
        assert np.asarray(read_with_facts(path, files(8))[0])[..., 0].tolist() == np.rot90(CORNERS, -1).tolist()


def test_content_decides_and_not_the_name(tmp_path):
    for name, kind in (
        ("a.txt", "JPEG"),
        ("b", "PNG"),
        ("c.jpg", "GIF"),
        ("d.png", "WEBP"),
        ("e.gif", "TIFF"),
        ("f.dat", "BMP"),
    ):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name, kind)
        assert has_image(tmp_path / name) and read_with_facts(tmp_path / name, files(8))[1].format == kind
    assert format_of(b"BMW is a maker of cars and motorcycles") is None
    assert format_of(b"") is None and format_of(b"%!PS-Adobe-3.0 EPSF-3.0") == "EPS"


def test_names_of_images():
    read = ("a.jpg", "a.JPEG", "b.c.Png", "a.bmp", "a.webp", "a.tif", "a.TIFF", "a.gif", "a.heic")
    others = ("a.jp2", "a.PPM", "a.tga", "a.svg", "a.dcm", "a.nii.gz", "a.NEF", "a.jxl", "a.ico")
    assert all(map(has_image_extension, (*read, *others)))
    assert not any(map(has_image_extension, ("a.txt", "jpg", "a.jpg.part", "a.gz", "a.pdf", "Thumbs.db")))


def test_reading_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hybridmerge.data"):
        read_splits({"train": ([save_image(tmp_path / "a.png", 0)], torch.zeros(1).long())}, ["a"], files(8), "x")
    assert "reading 1 image file" in caplog.text
