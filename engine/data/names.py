"""Names as people mean them, whatever bytes they have.

Unicode writes é as one character (NFC) or as e and an accent (NFD, as archives from macOS do), and people cannot see
the difference. Names are therefore compared in NFC, and kept and written as they were found.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

SPLIT_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "validating", "dev", "devel", "development"),
    "test": ("test", "testing", "tests", "tst", "eval", "evaluation", "evaluate", "holdout"),
}
BESIDE_SPLIT = r"(?:data|dataset|set|split|images?|imgs?|pictures|photos|folder)"  # as in "train_set", "images-train"

# What storage systems and file managers put beside images: thumbnails, indexes, waste. Compared without case.
LEFTOVERS = {
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@__thumb", "@synoresource", "#recycle", "#snapshot"),  # NAS
    *("@sharesnap", "@sharebin", "~snapshot"),
    *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
    *("$recycle.bin", "system volume information", "found.000", "desktop.ini"),  # Windows
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "zbthumbnail.info", "picasa.ini"),  # its programs
    *("lost+found", "_thumbs", "_thumbnails", "_thumb", "__pycache__"),
}
LEFTOVER_FILES = ("synofile_thumb", "synophoto_thumb", "synoindex_")  # how names begin

# The ways in which an id may name an image; the image's own name is its path from the folder of images.
SPELLINGS: dict[str, Callable[[PurePosixPath], str]] = {
    "path": str,
    "file name": lambda path: path.name,
    "path without extension": lambda path: str(path.with_suffix("")),
    "file name without extension": lambda path: path.stem,
}


def nfc(name: str) -> str:
    """Returns the form of a name in which names are compared and sorted."""
    return unicodedata.normalize("NFC", name)


def id_form(text: str) -> str:
    """Returns the form in which ids and names of images are compared: NFC, with the separators of this system."""
    return nfc(str(PurePosixPath(text.replace("\\", "/"))))


def alike(name: str) -> str:
    """Returns a text that is equal for names that people take for one.

    Case, blanks, unseen characters, and zeros after the point of a whole number are gone.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    seen = "".join(c for c in folded if not c.isspace() and unicodedata.category(c) != "Cf")
    return re.sub(r"^([0-9]+)[.,]0+$", r"\1", seen)


def by_name(path: Path) -> tuple[list[str], tuple[str, ...]]:
    """Returns the sort key of a path: part by part, in the same order on every system."""
    return [nfc(part) for part in path.parts], path.parts


def twins(names: Iterable[str]) -> list[list[str]]:
    """Returns the groups of different names that are equal in NFC."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        if not name.isascii():
            groups.setdefault(nfc(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def differing(names: Sequence[str]) -> str:
    """Returns names that look alike with their invisible differences, such as "'caf\\xe9' and 'cafe\\u0301'"."""
    return " and ".join(map(ascii, names))


def same_names(names: Sequence[str], others: Sequence[str]) -> bool:
    """Returns whether two lists hold the same names in the same order."""
    return list(map(nfc, names)) == list(map(nfc, others))


def placing(names: Sequence[str]) -> Callable[[str], int | None]:
    """Returns a function from a name to its position among `names`, None if it is none of them.

    Equal bytes come first, so that names which older versions kept apart are not mixed up.
    """
    at = {nfc(name): i for i, name in enumerate(names)} | {name: i for i, name in enumerate(names)}
    return lambda name: at.get(name, at.get(nfc(name)))


def places(names: Sequence[str], among: Sequence[str]) -> list[int] | None:
    """Returns the position of each name in another list of the same names; None if the names are not the same."""
    place = placing(among)
    found = [place(name) for name in names]
    same = len(names) == len(among) and set(found) == set(range(len(among)))
    return [i for i in found if i is not None] if same else None


def on_disk(path: Path, named: Callable[[Path, str], Sequence[str]] | None = None) -> Path:
    """Returns the existing file or folder whose path is the same in NFC; the path itself if it exists, or none does.

    Args:
        path: as it was given.
        named: returns the names in a folder that equal a name in NFC; None: the folder is listed.
    """
    missing, found = [], path
    while not os.path.lexists(found) and found.parent != found:
        missing.append(found.name)
        found = found.parent
    for name in reversed(missing):
        names = (named or _named)(found, name)
        if len(names) != 1:
            return path
        found = found / names[0]
    return found


def _named(folder: Path, name: str) -> list[str]:
    """Returns the names in a folder that equal a name in NFC; none if the folder cannot be listed."""
    try:
        return [other for other in os.listdir(folder) if nfc(other) == nfc(name)]
    except (OSError, ValueError):
        return []


class Files:
    """Finds the files that were named on another system, with backslashes, in another form of Unicode or without type.

    Args:
        folder: to which the names are relative.
        typed: whether a file's type may be left out, by its name.
    """

    def __init__(self, folder: Path, typed: Callable[[str], bool]) -> None:
        self.folder, self.typed = folder, typed
        self._folders: dict[Path, Path] = {}
        self._names: dict[Path, tuple[dict[str, list[str]], dict[str, list[str]]]] = {}

    def find(self, name: str) -> list[Path]:
        """Returns the file that a name, or a path, stands for: none if there is none, several if it is not clear."""
        path = self.folder / name
        if os.path.isfile(path):
            return [path]
        path = self.folder / name.replace("\\", "/")
        if os.path.isfile(path):
            return [path]
        folder = self._folder_of(path)
        for names in self._in(folder):
            files = [folder / file for file in names.get(nfc(path.name), [])]
            if found := [file for file in files if os.path.isfile(file)]:
                return found
        return []

    def in_other_case(self, name: str) -> str | None:
        """Returns the name of a file that differs from a missing one in upper and lower case."""
        path = self.folder / name.replace("\\", "/")
        wanted = nfc(path.name).casefold()
        return next(
            (file for names in self._in(self._folder_of(path)) for file in names if file.casefold() == wanted), None
        )

    def _folder_of(self, path: Path) -> Path:
        """Returns the folder of a path as it is on disk."""
        if path.parent not in self._folders:
            self._folders[path.parent] = on_disk(
                path.parent, lambda folder, name: self._in(folder)[0].get(nfc(name), [])
            )
        return self._folders[path.parent]

    def _in(self, folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Does what `_listed` does, but lists a folder once: thousands of names may be in folders that are missing."""
        if folder not in self._names:
            self._names[folder] = self._listed(folder)
        return self._names[folder]

    def _listed(self, folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Returns the names in a folder by their NFC, and those of a known type by their NFC without it."""
        whole: dict[str, list[str]] = {}
        bare: dict[str, list[str]] = {}
        try:
            listed = sorted(os.listdir(folder))
        except (OSError, ValueError):
            listed = []
        for name in listed:
            whole.setdefault(nfc(name), []).append(name)
            if self.typed(name):
                bare.setdefault(nfc(os.path.splitext(name)[0]), []).append(name)
        return whole, bare


def split_of(name: str) -> str | None:
    """Returns which of train, val and test a name such as "Training set" means; None if it means none of them."""
    word = nfc(name).strip().casefold()
    word = re.sub(rf"^(?:(?:\d+|{BESIDE_SPLIT})[\s_.-]+)+", "", word)
    word = re.sub(rf"(?:[\s_.-]*{BESIDE_SPLIT})+$", "", word)
    return next((split for split, words in SPLIT_WORDS.items() if word in words), None)


def splits_in(name: str) -> set[str]:
    """Returns the splits whose names are words of a longer name, as in "seg_train", "train2017" and "TrainA"."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", nfc(name))
    words = re.findall(r"[^\W\d_]+", apart.casefold())
    return {split for split, known in SPLIT_WORDS.items() if any(word in known for word in words)}


def is_leftover(name: str) -> bool:
    """Returns whether a file or folder is none of the user's: its name begins with a dot, or is one of LEFTOVERS."""
    folded = name.casefold()
    return name.startswith(".") or folded in LEFTOVERS or folded.startswith(LEFTOVER_FILES)
