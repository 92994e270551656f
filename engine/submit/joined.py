"""How the labels of an image are joined in one cell of a submission, as in Mass|Effusion."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from engine.data.names import nfc
from engine.data.sources.joined import SEPARATORS, split_cell, split_names
from engine.tasks import Task

LABEL_SEPARATOR = ";"  # where a sample does not show another


def labels_in(cell: str, task: Task, joint: str = LABEL_SEPARATOR) -> list[str]:
    """Returns the labels in a cell, without blanks around them: a single one for tasks with one class per image."""
    if task.one_class:
        return [cell.strip()]
    return split_names(cell, joint.strip(" ") or " ")


def joint_of(cells: Sequence[str], classes: Sequence[str]) -> str | None:
    """Returns what stands between the labels in the cells of a sample, such as ";" or ", "; None if no cell shows it.

    It is a separator that no class's name contains, and without which the cells are names of classes.

    Args:
        cells: the sample's labels.
        classes: names of the classes, which the sample may spell in another way (see `spelling_key`).
    """
    known = set(map(spelling_key, classes))
    for word, character in SEPARATORS.items():
        joined = [cell for cell in cells if character in cell]
        names = {spelling_key(name) for cell in cells for name in split_cell(cell, word)}
        if joined and names <= known and not any(character in name for name in classes):
            around = re.compile(f" *{re.escape(character)} *")
            return Counter(match[0] for cell in joined for match in around.finditer(cell)).most_common(1)[0][0]
    return None


def spelling_key(name: str) -> str:
    """Returns a text that is equal for all spellings of a name; numbers keep their sign and decimal point."""
    words = re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", nfc(nfc(name).casefold().strip()))
    return re.sub(r"(?<![0-9.,])0+(?=[0-9])", "", words)
