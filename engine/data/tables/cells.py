"""Formats the cells of a submission: numbers, and names that a spreadsheet would take for a formula.

A spreadsheet computes a cell that begins with one of FORMULA, even if it is a name. Such a cell is written with an
apostrophe in front, which tells spreadsheets that it is text. The apostrophe is removed when a file is read.
"""

from __future__ import annotations

import re

FORMULA = "=+-@\t\r＝＋－＠"  # with the full-width forms, which some spreadsheets treat alike
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
QUOTED = re.compile(r"[\",;\t\r\n]|^\s|\s$")  # every separator, since a spreadsheet may split at another one than ours


def is_formula(cell: str) -> bool:
    """Returns whether a spreadsheet would compute a cell."""
    text = cell.lstrip(" \n")
    return text[:1] != "" and text[0] in FORMULA and not NUMBER.fullmatch(text)


def guarded(cell: str) -> str:
    """Puts an apostrophe before a cell that looks like a formula, and before one that `unguarded` would change."""
    return "'" + cell if is_formula(cell.lstrip("'")) else cell


def unguarded(cell: str) -> str:
    """Returns the cell that was passed to `guarded`."""
    return cell[1:] if cell.startswith("'") and is_formula(cell.lstrip("'")) else cell


def number(value: float) -> str:
    """Returns a probability as text, with nine significant digits."""
    return f"{value:.9g}"


def quoted(cell: str) -> str:
    """Returns a cell as it stands in a CSV file, in quotation marks if it needs them."""
    if QUOTED.search(cell) or guarded(cell) != cell or unguarded(cell) != cell:
        return '"' + cell.replace('"', '""') + '"'
    return cell
