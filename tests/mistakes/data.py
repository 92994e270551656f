"""Mistakes in folders of images, and image files that cannot be read."""

from __future__ import annotations

from pathlib import Path

from tests.engine.data.conftest import save_image
from tests.mistakes.mistake import Mistake


def _empty_class(folder: Path) -> None:
    for i in range(4):
        save_image(folder / "images" / "ant" / f"{i}.png", i)
        save_image(folder / "images" / "bee" / f"{i}.png", i + 4)
    (folder / "images" / "cicada").mkdir()


MISTAKES: list[Mistake] = [
    Mistake(
        "A class without images",
        "tools/data.py check images",
        "data.path = 'images': training cannot start: 1 class folders hold no images; see above",
        _empty_class,
    )
]
