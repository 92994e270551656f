"""Images in folders, one for each class."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from engine.data.arrays import RawData
from engine.data.images import few, is_image
from engine.data.reading import read_splits
from engine.data.settings import DataPath, FileSettings
from models.settings import UserError

log = logging.getLogger("hybridmerge.data")

SPLITS = ("train", "val", "test")
LAYOUT = "expected PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg and perhaps the same under PATH/val and PATH/test"


class FolderSettings(FileSettings):
    """`path` is the folder; see load_folder for what must be in it."""

    name: Literal["folder"] = "folder"
    path: DataPath = Field(description="the folder that holds a folder for each class, or train, val and test")


def load_folder(settings: FolderSettings) -> RawData:
    """Reads DIR/CLASS/**, or DIR/train/CLASS/** and, if they are there, DIR/val and DIR/test in the same way.

    A class is the name of its folder; classes are in the order of sorted names, as in torchvision's ImageFolder.
    Images are told by their extension, at any depth below the class; other files are counted in a warning, names that
    begin with a dot are passed over. A class may be a link to a folder elsewhere; links to folders inside a class are
    not followed, so that no image is met twice. A folder `test` without class folders is an unlabelled one: it is not
    used, and a warning says so.

    Returns:
        Images, uint8 (N, 3, size, size), and labels, int64 (N,), in the order of classes and file names.

    Raises:
        UserError: no such folder, none inside, a class without images, a single class, a class that only val or test
            has; or unreadable images (see read_images).
    """
    root, where = Path(settings.path), f"data.path = {settings.path!r}"
    if not root.is_dir():
        raise UserError(f"{where}: {'is a file' if root.exists() else 'not found'}; {LAYOUT}")
    roots = _split_folders(root, where)
    files = {split: _class_files(folder, where) for split, folder in roots.items()}
    classes = _classes(files["train"], where)
    samples = {}
    for split, by_class in files.items():
        _compare(by_class, classes, split, where)
        paths = [path for name in classes for path in by_class.get(name, [])]
        labels = [label for label, name in enumerate(classes) for _ in by_class.get(name, [])]
        samples[split] = (paths, torch.tensor(labels, dtype=torch.int64))
    return read_splits(samples, classes, settings, where)


def _split_folders(root: Path, where: str) -> dict[str, Path]:
    """The folder of each split that is there; the whole is "train" where the classes lie directly in `root`."""
    names = [folder.name for folder in _folders(root, where)]
    parted = "train" in names and bool(_folders(root / "train", where))
    if not parted:
        if not set(names) - set(SPLITS):
            raise UserError(f"{where}: no class folders in it; {LAYOUT}")
        return {"train": root}
    others = [name for name in names if name not in SPLITS]
    if others:
        log.warning("%s: of its folders only train, val and test are used, not %s", where, few(others))
    roots = {split: root / split for split in SPLITS if split in names}
    for split in [split for split in roots if not _folders(roots[split], where)]:
        if split == "val":
            raise UserError(f"{where}: no class folders in val; {LAYOUT}")
        log.warning("%s: no class folders in %s: it has no labels and is not used", where, split)
        del roots[split]
    return roots


def _class_files(folder: Path, where: str) -> dict[str, list[Path]]:
    """The images of each class; what is passed over is counted in warnings."""
    found, strangers = {}, Counter()
    for class_folder in _folders(folder, where):
        found[class_folder.name] = []
        for path in _walk(class_folder, where):
            if is_image(path.name):
                found[class_folder.name].append(path)
            else:
                strangers[path.suffix.lower() or "no extension"] += 1
    if strangers:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in strangers.most_common(5))
        log.warning("%s: %d files are no images by their names and are ignored: %s", where, strangers.total(), kinds)
    loose = sum(is_image(path.name) for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    if loose:
        log.warning("%s: %d images lie in %s itself, in no class folder, and are ignored", where, loose, folder.name)
    return found


def _folders(folder: Path, where: str) -> list[Path]:
    """The visible folders in a folder, sorted by name; a link back to it or to what holds it is none of them."""
    try:
        inside = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir()]
    except OSError as error:
        raise _unreadable(error, where) from None
    here = folder.resolve()
    return sorted((path for path in inside if not here.is_relative_to(path.resolve())), key=lambda path: path.name)


def _walk(folder: Path, where: str) -> list[Path]:
    """The visible files in a folder at any depth, sorted by path."""

    def refuse(error: OSError) -> None:
        raise _unreadable(error, where)

    paths = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(paths, key=lambda path: path.parts)


def _unreadable(error: OSError, where: str) -> UserError:
    return UserError(f"{where}: {error.filename} cannot be read ({error.strerror}); make it readable or move it away")


def _classes(by_class: dict[str, list[Path]], where: str) -> list[str]:
    """The names of the training classes, sorted."""
    empty = [repr(name) for name, paths in by_class.items() if not paths]
    if empty:
        raise UserError(f"{where}: {len(empty)} class folders hold no image: {few(empty)}; fill or remove them")
    if len(by_class) == 1:
        raise UserError(f"{where}: a single class, {next(iter(by_class))!r}; a classifier needs two or more; {LAYOUT}")
    return sorted(by_class)


def _compare(by_class: dict[str, list[Path]], classes: list[str], split: str, where: str) -> None:
    """Refuses classes that only this split has, and names in a warning those that it lacks."""
    strange = [repr(name) for name, paths in by_class.items() if paths and name not in classes]
    if strange:
        raise UserError(f"{where}: {split} has classes that train has not: {few(strange)}; give them the same names")
    lacking = [repr(name) for name in classes if not by_class.get(name)]
    if lacking:
        log.warning("%s: %s has no images of %d classes: %s", where, split, len(lacking), few(lacking))
