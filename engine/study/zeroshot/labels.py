"""Finds which of a model's classes each class of the images is."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from engine.wording import counted, few
from models.settings import UserError, nearest

WNID = re.compile(r"n\d{8}")
SUBSETS = {
    1000: "imagenet-1k",
    11221: "imagenet-21k-miil",
    11821: "imagenet-12k",
    21841: "imagenet-22k",
    21843: "imagenet-21k-goog",
}


def class_numbers(classes: Sequence[str], num_classes: int, mapping: str = "auto") -> list[int]:
    """Returns the number of the model's class for each class of the images.

    Args:
        classes: names of the images' classes, such as ImageNet's ids (wnids), "tench" or "7".
        num_classes: number of the model's classes.
        mapping: "auto", or a CSV file with lines CLASS,TARGET where TARGET is an id, a name or a number.

    Raises:
        UserError: a class is not found, or two classes are the same class of the model.
    """
    if mapping == "auto":
        targets, where = dict(zip(classes, classes, strict=True)), "data.path"
    else:
        targets, where = _read(mapping), f"classes = {mapping!r}"
        if missing := [name for name in classes if name not in targets]:
            raise UserError(f"{where}: has no line for {few(missing)}; add CLASS,TARGET for each class of the images")
    wanted = [targets[name] for name in classes]
    numbers = _by_number(wanted, num_classes) if mapping != "auto" else None
    numbers = numbers or _by_name(wanted, num_classes)
    if numbers is None and mapping == "auto" and len(classes) == num_classes:
        return list(range(num_classes))
    if numbers is None:
        high = [text for text in wanted if re.fullmatch(r"\d{1,6}", text) and int(text) >= num_classes]
        if high and mapping != "auto":
            raise UserError(f"{where}: {high[0]!r}: the model has no class of this number; use 0 to {num_classes - 1}")
        raise UserError(f"{where}: {_unknown(wanted, num_classes)}")
    if len(set(numbers)) < len(numbers):
        twice = next(name for i, name in enumerate(classes) if numbers[i] in numbers[:i])
        raise UserError(f"{where}: {twice!r} is the same class of the model as another class; correct one of them")
    return numbers


def class_names(num_classes: int) -> list[str]:
    """Returns a name for each class of a model: ImageNet's first name where it has as many classes, else its number.

    A name that two classes share, such as "crane", has the class's number behind it.
    """
    if num_classes not in SUBSETS:
        return [str(number) for number in range(num_classes)]
    from timm.data import ImageNetInfo

    info = ImageNetInfo(SUBSETS[num_classes])
    described = (info.label_name_to_description(wnid, detailed=False) for wnid in info.label_names())
    names = [description.split(",")[0] for description in described]
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def _read(mapping: str) -> dict[str, str]:
    try:
        with open(Path(mapping).expanduser(), newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"classes = {mapping!r}: cannot be read ({error}); give auto, or a CSV file") from None
    if bad := [row for row in rows if len(row) < 2]:
        raise UserError(f"classes = {mapping!r}: a line without a comma, {bad[0][0]!r}; write CLASS,TARGET")
    return {row[0].strip(): ",".join(row[1:]).strip() for row in rows}


def _by_number(wanted: Sequence[str], num_classes: int) -> list[int] | None:
    numbers = [int(text) for text in wanted if re.fullmatch(r"\d{1,6}", text)]
    return numbers if len(numbers) == len(wanted) and max(numbers) < num_classes else None


def _by_name(wanted: Sequence[str], num_classes: int) -> list[int] | None:
    """Finds ImageNet's classes by id or by any of their names; None if one is not found."""
    known = _imagenet(num_classes)
    numbers = [known.get(_plain(name)) for name in wanted]
    return None if None in numbers else numbers


def _imagenet(num_classes: int) -> dict[str, int]:
    """Ids and names of ImageNet's classes by number; names that two classes share ("crane") are left out."""
    if num_classes not in SUBSETS:
        return {}
    from timm.data import ImageNetInfo

    info = ImageNetInfo(SUBSETS[num_classes])
    found: dict[str, int] = {}
    shared: set[str] = set()
    for number, wnid in enumerate(info.label_names()):
        found[wnid] = number
        description = info.label_name_to_description(wnid, detailed=False)
        for name in dict.fromkeys(map(_plain, [description, *description.split(",")])):
            if name in found and found[name] != number:
                shared.add(name)
            found[name] = number
    return {name: number for name, number in found.items() if name not in shared}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _unknown(wanted: Sequence[str], num_classes: int) -> str:
    known = _imagenet(num_classes)
    if not known:
        return (
            f"{counted(len(wanted), 'class')} of images and a model of {num_classes}; give classes=FILE.csv with lines "
            "CLASS,NUMBER"
        )
    lost = [name for name in wanted if _plain(name) not in known]
    hint = nearest(_plain(lost[0]), [name for name in known if not WNID.fullmatch(name)])
    hint = hint if hint.startswith("did you mean") else "use ids such as n01440764, or names"
    return (
        f"{lost[0]!r} is none of ImageNet's classes, or several; {hint}, or give classes=FILE.csv with lines CLASS,ID"
    )
