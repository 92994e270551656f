"""The samples of a shard: members whose names are equal up to the first dot, an image and its label."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.data.formats import has_image_extension
from engine.data.names import is_leftover
from engine.data.shards.members import Shard, read_member

Label = int | str | list[int] | list[str]


@dataclass(frozen=True)
class Sample:
    """An image in a shard.

    Attributes:
        path: of the image: the shard's with the member's name behind it.
        label: as it is written: a number, a name, or a list of these; None: there is none.
        problem: what is wrong with it; "" if nothing is.
    """

    path: Path
    label: Label | None
    problem: str = ""


def read_samples(path: Path, shard: Shard, label: str | None, key: str | None) -> Iterator[Sample]:
    """Yields the samples of a shard in their order. Those without an image are left out.

    Args:
        path: of the tar file.
        shard: what it holds.
        label: the extension of the member with the label; None: "cls", or else "json".
        key: where the label is in JSON; None: "label", or else "labels".
    """
    for parts in _grouped(shard.members).values():
        images = [extension for extension in parts if has_image_extension(f".{extension}")]
        if not images:
            continue
        image = path / parts[images[0]]
        extension = label or ("cls" if "cls" in parts else "json")
        if len(images) > 1:
            yield Sample(image, None, f"several images in a sample: {', '.join(images)}")
        elif extension not in parts:
            yield Sample(image, None)
        else:
            try:
                content = read_member(path, shard.members[parts[extension]]).decode()
                yield Sample(image, _label(content, key, is_json=extension.endswith("json")))
            except (OSError, ValueError) as error:
                yield Sample(image, None, f"its label, .{extension}, cannot be read: {error}")


def count_samples(shard: Shard) -> int:
    """Returns how many samples a shard has."""
    return len(_grouped(shard.members))


def _grouped(members: Iterable[str]) -> dict[str, dict[str, str]]:
    """Returns the members' names of each sample by their extension in small letters, as webdataset groups them."""
    samples: dict[str, dict[str, str]] = {}
    for name in members:
        folder, base = os.path.split(name)
        stem, dot, extension = base.partition(".")
        if stem and dot and not is_leftover(base):
            samples.setdefault(os.path.join(folder, stem), {})[extension.lower()] = name
    return samples


def _label(text: str, key: str | None, *, is_json: bool) -> Label:
    """Returns a label.

    Raises:
        ValueError: it is neither a number nor a name, nor a list of these.
    """
    found = json.loads(text) if is_json else text.strip()
    if isinstance(found, dict):
        keys = [key] if key else ["label", "labels"]
        given = [name for name in keys if name in found]
        if not given:
            raise ValueError(f"no {' or '.join(map(repr, keys))} in it, only {', '.join(map(repr, found))}")
        found = found[given[0]]
    elif not is_json and found.lstrip("-").isdigit():
        found = int(found)
    entries = found if isinstance(found, list) else [found]
    if not all(type(entry) in (int, str) and entry != "" for entry in entries):
        raise ValueError(f"{found!r} is neither a number nor a name")
    return found
