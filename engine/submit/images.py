"""Finds the images to predict in files and folders, and matches them with the ids of a competition's sample file."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from engine.data.formats import has_image_extension
from engine.data.names import SPELLINGS, differing, id_form, nfc, on_disk, split_of, twins
from engine.data.sources.scan import Ignored, folders_in, image_files
from engine.wording import counted, few
from models.settings import UserError

if TYPE_CHECKING:
    from engine.submit.sample import Sample

log = logging.getLogger("hybridmerge")


def images_of(sources: Sequence[Path]) -> dict[str, Path]:
    """Finds the images to predict.

    Args:
        sources: image files, folders of images (see `find_images`), or both.

    Returns:
        The file of each image by the image's name, in natural order of the names (2 before 10). The name of an image in
        a folder is its path from that folder; the name of a file that was given by itself is its file name.

    Raises:
        UserError: a file or folder is missing, a folder has no images, two images have the same name, or a name cannot
            be written into a CSV file.
    """
    files: dict[str, Path] = {}
    for source in map(on_disk, sources):
        if source.is_file():
            named = {source.name: source}
            _check_names(list(named), f"--images {source}")
        else:
            named = {name: source / name for name in find_images(source)}
        for name, path in named.items():
            if name in files:
                if files[name].resolve() == path.resolve():
                    raise UserError(f"--images {source}: {files[name]} is given twice; give it once")
                raise UserError(
                    f"--images {source}: {name!r} is also the name of {files[name]}, and rows need names of their own; "
                    "give the folder that holds both"
                )
            files[name] = path
    if same := list(map(differing, twins(files))):
        names = counted(len(same), "name of two files differs", "names of two files differ")
        log.warning("--images: %s only in Unicode's form (NFC, NFD): %s", names, few(same))
    return {name: files[name] for name in sorted(files, key=natural)}


def find_images(folder: Path) -> list[str]:
    """Finds the images in a folder and its subfolders, as the dataset `kaggle` finds its test images.

    A file is an image if its extension or its first bytes say so. A file with an image's extension that cannot be read
    is included, so that it is reported later and not silently left out. Other files, names that begin with a dot,
    leftovers of storage systems and links to folders are ignored; the log says so, and also if the folder holds
    training images.

    Returns:
        Paths relative to the folder, in natural order: 2 before 10.

    Raises:
        UserError: the folder does not exist, cannot be read or has no image in it, or a name is not UTF-8 or begins or
            ends with a blank.
    """
    where = f"--images {folder}"
    if not folder.is_dir():
        reason = "is a file" if folder.is_file() else "is neither a file nor a folder"
        if not folder.exists():
            reason = "not found"
        raise UserError(f"{where}: {reason}; give image files, or the folder that holds them")

    ignored = Ignored()
    images = [path.relative_to(folder).as_posix() for path in image_files(folder, where, ignored)]
    for line in (*(finding.line() for finding in ignored.findings()), *ignored.notes()):
        log.warning("%s: %s", where, line)
    if not images:
        raise UserError(f"{where}: no image in it; give image files, or the folder that holds them")
    _check_names(images, where)
    splits = {split_of(inside.name): inside.name for inside in folders_in(folder, where)}
    if "train" in splits and "test" in splits:
        log.warning(
            "%s: holds %r and %r, and the images of both are predicted; give the folder of test images alone",
            where,
            splits["train"],
            splits["test"],
        )
    return sorted(images, key=natural)


def _check_names(names: Sequence[str], where: str) -> None:
    """Raises a UserError for names that a CSV file cannot hold unchanged."""
    odd = [repr(name) for name in names if not _is_utf8(name)]
    if odd:
        raise UserError(f"{where}: {counted(len(odd), 'name is', 'names are')} not UTF-8: {few(odd)}; rename them")
    blank = [repr(name) for name in names if any(part != part.strip() for part in (name, PurePosixPath(name).stem))]
    if blank:
        raise UserError(
            f"{where}: {counted(len(blank), 'name begins or ends', 'names begin or end')} with a blank, which "
            f"readers of CSV files strip: {few(blank)}; rename them"
        )


def _holds(sources: Sequence[Path], name: str) -> bool:
    """Returns whether a folder among the sources has a file of this name, which may be a text that no file can have."""
    path = PurePosixPath(name)
    return (
        not path.is_absolute() and ".." not in path.parts and any(os.path.isfile(source / name) for source in sources)
    )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def natural(text: str) -> tuple:
    """Returns a sort key that orders numbers within texts by their value: 2 before 10."""
    parts = re.split(r"([0-9]+)", nfc(text))
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], text


def spelled(ids: Sequence[str], names: Sequence[str]) -> tuple[str, int]:
    """Returns the entry of SPELLINGS by which most ids name an image, and the number of distinct ids that do."""
    wanted = set(map(id_form, ids))
    spellings = {way: {id_form(spell(PurePosixPath(name))) for name in names} for way, spell in SPELLINGS.items()}
    counts = {way: len(wanted & texts) for way, texts in spellings.items()}
    best = max(counts, key=counts.__getitem__)  # the first of equals
    return best, counts[best]


def _images_of_ids(
    ids: Sequence[str], names: Sequence[str], spell: Callable[[PurePosixPath], str]
) -> dict[str, list[str]]:
    """Returns the images that each id names, in a way of SPELLINGS: by equal bytes, otherwise as they are compared."""
    exact: dict[str, list[str]] = {}
    loose: dict[str, list[str]] = {}
    for name in names:
        text = spell(PurePosixPath(name))
        exact.setdefault(text, []).append(name)
        loose.setdefault(id_form(text), []).append(name)
    return {name: exact.get(name) or loose.get(id_form(name), []) for name in ids}


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _advice(missing: Sequence[str], names: Sequence[str]) -> str:
    """Returns what to do about ids without an image, most of which may differ from names only in case or type."""

    def rough(name: str) -> str:
        text = id_form(name).casefold()
        return os.path.splitext(text)[0] if has_image_extension(text) else text

    near = {rough(text) for name in names for text in (name, PurePosixPath(name).name)}
    if 2 * sum(rough(name) in near for name in missing) > len(missing):
        return "names that differ in case or type are not taken for the same; rename the files as the sample has them"
    return "give the folder that the sample belongs to"


def match(sample: Sample, names: Sequence[str], sources: Sequence[Path], *, ignore_extra: bool = False) -> list[str]:
    """Finds the image of each of the sample's ids.

    All ids must be spelled in the same way: as path or as file name, with or without extension. An id may be written
    with backslashes, and in another form of Unicode than the image's name; equal bytes come first.

    Args:
        sample: the sample, whose ids name images.
        names: names of the images, as returned by `images_of`.
        sources: the files and folders that the images come from, for error messages.
        ignore_extra: whether to leave out images that no id names, with a warning, instead of raising an error.

    Returns:
        Names of images, in the order of the ids.

    Raises:
        UserError: ids without an image or with several, or images without an id; the message counts them and names the
            first few.
    """
    way, _ = spelled(sample.ids, names)
    by_id = _images_of_ids(sample.ids, names, SPELLINGS[way])
    where, place = f"{sample.where}: column {sample.columns[sample.ids_at]!r}", few(list(map(str, sources)))
    missing = [name for name, images in by_id.items() if not images]
    not_images = [repr(name) for name in missing if _holds(sources, name)]
    if not_images:
        raise UserError(
            f"{where}: {counted(len(not_images), 'id is a file', 'ids are files')} in {place}, but no "
            f"{'image' if len(not_images) == 1 else 'images'}: {few(not_images)}; put the images there"
        )
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(sample.ids)} ids have no image in {place}: "
            f"{few(list(map(repr, missing)))}; of its {len(names)} images the first are "
            f"{few(list(map(repr, names)))}; {_advice(missing, names)}"
        )
    several = [f"{name!r} ({few(images)})" for name, images in by_id.items() if len(images) > 1]
    if several:
        raise UserError(
            f"{where}: {counted(len(several), 'id names', 'ids name')} more than one image, by {way}: {few(several)}; "
            "keep one file of each"
        )
    chosen = [by_id[name][0] for name in sample.ids]
    named = set(chosen)
    twice = [differing([name for name in sample.ids if by_id[name] == [image]]) for image in _repeated(chosen)]
    if twice:
        raise UserError(
            f"{where}: {counted(len(twice), 'image has', 'images have')} several ids: {few(twice)}; keep one row for "
            "each image"
        )
    extra = [repr(name) for name in names if name not in named]
    if extra:
        without = counted(len(extra), "image has", "images have")
        text = f"--images {place}: {without} no row in {sample.where}: {few(extra)}"
        if not ignore_extra:
            raise UserError(f"{text}; is it the folder that the sample belongs to? --extra ignore leaves them out")
        log.warning("%s; left out", text)
    return chosen
