"""Mistakes in folders of images, and image files that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.data.formats.tiff import GREY, RGB
from tests.engine.data.conftest import save_image
from tests.engine.data.formats.tiff_files import write_tiff
from tests.mistakes.mistake import Mistake


def _empty_class(folder: Path) -> None:
    for i in range(4):
        save_image(folder / "images" / "ant" / f"{i}.png", i)
        save_image(folder / "images" / "bee" / f"{i}.png", i + 4)
    (folder / "images" / "cicada").mkdir()


def _classes(folder: Path) -> Path:
    """Two classes of four images, in "images"."""
    for i in range(4):
        save_image(folder / "images" / "ant" / f"{i}.png", i)
        save_image(folder / "images" / "bee" / f"{i}.png", i + 4)
    return folder / "images"


def _folders(*names: str) -> Callable[[Path], None]:
    """Two images in each folder, given by its path."""

    def make(folder: Path) -> None:
        for i, name in enumerate(names):
            for j in range(2):
                save_image(folder / name / f"{j}.png", 2 * i + j)

    return make


def _many_bands(folder: Path) -> None:
    write_tiff(_classes(folder) / "ant" / "field.tif", np.zeros((4, 4, 13), np.uint16), GREY, bits=16)


def _signed(folder: Path) -> None:
    extra = ((339, "H", [2]),)
    write_tiff(_classes(folder) / "ant" / "scan.tif", np.zeros((4, 4, 1), np.int16), GREY, bits=16, extra=extra)


def _phone(folder: Path) -> None:
    (_classes(folder) / "bee" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(16))


def _raw(folder: Path) -> None:
    write_tiff(_classes(folder) / "bee" / "DSC_1.NEF", np.zeros((4, 4, 3), np.uint8), RGB)


def _bomb(folder: Path) -> None:
    (_classes(folder) / "bee" / "map.pgm").write_bytes(b"P5 60000 60000 255\n")


def _unreadable(title: str, file: str, why: str, make: Callable[[Path], object]) -> Mistake:
    """An image, among nine, that cannot be read."""
    return Mistake(
        title,
        "tools/train.py --cfg digits/hybrid data.name=folder data.path=images",
        f"data.path = 'images': 1 of 9 images cannot be read: 'images/{file}' ({why}); repair or delete them, or set "
        "data.on_error=skip to train without them",
        make,
    )


def _lopsided(folder: Path) -> None:
    for i in range(12):
        save_image(folder / "images" / ("mole" if i < 2 else "skin") / f"{i}.png", i)


def _two_forms(folder: Path) -> None:
    for seed, name in enumerate(("caf\u00e9", "cafe\u0301", "tea")):
        save_image(folder / "images" / name / "1.png", seed)


def _two_cases(folder: Path) -> None:
    for seed, name in enumerate(("Cat", "cat", "dog")):
        save_image(folder / "images" / name / "1.png", seed)


MISTAKES: list[Mistake] = [
    Mistake(
        "Two class folders of one name in different bytes, as after unpacking an archive from macOS over a copy",
        "tools/train.py --cfg digits/hybrid data.name=folder data.path=images",
        "data.path = 'images': 1 class has two folders, whose names differ only in Unicode's form (NFC, NFD): "
        "'cafe\\u0301' and 'caf\\xe9'; move their images into one, or rename one",
        _two_forms,
    ),
    Mistake(
        "Two classes whose names differ only in case",
        "tools/data.py check images",
        "warning: 1 class name is spelled in several ways; merge the folders or labels that are one class",
        _two_cases,
        code=0,
    ),
    Mistake(
        "Classes of unequal size",
        "tools/data.py check images",
        "note: classes are unequal: 2 to 10 training images; look at balanced accuracy and at the worst class; "
        "train.class_weights=balanced or train.sampling=balanced makes rare ones count more",
        _lopsided,
        code=0,
    ),
    Mistake(
        "A class without images",
        "tools/data.py check images",
        "data.path = 'images': training cannot start: 1 class folder holds no images; see above",
        _empty_class,
    ),
    _unreadable("A photograph in a phone's format", "bee/IMG_1.HEIC", "HEIC; convert it to JPEG or PNG", _phone),
    _unreadable("A camera's raw file", "bee/DSC_1.NEF", "camera raw; convert it to JPEG or PNG", _raw),
    _unreadable("A TIFF file with many bands", "ant/field.tif", "13 bands; save it as grey or RGB", _many_bands),
    _unreadable(
        "A TIFF file with signed values",
        "ant/scan.tif",
        "signed 16-bit pixels; save it with 8 or 16 bits, without a sign",
        _signed,
    ),
    _unreadable(
        "An image of billions of pixels", "bee/map.pgm", "60000 x 60000 pixels, more than data.max_pixels", _bomb
    ),
]
