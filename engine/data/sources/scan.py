"""Finds the images in folders, and says what it leaves out."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from engine.data.check.findings import Finding
from engine.data.formats import has_image_extension
from engine.data.images import has_image, reason
from engine.data.names import by_name, is_leftover
from engine.wording import counted, few
from models.settings import UserError

ENTRIES = {  # what is said of one ignored entry of a kind, and of several
    "other": ("file is not an image and is ignored", "files are not images and are ignored"),
    "loose": ("image lies outside class folders and is ignored", "images lie outside class folders and are ignored"),
    "broken": ("broken link is ignored", "broken links are ignored"),
    "links": ("link to a folder is not followed", "links to folders are not followed"),
    "closed": ("file cannot be opened and is ignored", "files cannot be opened and are ignored"),
    "hidden": ("hidden name is ignored", "hidden names are ignored"),
    "leftovers": ("leftover of storage systems is ignored", "leftovers of storage systems are ignored"),
}


@dataclass
class Ignored:
    """Files and links that were ignored in folders, for warnings and notes."""

    other_files: Counter[str] = field(default_factory=Counter)  # by extension: files that are not images
    hidden: list[str] = field(default_factory=list)  # names that begin with a dot
    leftovers: list[str] = field(default_factory=list)  # of storage systems, such as @eaDir and Thumbs.db
    loose: list[str] = field(default_factory=list)  # images outside class folders
    broken: list[str] = field(default_factory=list)  # links to nothing, or to themselves
    links: list[str] = field(default_factory=list)  # links to folders, which are not followed
    closed: list[str] = field(default_factory=list)  # files that cannot be opened, without an image's extension

    def leaves_out(self, name: str) -> bool:
        """Returns whether a file or folder is ignored for its name; records one that is."""
        if not is_leftover(name):
            return False
        (self.hidden if name.startswith(".") else self.leftovers).append(repr(name))
        return True

    def is_image(self, path: Path) -> bool:
        """Returns whether a file is read as an image; records one that is not."""
        if has_image_extension(path.name):
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
            ("other", self.other_files.total(), kinds, ""),
            ("loose", len(self.loose), self.loose, "move them into one"),
            ("broken", len(self.broken), self.broken, "repair or delete them"),
            ("links", len(self.links), self.links, "move them up, or delete them"),
            ("closed", len(self.closed), self.closed, ""),
        )
        return [
            Finding(counted(count, *ENTRIES[kind]), tuple(items), fix) for kind, count, items, fix in groups if count
        ]

    def notes(self) -> list[str]:
        """Returns a note on hidden names, and one on leftovers of storage systems."""
        groups = (("hidden", self.hidden), ("leftovers", self.leftovers))
        return [f"{counted(len(names), *ENTRIES[kind])}: {few(names)}" for kind, names in groups if names]


def class_files(folder: Path, where: str, ignored: Ignored) -> dict[str, list[Path]]:
    """Returns the images of each class folder in a folder."""
    by_class = {}
    for class_folder in folders_in(folder, where, ignored):
        by_class[class_folder.name] = image_files(class_folder, where, ignored)
    beside = [path for path in folder.iterdir() if not is_leftover(path.name) and path.is_file()]
    ignored.loose += sorted(repr(str(path)) for path in beside if _looks_like_image(path))
    return by_class


def image_files(folder: Path, where: str, ignored: Ignored) -> list[Path]:
    """Returns the images in a folder at any depth, sorted by path, without hidden ones and leftovers."""

    def refuse(error: OSError) -> None:
        raise _unreadable(error, where)

    paths = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not ignored.leaves_out(name)]
        ignored.links += [repr(os.path.join(parent, name)) for name in folders if os.path.islink(Path(parent, name))]
        paths += [Path(parent, name) for name in names if not ignored.leaves_out(name)]
    return [path for path in sorted(paths, key=by_name) if ignored.is_image(path)]


def folders_in(folder: Path, where: str, ignored: Ignored | None = None) -> list[Path]:
    """Returns the subfolders of a folder, sorted by name, without hidden ones, leftovers, and links back to itself."""
    ignored = ignored or Ignored()
    try:
        visible = [path for path in sorted(folder.iterdir(), key=by_name) if not ignored.leaves_out(path.name)]
        folders = [path for path in visible if path.is_dir()]
        ignored.broken += [repr(str(path)) for path in visible if path.is_symlink() and not path.exists()]
    except OSError as error:
        raise _unreadable(error, where) from None
    here = folder.resolve()
    back = [path for path in folders if here.is_relative_to(path.resolve())]
    ignored.links += [repr(str(path)) for path in back]
    return [path for path in folders if path not in back]


def holds_images(folder: Path) -> bool:
    """Returns whether there is an image in a folder, at any depth; only as far as it can be read."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_leftover(name)]
        if any(_looks_like_image(Path(parent, name)) for name in names if not is_leftover(name)):
            return True
    return False


def has_images_itself(folder: Path) -> bool:
    """Returns whether there is an image in a folder, outside its subfolders."""
    try:
        inside = [path for path in folder.iterdir() if not is_leftover(path.name) and path.is_file()]
    except OSError:
        return False
    return any(map(_looks_like_image, inside))


def _looks_like_image(path: Path) -> bool:
    return has_image_extension(path.name) or _begins_as_image(path)


def _begins_as_image(path: Path) -> bool:
    try:
        return has_image(path)
    except (OSError, ValueError):
        return False


def _unreadable(error: OSError, where: str) -> UserError:
    return UserError(f"{where}: {error.filename!r} cannot be read ({error.strerror}); make it readable or move it away")
