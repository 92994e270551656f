"""The files that a table of images names: which column names them, and where they are."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from engine.data.check.findings import Finding
from engine.data.formats import has_image_extension
from engine.data.names import Files
from engine.data.tables.csv_files import Table
from engine.wording import counted
from models.settings import UserError

ELSEWHERE = {  # how paths begin that no folder here can hold
    re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://"): "download the images, and write the paths of the files",
    re.compile(r"[A-Za-z]:[\\/]|\\\\"): "write paths relative to that folder in place of those of another computer",
}
TRIED = 50  # rows by which columns are compared; looking for files that do not exist takes long in a large folder


def path_column(table: Table, files: Files, label_column: str) -> str:
    """Returns the column of paths: `path`, or else the first one.

    Args:
        table: the table.
        files: finds the files.
        label_column: the column of labels, if there is one; for error messages.

    Raises:
        UserError: there is no header, or there is no column `path` and another column names images as the first one
            does, or in its place: the numbers of rows that pandas writes first may also be names without extension.
    """
    first = table.columns[0]
    if "path" in table.columns:
        return "path"
    if has_image_extension(first) or (any(map(str.isdigit, first)) and files.find(first)):
        raise UserError(
            f"{table.where}: the first line names an image, {first!r}; write a header above it: path,{label_column}"
        )
    if _most(_images(table, first)):
        return first
    exists = _most(_files(table, first, files))
    for name in [name for name in table.columns[1:] if name not in ("split", label_column)]:
        if _most(_files(table, name, files)) or (not exists and _most(_images(table, name))):
            found = f"columns {first!r} and {name!r} both name" if exists else f"column {name!r}, not {first!r}, names"
            raise UserError(f"{table.where}: {found} images; call the column of the paths path")
    return first


def _images(table: Table, column: str) -> list[str | None]:
    """Returns those of the first cells of a column that are names of images, and None for the others."""
    return [cell if has_image_extension(cell) else None for cell in table.column(column)[:TRIED]]


def _files(table: Table, column: str, files: Files) -> list[Path | None]:
    """Returns the files that the first cells of a column name, and None for those that name none."""
    return [next(iter(files.find(cell)), None) if cell else None for cell in table.column(column)[:TRIED]]


def _most(found: Sequence[object]) -> bool:
    """Returns whether something of its own is found for most rows, unlike 0 and 1 in the rows of a label."""
    return 2 * len(set(found) - {None}) > len(found)


def find_paths(table: Table, column: str, files: Files, one_row: str) -> tuple[list[Path], list[Finding]]:
    """Finds the file of each row.

    Args:
        table: the table.
        column: the column of paths.
        files: finds the files.
        one_row: the end of the error about a file that two rows name.

    Returns:
        The files, and errors about those that do not exist, or of which it is not clear which is meant.
    """
    cells, folder = table.column(column), files.folder
    table.refuse([not cell for cell in cells], f"have no {column}")
    found = [files.find(cell) for cell in cells]
    paths = [of_cell[0] if len(of_cell) == 1 else folder / cell for of_cell, cell in zip(found, cells)]
    same = [os.path.normpath(path) for path in paths]  # ./a.jpg is a.jpg
    count = Counter(same)
    table.refuse(
        [count[file] > 1 for file in same], f"name a file that another row names; keep one row for each image{one_row}"
    )
    findings = []
    if missing := [cell for cell, of_cell in zip(cells, found) if not of_cell]:
        fix = "correct the paths, or set data.images to the folder to which they are relative"
        fix = next((other for form, other in ELSEWHERE.items() if form.match(missing[0])), fix)
        if cased := files.in_other_case(missing[0]):
            fix = f"write each path as its file is called, such as {cased!r} for {missing[0]!r}"
        text = f"{len(missing)} of {len(paths)} files are not in {folder}"
        findings.append(Finding(text, tuple(map(repr, missing)), fix, error=True))
    several = [(cell, of_cell) for cell, of_cell in zip(cells, found) if len(of_cell) > 1]
    if several:
        text = f"{counted(len(several), 'row names', 'rows name')} several files"
        items = tuple(f"{cell!r} ({', '.join(ascii(file.name) for file in of_cell)})" for cell, of_cell in several)
        findings.append(Finding(text, items, "write the whole name, with the extension", error=True))
    return paths, findings
