"""The README's five commands for a folder of images, run in order on images that the test draws."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.settings import UserError
from tests.docs.commands import blocks, commands
from tests.paths import ROOT

SMALL_FOLDER = "train.batch_size=8"  # what the README says that a small folder needs
# Replaces the download by random weights, and makes the run short.
SHORT = ["model.weights=null", "model.img_size=32", "train.epochs=1", "device=cpu", "threads=1"]


def draw_images(folder: Path) -> None:
    """Writes twelve images of each of three classes, and one without a label."""
    draw = np.random.default_rng(0)
    for level, name in enumerate(("oak", "birch", "pine")):
        (folder / "my_images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = draw.integers(70 * level, 70 * level + 60, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "my_images" / name / f"{i}.png")
    Image.fromarray(pixels).save(folder / "photo.jpg")


def test_five_commands(tmp_path, monkeypatch, capsys):
    block = next(text for text in blocks(ROOT / "README.md", "") if "tools/data.py check my_images" in text)
    (tmp_path / "shell").mkdir()
    five = commands(block, tmp_path / "shell")
    assert [tool for tool, *_ in five] == ["data.py", "train.py", "data.py", "predict.py", "compare.py"]
    draw_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    train = importlib.import_module("tools.train").main
    with pytest.raises(
        UserError, match="train.batch_size = 32: there are only 27 training images; set it to 27 or less"
    ):
        train([*five[1][1:], *SHORT])
    assert f"`{SMALL_FOLDER}`" in (ROOT / "README.md").read_text()
    train([*five[1][1:], *SHORT, SMALL_FOLDER, "name=another", "seed=1"])
    for tool, *arguments in five:
        configured = "--cfg" in arguments
        importlib.import_module(f"tools.{tool[:-3]}").main(
            [*arguments, *([*SHORT, SMALL_FOLDER] if configured else [])]
        )
    rows = (tmp_path / "predictions.csv").read_text().splitlines()
    assert len(rows) == 2 and rows[1].split(",")[1] in {"oak", "birch", "pine"}
    assert "resnet18" in capsys.readouterr().out
