"""The dataset `folder`: a folder of images with a subfolder for each class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from engine.data.check.findings import Finding, Source
from engine.data.names import alike, differing, nfc, on_disk, twins
from engine.data.settings import DataPath, FileSettings
from engine.data.sources.layout import BY_SETTING, IN_SPLITS, LAYOUT, refuse_nested, split_folders
from engine.data.sources.scan import Ignored, class_files
from engine.wording import counted
from models.settings import UserError


class FolderSettings(FileSettings):
    """`path` is the folder; see find_folder for its layout."""

    name: Literal["folder"] = "folder"
    path: DataPath = Field(description="the folder that holds a folder for each class, or train, val and test")
    layout: Literal["auto", "classes", "splits"] = Field(
        "auto",
        description="classes: the folders in `path` are the classes, whatever their names are and whatever they hold; "
        "splits: they are train, val and test, and the folders in these are the classes; auto: by their names, and "
        "where that is not clear training asks",
    )


def find_folder(settings: FolderSettings) -> Source:
    """Finds the images in DIR/CLASS/**, or in DIR/train/CLASS/** and, if they exist, DIR/val and DIR/test.

    Splits may be spelled in other ways, as in Training and Test_set; see `split_folders` for when folders are splits.

    The class of an image is the name of its folder. Classes are sorted by name as text (1, 10, 2), as in torchvision's
    ImageFolder. Images may lie at any depth below the folder of their class. A file is an image if its extension says
    so or its content begins like one; other files are counted in a warning. Names that begin with a dot and leftovers
    of storage systems, such as @eaDir, are ignored.
    Names are compared and sorted in Unicode's composed form, NFC, so that the order is the same on every system.
    The folder of a class may be a link; links to folders inside a class are not followed, so that no image is found
    twice. A folder `test` without class folders is assumed to hold unlabelled images: it is not used, with a warning.

    Returns:
        Files and labels, int64 (N,), in the order of classes and file names. A class without images, a single class,
        and classes that only val or test has are among the findings.

    Raises:
        UserError: no such folder, no class folders in it, a folder that cannot be read, or it is not clear which
            folders are the classes.
    """
    root, where, ignored = on_disk(Path(settings.path)), f"data.path = {settings.path!r}", Ignored()
    if not os.path.isdir(root):
        raise UserError(f"{where}: {'is a file' if os.path.exists(root) else 'not found'}; {LAYOUT}")
    roots, findings = split_folders(root, where, settings.layout)
    files = {split: class_files(folder, where, ignored) for split, folder in roots.items()}
    if settings.layout == "auto":
        answers = BY_SETTING if roots["train"] == root else IN_SPLITS
        for split, folder in roots.items():
            refuse_nested(files[split], folder, root, where, answers)
    classes = sorted(files["train"], key=nfc)
    findings += check_classes(files["train"], LAYOUT)
    samples = {}
    for split, found in files.items():
        by_class = _named_as(found, classes)
        findings += _compare(by_class, classes, split)
        samples[split] = as_samples(by_class, classes)
    return Source(where, classes, samples, findings=findings + ignored.findings(), notes=ignored.notes())


def check_classes(by_class: dict[str, list[Path]], layout: str) -> list[Finding]:
    """Returns errors about class folders without images, a single class, and names that are the same or not UTF-8."""
    findings = []
    same = tuple(map(differing, twins(by_class)))
    if same:
        text = counted(len(same), "class has", "classes have")
        text += " two folders, whose names differ only in Unicode's form (NFC, NFD)"
        findings.append(Finding(text, same, "move their images into one, or rename one", error=True))
    empty = sorted(repr(name) for name, paths in by_class.items() if not paths)
    if empty:
        text = f"{counted(len(empty), 'class folder holds', 'class folders hold')} no images"
        findings.append(Finding(text, tuple(empty), "fill or remove them", error=True))
    if len(by_class) == 1:
        only = next(iter(by_class))
        fix = f"a classifier needs two or more; {layout}"
        findings.append(Finding(f"a single class, {only!r}", fix=fix, error=True))
    odd = sorted(repr(name) for name in by_class if name != name.encode(errors="ignore").decode())
    if odd:
        text = f"{counted(len(odd), 'class folder has a name that is', 'class folders have names that are')} not UTF-8"
        findings.append(Finding(text, tuple(odd), "rename them", error=True))
    return findings


def _named_as(by_class: dict[str, list[Path]], classes: list[str]) -> dict[str, list[Path]]:
    """Returns the images of each class of a split under the name that the training images' folder has."""
    spelling, named = {nfc(name): name for name in classes}, {}
    for name, paths in by_class.items():
        named.setdefault(spelling.get(nfc(name), name), []).extend(paths)
    return named


def as_samples(by_class: dict[str, list[Path]], classes: list[str]) -> tuple[list[Path], torch.Tensor]:
    """Returns files and labels, int64 (N,), in the order of the classes."""
    paths = [path for name in classes for path in by_class.get(name, [])]
    labels = [label for label, name in enumerate(classes) for _ in by_class.get(name, [])]
    return paths, torch.tensor(labels, dtype=torch.int64)


def _compare(by_class: dict[str, list[Path]], classes: list[str], split: str) -> list[Finding]:
    """Returns an error about classes that only this split has, and a warning about those that it lacks."""
    findings = []
    strange = sorted(repr(name) for name, paths in by_class.items() if paths and name not in classes)
    if strange:
        text = f"{split} has classes that train does not have"
        unlabelled = split == "test" and not set(map(alike, by_class)) & set(map(alike, classes))
        fix = "give them the same names" + ", or set data.name=kaggle if test has no labels" * unlabelled
        findings.append(Finding(text, tuple(strange), fix, error=True))
    lacking = [repr(name) for name in classes if not by_class.get(name)]
    if lacking and split != "train":
        findings.append(Finding(f"{split} has no images of {counted(len(lacking), 'class')}", tuple(lacking)))
    return findings
