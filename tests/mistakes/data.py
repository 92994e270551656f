"""Mistakes in folders of images, and image files that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.data.formats.tiff import GREY, RGB
from engine.data.shards.packing import pack
from engine.data.sources.folder import FolderSettings, find_folder
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


def _shards(folder: Path) -> Path:
    """Eight images in shards of one or two."""
    source = find_folder(FolderSettings(path=str(_classes(folder)), size=8))
    pack(source, folder / "shards", shard_bytes=500)
    return folder / "shards"


def _without_a_shard(folder: Path) -> None:
    (_shards(folder) / "train-000001.tar").unlink()


def _half_a_shard(folder: Path) -> None:
    shard = _shards(folder) / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:700])


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
    Mistake(
        "A split under two names",
        "tools/data.py check brain",
        "data.path = 'brain': 'Training' and 'train' are names of one split, train; keep one, and move the other away",
        _folders("brain/train/tumor", "brain/train/none", "brain/Training/tumor", "brain/Training/none"),
    ),
    Mistake(
        "Folds instead of classes",
        "tools/data.py check pets",
        "data.path = 'pets': the folders 'fold_a', 'fold_b' hold no images themselves, but folders of the same names: "
        "'cat', 'dog'; if those are the classes, give one of the former as the path, or call them train, val and test; "
        "if 'fold_a', 'fold_b' are the classes, set data.layout=classes",
        _folders("pets/fold_a/cat", "pets/fold_a/dog", "pets/fold_b/cat", "pets/fold_b/dog"),
    ),
    Mistake(
        "Splits under names that are not theirs alone",
        "tools/data.py check scenes",
        "data.path = 'scenes': the folders 'seg_train', 'seg_test' seem to be splits; call the folders with the "
        "classes in them train, val and test, and move others away; if they are classes, set data.layout=classes",
        _folders("scenes/seg_train/seg_train/sea", "scenes/seg_train/seg_train/street", "scenes/seg_test/seg_test/sea"),
    ),
    Mistake(
        "An archive that is not unpacked",
        "tools/data.py check scenes.zip",
        "scenes.zip: an archive; unpack it, and give the folder or table that was in it",
        lambda folder: (folder / "scenes.zip").touch(),
    ),
    Mistake(
        "A folder around the classes",
        "tools/data.py check archive",
        "data.path = 'archive': its folder 'dataset' holds no images itself, but the folders 'cat', 'dog'; give "
        "'archive/dataset' as the path",
        _folders("archive/dataset/cat", "archive/dataset/dog"),
    ),
    Mistake(
        "Test images beside the classes",
        "tools/data.py check pets",
        "data.path = 'pets': 'test' may be a split or a class beside 'cat', 'dog'; move it elsewhere, or the classes "
        "into a folder train, or set data.layout=classes",
        _folders("pets/cat", "pets/dog", "pets/test"),
    ),
    Mistake(
        "Test images without training images",
        "tools/data.py check brain",
        "data.path = 'brain': no training images, only 'Testing'; put a folder train beside it, give it as the path to "
        "train on it, or set data.layout=classes if it is a class; expected ...",
        _folders("brain/Testing/tumor", "brain/Testing/none"),
    ),
    Mistake(
        "A class that is called train",
        "tools/data.py check vehicles",
        "'train' is taken for a class beside 'car'; if it holds the training images of all classes, put them into "
        "folders of their own",
        _folders("vehicles/car", "vehicles/train"),
        code=0,
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
    Mistake(
        "A shard that was not copied",
        "tools/data.py check shards",
        "data.path = 'shards': training cannot start: 1 shard missing; see above",
        _without_a_shard,
    ),
    Mistake(
        "A shard that was not copied to its end",
        "tools/data.py check shards",
        "data.path = 'shards': training cannot start: 1 shard is damaged; see above",
        _half_a_shard,
    ),
    Mistake(
        "Shards whose labels have another extension",
        "tools/data.py check shards data.label=txt",
        "data.path = 'shards': 8 images have no label beside them: ...; data.label says which extension labels have, "
        "such as json",
        _shards,
    ),
]
