"""The images that a submission is about: found in a folder, and in the order of a sample's ids."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from engine.data.images import HEAD, content, is_image
from engine.wording import few
from models.settings import UserError

if TYPE_CHECKING:
    from engine.submit.sample import Sample

log = logging.getLogger("hybridmerge")

# How a sample's ids may name an image, whose path starts from the folder of images.
SPELLINGS: dict[str, Callable[[PurePosixPath], str]] = {
    "path": str,
    "file name": lambda path: path.name,
    "path without extension": lambda path: str(path.with_suffix("")),
    "file name without extension": lambda path: path.stem,
}


def find_images(folder: Path) -> list[str]:
    """The images in a folder and the folders in it, as paths from there, in natural order: 2 before 10.

    Images are told by their first bytes; a file with an image's extension is one in any case: that it cannot be read
    has to be found later, not passed over. Links to folders, which the log names, and names that begin with a dot are
    passed over.

    Raises:
        UserError: no folder, nothing in it, or names that are not UTF-8 or begin or end with a blank.
    """
    where = f"--images {folder}"
    if not folder.is_dir():
        raise UserError(f"{where}: {'is a file' if folder.exists() else 'not found'}; give the folder of test images")

    def refuse(error: OSError) -> None:
        raise UserError(f"{where}: {error.filename} cannot be read ({error.strerror}); make it readable")

    found, links = [], []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        links += [repr(name) for name in folders if not name.startswith(".") and Path(parent, name).is_symlink()]
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and (is_image(name) or _begins_as_one(path)):
                found.append(path.relative_to(folder).as_posix())
    if links:
        log.warning("%s: %d links to folders are not followed: %s", where, len(links), few(links))
    if not found:
        raise UserError(f"{where}: no image in it; give the folder of test images")
    odd = [repr(path) for path in found if not _is_utf8(path)]
    if odd:
        raise UserError(f"{where}: {len(odd)} names are not UTF-8: {few(odd)}; rename them")
    blank = [repr(path) for path in found if any(name != name.strip() for name in (path, PurePosixPath(path).stem))]
    if blank:
        raise UserError(
            f"{where}: {len(blank)} names begin or end with a blank, which readers of CSV leave out: "
            f"{few(blank)}; rename them"
        )
    return sorted(found, key=natural)


def _begins_as_one(path: Path) -> bool:
    if not path.is_file():  # a pipe would never end
        return False
    try:
        with open(path, "rb") as file:
            return content(file.read(HEAD)) is not None
    except OSError:
        return False


def _holds(folder: Path, name: str) -> bool:
    """Whether a text names a file in a folder; one that no file can have does not."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and os.path.isfile(folder / name)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def natural(text: str) -> tuple:
    """A key that sorts numbers in texts by their value."""
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], text


def spelled(ids: Sequence[str], paths: Sequence[str]) -> tuple[str, int]:
    """The one of SPELLINGS by which most different ids name an image, the first of equals; and how many do."""
    known = {way: {spell(PurePosixPath(path)) for path in paths} for way, spell in SPELLINGS.items()}
    counts = {way: len(set(ids) & names) for way, names in known.items()}
    best = max(counts, key=counts.__getitem__)
    return best, counts[best]


def match(sample: Sample, paths: Sequence[str], folder: Path, ignore_extra: bool = False) -> list[str]:
    """The image of each of the sample's ids, in its order.

    All ids are spelled alike: as path, as file name, or as one of these without extension.

    Args:
        sample: whose ids name images.
        paths: of the images, from the folder.
        folder: for errors.
        ignore_extra: leave out images that no id names, with a warning.

    Raises:
        UserError: ids without an image or with several, or images without an id; counted, the first few named.
    """
    way, _ = spelled(sample.ids, paths)
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(SPELLINGS[way](PurePosixPath(path)), []).append(path)
    where, column = f"{sample.where}: column {sample.columns[sample.ids_at]!r}", f"--images {folder}"
    missing = [repr(name) for name in sample.ids if name not in by_name]
    others = [repr(name) for name in sample.ids if name not in by_name and _holds(folder, name)]
    if others:
        raise UserError(
            f"{where}: {len(others)} ids are files in {folder} that are no images: {few(others)}; put the images there"
        )
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(sample.ids)} ids have no image in {folder}: {few(missing)}; "
            f"of its {len(paths)} images the first are {few(list(map(repr, paths)))}; "
            "give the folder that the sample is of"
        )
    several = [f"{name!r} ({few(by_name[name])})" for name in sample.ids if len(by_name[name]) > 1]
    if several:
        raise UserError(
            f"{where}: {len(several)} ids name more than one image, by {way}: {few(several)}; keep one file of each"
        )
    chosen = [by_name[name][0] for name in sample.ids]
    named = set(chosen)
    extra = [repr(path) for path in paths if path not in named]
    if extra:
        said = f"{column}: {len(extra)} images have no row in {sample.where}: {few(extra)}"
        if not ignore_extra:
            raise UserError(f"{said}; is it the folder that the sample is of? --extra ignore leaves them out")
        log.warning("%s; left out", said)
    return chosen
