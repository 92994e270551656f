"""Cells of a submission: numbers as text, and names that a spreadsheet would take for a formula.

A spreadsheet computes a cell that begins with one of FORMULA, even if it is a name. Such a cell is written with
an apostrophe in front, which spreadsheets take for "this is text"; reading a file here removes it again.
"""

from __future__ import annotations

import re

FORMULA = "=+-@\t\r＝＋－＠"  # full-width ones too: some spreadsheets treat them alike
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
QUOTED = re.compile(r"[\",;\t\r\n]|^\s|\s$")  # every separator: a spreadsheet may split at another than ours
TOGETHER = ";"  # between the labels of an image that has many


def is_formula(cell: str) -> bool:
    """Returns whether a spreadsheet would compute a cell."""
    text = cell.lstrip(" \n")
    return text[:1] != "" and text[0] in FORMULA and not NUMBER.fullmatch(text)


def guarded(cell: str) -> str:
    """Returns a cell as text for spreadsheets: an apostrophe before a formula and before what `unguarded` changes."""
    return "'" + cell if is_formula(cell.lstrip("'")) else cell


def unguarded(cell: str) -> str:
    """Returns the cell that `guarded` was given."""
    return cell[1:] if cell.startswith("'") and is_formula(cell.lstrip("'")) else cell


def number(value: float) -> str:
    """Returns a probability as text, with nine significant digits."""
    return f"{value:.9g}"


def quoted(cell: str) -> str:
    """Returns a cell as CSV has it, in quotation marks where it needs them."""
    if QUOTED.search(cell) or guarded(cell) != cell or unguarded(cell) != cell:
        return '"' + cell.replace('"', '""') + '"'
    return cell
