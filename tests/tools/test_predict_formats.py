"""Every image of a folder has a row, or the error and the log name it: none is left out without a word."""

from __future__ import annotations

import csv
import sys

import pytest

from engine.cli import cli
from tests.tools.colours import COLOURS, colour_run, save_colour
from tools import predict as tool

READ = ("1.jpg", "2.jp2", "3.ppm", "4.tga")
NOT_READ = {
    "5.ico": (b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0\x63\0\0\0\x16\0\0\0" + bytes(99), "ICO"),
    "6.jxl": (b"\xff\x0a\xfa", "JPEG XL"),
}

pytestmark = pytest.mark.precision


def test_images_of_all_formats(tmp_path, monkeypatch, capsys, caplog):
    run, folder, out = colour_run(tmp_path / "run"), tmp_path / "test", tmp_path / "out.csv"
    labels = dict(zip(READ, [*COLOURS, "1"]))
    for name, label in labels.items():
        save_colour(folder / name, COLOURS[label])
    for name, (body, _) in NOT_READ.items():
        (folder / name).write_bytes(body)
    (folder / "notes.txt").write_text("of the camera")
    argv = ["predict.py", "--run", run, "--images", folder, "--out", out]
    monkeypatch.setattr(sys, "argv", list(map(str, argv)))
    assert cli(tool.main) == 2 and not out.exists()
    said = capsys.readouterr().err
    assert "2 of 6 images cannot be read" in said
    for name, (_, kind) in NOT_READ.items():
        assert f"{name}' ({kind}; convert it to JPEG or PNG)" in said
        (folder / name).unlink()
    assert cli(tool.main) == 0
    with open(out, newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["ID", "Label"], *map(list, labels.items())]
    assert "1 file is not an image and is ignored: 1 .txt" in caplog.text
