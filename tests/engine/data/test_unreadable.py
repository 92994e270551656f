"""Image files that cannot be read, or are too large: which are refused, and the words for it."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from engine.data.images import has_image, read_with_facts
from engine.data.reading import decode
from models.settings import UserError
from tests.engine.data.conftest import files, save_image
from tests.engine.data.image_files import CORNERS, error_of, png, saved, why


def test_unreadable_files_are_counted_and_the_first_named(tmp_path, recwarn):
    whole = save_image(tmp_path / "whole.jpg", 0, (64, 64))
    cut, text, empty, later = (tmp_path / name for name in ("cut.jpg", "text.png", "empty.gif", "later.png"))
    cut.write_bytes(whole.read_bytes()[:-300])
    text.write_text("<html>not found</html>")
    empty.touch()
    line = error_of([whole, cut, text, whole, empty, later])
    assert line.startswith("data.path = 'x': 4 of 6 images cannot be read: ") and line.endswith(
        ", ...; repair them, or set data.on_error=skip to train without them"
    )
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


def test_a_bomb_is_not_decoded(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(14_000, 14_000, 1, 0, [bytes(1750)] * 14_000))
    assert path.stat().st_size < 30_000
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: pytest.fail("it was decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert why(path) == "14000 x 14000 pixels, more than data.max_pixels"


def test_our_limit_of_pixels_is_the_only_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = save_image(tmp_path / "a.png", 0, (9, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_with_facts(path, files(8))[1][:4] == ("PNG", "RGB", 9, 8)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_limit_above_the_one_of_pillow(tmp_path):
    assert Image.MAX_IMAGE_PIXELS is None, "Pillow would refuse TIFF, WebP and GIF files that data.max_pixels allows"


def test_a_jpeg_of_12_bits(tmp_path):
    path = saved(tmp_path / "a.jpg", CORNERS)
    body = path.read_bytes()
    at = body.index(b"\xff\xc0") + 4
    path.write_bytes(body[:at] + b"\x0c" + body[at + 1 :])
    assert why(path) == "cannot handle 12-bit layers; save it with 8 bits, in grey or RGB"


@pytest.mark.parametrize("brand, kind", [(b"heic", "HEIC"), (b"mif1", "HEIC"), (b"avif", "AVIF")])
@pytest.mark.parametrize("name", ["a.jpg", "a.heic", "a"])
def test_other_cameras_formats_are_refused_with_a_hint(tmp_path, brand, kind, name):
    path = tmp_path / name
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(20))
    assert has_image(path) and why(path) == f"{kind}; convert it to JPEG or PNG"


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")  # opened, it would wait for a writer for ever
    (tmp_path / "broken.jpg").symlink_to("gone.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    reasons = {name: why(tmp_path / f"{name}.jpg") for name in ("pipe", "folder", "broken", "loop", "empty")}
    assert reasons["pipe"] == reasons["folder"] == "not a file" and reasons["empty"] == "empty file"
    assert reasons["broken"] == "broken link to 'gone.jpg'" and reasons["loop"].startswith("Too many levels of symb")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_headers(tmp_path):
    for name, body in (
        ("a.tif", b"II*\0\x08\0\0\0"),
        ("b.png", b"\x89PNG\r\n\x1a\nnothing"),
        ("c.gif", b"GIF89a"),
        ("d.jpg", b"\xff\xd8\xff\xe0"),
        ("e.webp", b"RIFF\0\0\0\0WEBPVP8 "),
    ):
        (tmp_path / name).write_bytes(body)
        said = why(tmp_path / name)
        assert 0 < len(said) < 80 and "buffer" not in said


@pytest.mark.parametrize("pixels", [np.full((4, 4), 70_000, np.int32), np.zeros((4, 4), np.float32)])
def test_pixels_of_other_types_are_refused(tmp_path, pixels):
    assert "save it with 8 or 16 bits" in error_of([saved(tmp_path / "a.tif", pixels)])


def test_a_file_is_opened_as_an_image_or_not_at_all(tmp_path):
    path = tmp_path / "script.jpg"
    Image.new("RGB", (4, 4)).save(path, "EPS")  # PIL would run a PostScript interpreter on it
    assert "script.jpg' (EPS; convert it to JPEG or PNG)" in error_of([path])


def test_more_images_than_memory_holds(tmp_path):
    said = r"data: 1000000 images .* GB of memory.*data.cache=none, or a smaller data.size"
    with pytest.raises(UserError, match=said):
        decode([tmp_path / "a.png"] * 1_000_000, files(16384))
