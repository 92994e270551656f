"""Labels that are joined in one cell, such as Mass|Effusion, in tables of images with many labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator

from engine.data.check.findings import Finding
from engine.data.names import nfc
from engine.data.tables.csv_files import Table
from engine.wording import counted
from models.settings import UserError

SEPARATORS = {
    "semicolon": ";",
    "bar": "|",
    "comma": ",",
    "slash": "/",
    "backslash": "\\",
    "plus": "+",
    "ampersand": "&",
    "newline": "\n",
    "blank": " ",
    "underscore": "_",
    "hyphen": "-",
}
WEAK = ("blank", "underscore", "hyphen")  # they also join the words of one name
NO_NAMES = ("nan", "none", "null", "na", "n/a", "<na>", "nat")  # what programs write where a cell has no value


def _word(value: Any) -> Any:
    return next((word for word, character in SEPARATORS.items() if value == character), value)


LabelSeparator = Annotated[Literal[tuple(SEPARATORS)], BeforeValidator(_word)]  # type: ignore[valid-type]


class Joint(NamedTuple):
    """A separator that seems to join names."""

    word: str  # one of SEPARATORS
    cells: list[str]  # those that it seems to join


def split_cell(cell: str, separator: str) -> list[str]:
    """Returns the names in a cell that are joined by a separator, one of SEPARATORS, without blanks around them."""
    return split_names(cell, SEPARATORS[separator])


def split_names(text: str, character: str) -> list[str]:
    """Returns the names in a text that are joined by a character, without blanks around them."""
    parts = text.split() if character == " " else text.split(character)
    return [name.strip() for name in parts if name.strip()]


def names_in(table: Table, separator: str | None) -> list[list[str]]:
    """Returns the names in each cell of the column `labels`.

    Args:
        table: the table.
        separator: one of SEPARATORS; None: semicolon, unless the cells look as if they were joined by another.

    Raises:
        UserError: no row has labels, the cells hold lists of a program, or the separator is in question.
    """
    cells = table.column("labels")
    filled = [cell for cell in cells if cell]
    if not filled:
        raise UserError(f"{table.where}: no row has labels; write names separated by ; into the column labels")
    lists = [cell for cell in filled if (cell[0], cell[-1]) in (("[", "]"), ("{", "}"), ("(", ")"))]
    if 2 * len(lists) > len(filled):
        raise UserError(
            f"{table.where}: column 'labels' has a program's lists, such as {lists[0]!r}; write the names alone, "
            "separated by ;"
        )
    if separator is None and (joints := likely(filled)):
        raise UserError(f"{table.where}: column 'labels': {_question(joints, filled)}")
    names = [split_cell(cell, separator or "semicolon") for cell in cells]
    if {name for of_cell in names for name in of_cell} <= {"0", "1"} and any(len(of_cell) > 2 for of_cell in names):
        raise UserError(
            f"{table.where}: column 'labels' has 0 and 1 in place of names, such as {filled[0]!r}; write a column of 0 "
            "and 1 for each label, with its name in the header"
        )
    return names


def likely(cells: Sequence[str]) -> list[Joint]:
    """Returns the separators other than semicolons that seem to join names in cells.

    A separator does if it is in most cells, or if a part of a cell is found in other cells too, as in Mass, Effusion
    beside Mass. What also joins the words of a name needs more: blanks do in most cells, or where all parts of a cell
    are found in others. Where some cells have semicolons, these are believed, unless another is in more cells.
    """
    by_semicolon = sum(len(split_cell(cell, "semicolon")) > 1 for cell in cells)
    found = []
    for word in [word for word in SEPARATORS if word != "semicolon"]:
        joined = [cell for cell in cells if len(split_cell(cell, word)) > 1 or (word == "bar" and "|" in cell)]
        if not joined or (by_semicolon and (word in WEAK or len(joined) <= by_semicolon)):
            continue
        most = 2 * len(joined) > len(cells) and word not in WEAK[1:]
        if most or word == "bar" or _recombined(cells, joined, word):
            found.append(Joint(word, joined))
    strong = [joint for joint in found if joint.word not in WEAK]
    return strong or found[:1]


def _recombined(cells: Sequence[str], joined: Sequence[str], word: str) -> bool:
    """Returns whether parts of a joined cell, all of them for separators in WEAK, are found in other cells."""
    parts = {cell: {nfc(part) for part in split_cell(cell, word)} for cell in dict.fromkeys(cells)}
    count: dict[str, int] = {}
    for names in parts.values():
        for name in names:
            count[name] = count.get(name, 0) + 1
    needed = all if word in WEAK else any
    return any(needed(count[name] > 1 for name in parts[cell]) for cell in joined)


def _question(joints: Sequence[Joint], cells: Sequence[str]) -> str:
    most = max(joints, key=lambda joint: len(joint.cells))
    options = [f"{joint.word} ({counted(_labels(cells, joint.word), 'label')})" for joint in joints]
    return (
        f"{len(most.cells)} of {len(cells)} cells may be several names, such as {most.cells[0]!r}; set "
        f"data.label_separator={' or '.join(options)}, or semicolon if each is one name "
        f"({counted(_labels(cells, 'semicolon'), 'label')})"
    )


def _labels(cells: Sequence[str], word: str) -> int:
    return len({nfc(name) for cell in cells for name in split_cell(cell, word)})


def joined_classes(cells: Sequence[str]) -> list[Finding]:
    """Returns a warning if most labels of a table with one label per image look like several."""
    for word in [word for word in SEPARATORS if word not in WEAK]:
        joined = [cell for cell in cells if len(split_cell(cell, word)) > 1]
        if 2 * len(joined) > len(cells):
            text = f"{len(joined)} of {len(cells)} labels may be several names, and are taken as one class each"
            fix = f"for several, call the column labels and set data.labels=many data.label_separator={word}"
            return [Finding(text, tuple(map(repr, dict.fromkeys(joined))), fix)]
    return []


def missing_names(classes: Sequence[str]) -> list[Finding]:
    """Returns a warning about classes whose name is what programs write for a missing value."""
    found = tuple(repr(name) for name in classes if name.casefold() in NO_NAMES)
    text = f"{counted(len(found), 'class is', 'classes are')} called as programs write a missing value"
    return [Finding(text, found, "leave the cell empty, or remove the rows, if that is what it means")] if found else []
