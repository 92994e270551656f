"""Photographs that packages bring along, and files that are not photographs."""

from __future__ import annotations

import pytest
from PIL import Image

from engine.data import FileSettings
from engine.figures.merge_picture import read_photographs
from engine.figures.photographs import PHOTOGRAPHS, credit_line, path_of
from models.settings import UserError


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_at_hand(name):
    with Image.open(path_of(name)) as image:
        assert min(image.size) > 400
    assert read_photographs([name], FileSettings(size=32)).float().std() > 20
    assert PHOTOGRAPHS[name].credit in credit_line([name, "mine.jpg", name])
    assert credit_line(["mine.jpg"]) == ""


def test_what_is_no_image_is_refused(tmp_path):
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    for name, content in (("text.jpg", b"hello"), ("empty.jpg", b""), ("half.png", whole.read_bytes()[:2000])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: cannot be read \(.*\); give a JPEG or PNG file"):
            read_photographs([str(whole), str(tmp_path / name)], FileSettings(size=32))
    with pytest.raises(UserError, match=r"chian: no such image file.*did you mean china\?"):
        path_of("chian")
