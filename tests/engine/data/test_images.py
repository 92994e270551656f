import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.images import is_image, read_image
from engine.data.reading import decode, read_splits
from models.settings import UserError
from tests.engine.data.conftest import files, save_image

CORNERS = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40  # every turn and mirroring of it differs


def saved(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def error_of(paths: list[Path]) -> str:
    """The one line that a user sees."""
    with pytest.raises(UserError) as caught:
        read_splits({"train": (paths, torch.zeros(len(paths), dtype=torch.int64))}, ["a"], files(8), "data.path = 'x'",
                    "repair them")  # fmt: skip
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


@pytest.mark.parametrize("mode, extension", [("L", "png"), ("1", "png"), ("P", "png"), ("CMYK", "jpg"), ("RGB", "webp"),
                                             ("RGB", "bmp"), ("RGB", "tiff")])
def test_other_kinds_become_rgb(tmp_path, mode, extension):
    halves = np.zeros((16, 16, 3), np.uint8)
    halves[8:] = 255
    read = read_image(saved(tmp_path / f"a.{extension}", halves, mode), files(16, "crop"))
    assert read.shape == (16, 16, 3) and (read[:6] < 8).all() and (read[10:] > 247).all()


def test_order_layout_and_type(tmp_path):
    paths = [save_image(tmp_path / f"{i}.png", i, (8, 8)) for i in range(20)]
    images = decode(paths[::-1], files(8))[0]
    assert images.dtype == torch.uint8 and images.shape == (20, 3, 8, 8)
    for path, image in zip(paths[::-1], images):
        assert (image.permute(1, 2, 0).numpy() == np.asarray(Image.open(path))).all()
    assert decode([], files(8))[0].shape == (0, 3, 8, 8)


def test_unreadable_files_are_counted_and_the_first_named(tmp_path, recwarn):
    whole = save_image(tmp_path / "whole.jpg", 0, (64, 64))
    cut, text, empty, later = (tmp_path / name for name in ("cut.jpg", "text.png", "empty.gif", "later.png"))
    cut.write_bytes(whole.read_bytes()[:-300])
    text.write_text("<html>not found</html>")
    empty.touch()
    line = error_of([whole, cut, text, whole, empty, later])
    assert line.startswith("data.path = 'x': 4 of 6 images cannot be read: ") and line.endswith(", ...; repair them")
    assert "cut.jpg' (image file is truncated" in line and "text.png' (not JPEG, PNG" in line
    assert "whole" not in line and "later" not in line
    assert "(No such file or directory)" in error_of([later])


def test_more_pixels_than_the_limit_are_refused_by_the_header(tmp_path):
    path = save_image(tmp_path / "large.png", 0, (9, 8))
    path.write_bytes(path.read_bytes()[:60])  # the header and no pixel
    _, bad = decode([path], files(8, max_pixels=71))
    assert bad == {0: "9 x 8 pixels, more than data.max_pixels"}
    whole = save_image(tmp_path / "whole.png", 0, (9, 8))
    assert decode([whole], files(8, max_pixels=72))[1] == {}


@pytest.mark.parametrize("pixels", [np.full((4, 4), 70_000, np.int32), np.zeros((4, 4), np.float32)])
def test_pixels_of_other_types_are_refused(tmp_path, pixels):
    assert "save it with 8 or 16 bits" in error_of([saved(tmp_path / "a.tif", pixels)])


def test_a_file_is_opened_as_an_image_or_not_at_all(tmp_path):
    path = tmp_path / "script.jpg"
    Image.new("RGB", (4, 4)).save(path, "EPS")  # PIL would run a PostScript interpreter on it
    assert "script.jpg' (not JPEG" in error_of([path])


def test_more_images_than_memory_holds(tmp_path):
    with pytest.raises(UserError, match=r"data.path = 'x': 1000000 images .* GB of memory.*data.cache=none, or data.size to less"):
        decode([tmp_path / "a.png"] * 1_000_000, files(16384), "data.path = 'x'")


def test_names_of_images():
    assert all(map(is_image, ("a.jpg", "a.JPEG", "b.c.Png", "a.bmp", "a.webp", "a.tif", "a.TIFF", "a.gif")))
    assert not any(map(is_image, ("a.txt", "jpg", "a.jpg.part", "a.svg", "Thumbs.db")))


def test_reading_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hybridmerge.data"):
        read_splits({"train": ([save_image(tmp_path / "a.png", 0)], torch.zeros(1).long())}, ["a"], files(8), "x")
    assert "reading 1 image files" in caplog.text
