"""Which files are the shards of a data set, of which split each is, and whether any is missing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.data.check.findings import Finding
from engine.data.names import by_name, is_leftover, split_of, splits_in
from engine.data.shards.members import SUFFIX
from engine.files import write_json_atomic
from engine.wording import counted
from models.settings import UserError

INDEX = "index.json"
SPARSE = 10  # of so many numbers one is there at least, where they count shards
LAYOUT = "expected PATH/train-000000.tar, ... and optionally val-*.tar and test-*.tar, or a pattern of files"


@dataclass(frozen=True)
class Packed:
    """One shard as the index has it."""

    file: str  # relative to the index
    split: str
    samples: int
    bytes: int


@dataclass(frozen=True)
class Index:
    """What was packed. Until all of it is, the index that lies beside the shards has none of them.

    Attributes:
        classes: names, in the order of the labels.
        labels: "one" or "many", a key of `engine.tasks.TASKS`.
        shards: in their order.
    """

    classes: list[str]
    labels: str
    shards: list[Packed]


def write_index(folder: Path, index: Index) -> None:
    """Writes `index.json` beside the shards."""
    write_json_atomic(folder / INDEX, asdict(index))


def read_index(folder: Path) -> Index | None:
    """Returns the index of a folder of shards; None if there is none: other programs write shards without it.

    Raises:
        UserError: it is damaged.
    """
    file = folder / INDEX
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        shards = [Packed(**shard) for shard in found["shards"]]
        return Index([str(name) for name in found["classes"]], str(found["labels"]), shards)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{file}: damaged; delete it to use the shards as they are, or pack them again") from None


def find_shards(path: str, where: str) -> tuple[dict[str, list[Path]], list[Finding]]:
    """Returns the shards of each split, sorted, and errors about missing ones.

    Args:
        path: a folder of shards, with train, val and test in their names or in those of folders in it; or a pattern,
            whose shards are all to train on.
        where: the beginning of error messages.

    Raises:
        UserError: nothing is there, or it is not clear of which split a shard is.
    """
    if "{" in path:
        return _of_pattern(path, where)
    root = Path(path)
    if root.is_file() and root.suffix == SUFFIX:
        return {"train": [root]}, []
    if not root.is_dir():
        raise UserError(f"{where}: {'no shard' if root.exists() else 'not found'}; {LAYOUT}")
    found = [shard for folder in (root, *_folders(root)) for shard in _shards_in(folder)]
    if not found:
        raise UserError(f"{where}: no {SUFFIX} files in it; {LAYOUT}")
    splits: dict[str, list[Path]] = {}
    for shard in found:
        splits.setdefault(_split_of(shard, root), []).append(shard)
    if unnamed := splits.pop("", []):
        if splits:
            raise UserError(
                f"{where}: the name {unnamed[0].name!r} does not say whether it is train, val or test, as others do; "
                "rename it, or move it away"
            )
        splits["train"] = unnamed
    if "train" not in splits:
        raise UserError(f"{where}: no training shards, only {' and '.join(splits)}; {LAYOUT}")
    order = [split for split in ("train", "val", "test") if split in splits]
    return {split: splits[split] for split in order}, _gaps(found)


def _of_pattern(path: str, where: str) -> tuple[dict[str, list[Path]], list[Finding]]:
    try:
        from braceexpand import UnbalancedBracesError, braceexpand
    except ImportError:
        raise UserError(f"{where}: patterns need webdataset; pip install -e '.[shards]', or give the folder") from None
    try:
        shards = [Path(name) for name in braceexpand(path)]
    except (UnbalancedBracesError, ValueError):
        raise UserError(f"{where}: not a pattern; write it as in train-{{000000..000009}}{SUFFIX}") from None
    there = [shard for shard in shards if shard.is_file()]
    if not there:
        raise UserError(f"{where}: none of {counted(len(shards), 'file')} found, such as {shards[0]}")
    return {"train": there}, _missing([str(shard) for shard in shards if shard not in there])


def compared_with_index(index: Index, root: Path, counts: dict[Path, int]) -> list[Finding]:
    """Returns errors about shards that are not as the index has them.

    Args:
        index: of the folder.
        root: the folder.
        counts: the samples in each shard that was found.
    """
    if not index.shards:
        return [Finding("packing was interrupted", (repr(str(root)),), "pack again, into another folder", error=True)]
    packed = {root / shard.file: shard for shard in index.shards}
    missing = [str(path) for path in packed if path not in counts]
    changed = tuple(
        f"{str(path)!r} ({counts[path]} samples of {shard.samples}, {os.path.getsize(path)} bytes of {shard.bytes})"
        for path, shard in packed.items()
        if path in counts and (counts[path], os.path.getsize(path)) != (shard.samples, shard.bytes)
    )
    found = _missing(missing)
    if changed:
        text = f"{counted(len(changed), 'shard is', 'shards are')} not as {INDEX} has {'it' * (len(changed) == 1)}"
        text = text if len(changed) == 1 else f"{text}them"
        found.append(Finding(text, changed, "copy or pack them again", error=True))
    if strange := tuple(repr(str(path)) for path in counts if path not in packed):
        text = f"{counted(len(strange), 'shard is', 'shards are')} not in {INDEX}"
        found.append(Finding(text, strange, f"move them away, or delete {INDEX}", error=True))
    return found


def _missing(files: Sequence[str]) -> list[Finding]:
    if not files:
        return []
    text = f"{counted(len(files), 'shard')} missing"
    return [Finding(text, tuple(map(repr, files)), "copy or pack them again", error=True)]


def _gaps(shards: Sequence[Path]) -> list[Finding]:
    """Returns an error about numbers that are missing between the first and the last shard of a name.

    Numbers of which most are missing count nothing: they are dates, or those of ImageNet's classes, n01440764.tar.
    """
    numbers: dict[tuple[Path, str], dict[int, int]] = {}
    for shard in shards:
        if found := re.fullmatch(r"(.*?)(\d+)", shard.stem):
            numbers.setdefault((shard.parent, found[1]), {})[int(found[2])] = len(found[2])
    missing = [
        str(folder / f"{name}{number:0{widths[min(widths)]}d}{SUFFIX}")
        for (folder, name), widths in numbers.items()
        if max(widths) - min(widths) < SPARSE * len(widths)
        for number in range(min(widths), max(widths))
        if number not in widths
    ]
    return _missing(missing)


def _split_of(shard: Path, root: Path) -> str:
    """Returns the split that the name of a shard or of its folder says; "" if none does, or several do."""
    if shard.parent != root:
        return split_of(shard.parent.name) or ""
    found = splits_in(shard.stem)
    return next(iter(found)) if len(found) == 1 else ""


def _folders(root: Path) -> list[Path]:
    return sorted((folder for folder in root.iterdir() if folder.is_dir() and split_of(folder.name)), key=by_name)


def _shards_in(folder: Path) -> list[Path]:
    inside = [path for path in folder.iterdir() if path.suffix == SUFFIX and not is_leftover(path.name)]
    return sorted((path for path in inside if path.is_file()), key=by_name)


def holds_shards(folder: Path) -> bool:
    """Returns whether a folder looks like one of shards."""
    return folder.is_dir() and any(map(_shards_in, (folder, *_folders(folder))))
