"""The dataset `folder`: a folder of images with a subfolder for each class."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from engine.data.check.findings import Finding, Source
from engine.data.formats import is_image
from engine.data.images import has_image, reason
from engine.data.names import by_name, differing, nfc, on_disk, twins
from engine.data.settings import DataPath, FileSettings
from engine.wording import few
from models.settings import UserError

SPLITS = ("train", "val", "test")
LAYOUT = "expected PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg and optionally the same in PATH/val and PATH/test"


class FolderSettings(FileSettings):
    """`path` is the folder; see find_folder for its layout."""

    name: Literal["folder"] = "folder"
    path: DataPath = Field(description="the folder that holds a folder for each class, or train, val and test")


def find_folder(settings: FolderSettings) -> Source:
    """Finds the images in DIR/CLASS/**, or in DIR/train/CLASS/** and, if they exist, DIR/val and DIR/test.

    The class of an image is the name of its folder. Classes are sorted by name as text (1, 10, 2), as in torchvision's
    ImageFolder. Images may lie at any depth below the folder of their class. A file is an image if its extension says
    so or its content begins like one; other files are counted in a warning. Names that begin with a dot are ignored.
    Names are compared and sorted in Unicode's composed form, NFC, so that the order is the same on every system.
    The folder of a class may be a link; links to folders inside a class are not followed, so that no image is found
    twice. A folder `test` without class folders is assumed to hold unlabelled images: it is not used, with a warning.

    Returns:
        Files and labels, int64 (N,), in the order of classes and file names. A class without images, a single class,
        and classes that only val or test has are among the findings.

    Raises:
        UserError: no such folder, no class folders in it, or a folder that cannot be read.
    """
    root, where, ignored = on_disk(Path(settings.path)), f"data.path = {settings.path!r}", Ignored()
    if not os.path.isdir(root):
        raise UserError(f"{where}: {'is a file' if os.path.exists(root) else 'not found'}; {LAYOUT}")
    roots, findings = _split_folders(root, where)
    files = {split: class_files(folder, where, ignored) for split, folder in roots.items()}
    classes = sorted(files["train"], key=nfc)
    findings += check_classes(files["train"], LAYOUT)
    samples = {}
    for split, found in files.items():
        by_class = _named_as(found, classes)
        findings += _compare(by_class, classes, split)
        samples[split] = as_samples(by_class, classes)
    return Source(where, classes, samples, findings=findings + ignored.findings(), notes=ignored.notes())


@dataclass
class Ignored:
    """Files and links that were ignored in folders, for warnings and notes."""

    other_files: Counter[str] = field(default_factory=Counter)  # by extension: files that are not images
    hidden: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)  # images outside class folders
    broken: list[str] = field(default_factory=list)  # links to nothing, or to themselves
    links: list[str] = field(default_factory=list)  # links to folders, which are not followed
    closed: list[str] = field(default_factory=list)  # files that cannot be opened, without an image's extension

    def is_image(self, path: Path) -> bool:
        """Returns whether a file is read as an image; records one that is not."""
        if is_image(path.name):
            return True
        try:
            if has_image(path):
                return True
            self.other_files[path.suffix.lower() or "no extension"] += 1
        except (OSError, ValueError) as error:
            if path.is_symlink() and not path.exists():
                self.broken.append(repr(str(path)))
            else:
                self.closed.append(f"{str(path)!r} ({reason(error)})")
        return False

    def findings(self) -> list[Finding]:
        """Returns a warning for each kind of ignored entry."""
        kinds = tuple(
            f"{count} {suffix if suffix.isprintable() else repr(suffix)}"
            for suffix, count in self.other_files.most_common()
        )
        groups = (
            (self.other_files.total(), "files are not images and are ignored", kinds, ""),
            (len(self.loose), "images lie outside class folders and are ignored", self.loose, "move them into one"),
            (len(self.broken), "broken links are ignored", self.broken, "repair or delete them"),
            (len(self.links), "links to folders are not followed", self.links, "move them up, or delete them"),
            (len(self.closed), "files cannot be opened and are ignored", self.closed, ""),
        )
        return [Finding(f"{count} {text}", tuple(items), fix) for count, text, items, fix in groups if count]

    def notes(self) -> list[str]:
        """Returns a note on names that were ignored because they begin with a dot."""
        return [f"{len(self.hidden)} hidden names are ignored: {few(self.hidden)}"] if self.hidden else []


def class_files(folder: Path, where: str, ignored: Ignored) -> dict[str, list[Path]]:
    """Returns the images of each class folder in a folder."""
    by_class = {}
    for class_folder in folders_in(folder, where, ignored):
        by_class[class_folder.name] = image_files(class_folder, where, ignored)
    beside = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()]
    ignored.loose += sorted(repr(str(path)) for path in beside if is_image(path.name) or _begins_as_image(path))
    return by_class


def image_files(folder: Path, where: str, ignored: Ignored) -> list[Path]:
    """Returns the images in a folder at any depth, sorted by path, without hidden ones."""

    def refuse(error: OSError) -> None:
        raise _unreadable(error, where)

    paths = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        ignored.hidden += [repr(name) for name in (*folders, *names) if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        ignored.links += [repr(os.path.join(parent, name)) for name in folders if os.path.islink(Path(parent, name))]
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    return [path for path in sorted(paths, key=by_name) if ignored.is_image(path)]


def folders_in(folder: Path, where: str, ignored: Ignored | None = None) -> list[Path]:
    """Returns the subfolders of a folder, sorted by name, without hidden ones and links back to the folder itself."""
    ignored = ignored or Ignored()
    try:
        inside = sorted(folder.iterdir(), key=by_name)
        ignored.hidden += [repr(path.name) for path in inside if path.name.startswith(".")]
        visible = [path for path in inside if not path.name.startswith(".")]
        folders = [path for path in visible if path.is_dir()]
        ignored.broken += [repr(str(path)) for path in visible if path.is_symlink() and not path.exists()]
    except OSError as error:
        raise _unreadable(error, where) from None
    here = folder.resolve()
    back = [path for path in folders if here.is_relative_to(path.resolve())]
    ignored.links += [repr(str(path)) for path in back]
    return [path for path in folders if path not in back]


def check_classes(by_class: dict[str, list[Path]], layout: str) -> list[Finding]:
    """Returns errors about class folders without images, a single class, and names that are the same or not UTF-8."""
    findings = []
    same = tuple(map(differing, twins(by_class)))
    if same:
        text = f"{len(same)} classes have two folders, whose names differ only in Unicode's form (NFC, NFD)"
        findings.append(Finding(text, same, "move their images into one, or rename one", error=True))
    empty = sorted(repr(name) for name, paths in by_class.items() if not paths)
    if empty:
        text = f"{len(empty)} class folders hold no images"
        findings.append(Finding(text, tuple(empty), "fill or remove them", error=True))
    if len(by_class) == 1:
        only = next(iter(by_class))
        fix = f"a classifier needs two or more; {layout}"
        findings.append(Finding(f"a single class, {only!r}", fix=fix, error=True))
    odd = sorted(repr(name) for name in by_class if name != name.encode(errors="ignore").decode())
    if odd:
        text = f"{len(odd)} class folders have names that are not UTF-8"
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


def _split_folders(root: Path, where: str) -> tuple[dict[str, Path], list[Finding]]:
    """Returns the folder of each split, and findings; "train" is `root` itself if that holds the class folders."""
    names = [folder.name for folder in folders_in(root, where)]
    parted = "train" in names and bool(folders_in(root / "train", where))
    if not parted:
        if not set(names) - set(SPLITS):
            raise UserError(f"{where}: no class folders in it; {LAYOUT}")
        return {"train": root}, []
    findings = []
    others = [repr(name) for name in names if name not in SPLITS]
    if others:
        findings.append(Finding(f"only its folders train, val and test are used, not {few(others)}"))
    roots = {split: root / split for split in SPLITS if split in names}
    for split in [split for split in roots if not folders_in(roots[split], where)]:
        if split == "val":
            raise UserError(f"{where}: no class folders in val; {LAYOUT}")
        findings.append(
            Finding(
                f"no class folders in {split}: it has no labels and is not used",
                fix="with data.name=kaggle its images are those to predict",
            )
        )
        del roots[split]
    return roots, findings


def _begins_as_image(path: Path) -> bool:
    try:
        return has_image(path)
    except (OSError, ValueError):
        return False


def _unreadable(error: OSError, where: str) -> UserError:
    return UserError(f"{where}: {error.filename!r} cannot be read ({error.strerror}); make it readable or move it away")


def _compare(by_class: dict[str, list[Path]], classes: list[str], split: str) -> list[Finding]:
    """Returns an error about classes that only this split has, and a warning about those that it lacks."""
    findings = []
    strange = sorted(repr(name) for name, paths in by_class.items() if paths and name not in classes)
    if strange:
        text = f"{split} has classes that train does not have"
        findings.append(Finding(text, tuple(strange), "give them the same names", error=True))
    lacking = [repr(name) for name in classes if not by_class.get(name)]
    if lacking and split != "train":
        findings.append(Finding(f"{split} has no images of {len(lacking)} classes", tuple(lacking)))
    return findings
