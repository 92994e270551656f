"""Reads CSV files as people have them: tables of images, samples of a competition, and submissions."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from engine.data.names import nfc, on_disk
from engine.wording import counted, few
from models.settings import UserError

SEPARATORS = ",;\t"
# The line with which a spreadsheet is told the separator.
ANNOUNCEMENT = re.compile(r"\s*(?P<quote>\"?)sep=(?P<separator>.)(?P=quote)\s*", re.IGNORECASE)
# Blanks and characters of no width: byte order marks inside of files that were joined, and what web pages leave behind.
UNSEEN = r"[\s\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff]+"
AROUND = re.compile(f"^{UNSEEN}|{UNSEEN}$")

ONE = {"have": "has", "do": "does", "name": "names"}  # verbs of rules for rows, in the singular


@dataclass(frozen=True)
class Table:
    """A CSV file that was read.

    Attributes:
        where: the beginning of error messages, such as "data.path = 'a.csv'".
        columns: the header.
        rows: the cells of each row.
        lines: the line of each row in the file, from 1.
        separator: the character between cells.
        announced: whether the first line names the separator, as in sep=; for spreadsheets.
    """

    where: str
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]
    separator: str
    announced: bool = False

    def column(self, name: str) -> list[str]:
        """Returns the cells of a column."""
        at = self.columns.index(name)
        return [row[at] for row in self.rows]

    def refuse(self, wrong: list[bool], rule: str) -> None:
        """Raises a UserError if there are wrong rows; the message counts them and names the first lines.

        Args:
            wrong: whether each row is.
            rule: what is wrong with rows, beginning with one of the verbs in ONE.
        """
        lines = [str(line) for line, bad in zip(self.lines, wrong) if bad]
        if lines:
            verb, rest = rule.split(" ", 1)
            rows = counted(len(lines), f"row {ONE[verb]} {rest}", f"rows {rule}")
            raise UserError(f"{self.where}: {rows} (line {few(lines)})")


def read_table(path: Path, where: str, *, strip: bool = True, separator: str | None = None) -> Table:
    """Reads a CSV file in UTF-8 with a header and at least one row; rows whose cells are all empty are ignored.

    Args:
        path: the file.
        where: the beginning of error messages, such as "data.path = 'a.csv'".
        strip: whether to remove blanks around each cell, also those before a quotation mark, as in `"a", "b"`.
        separator: the character between cells; None: the one that a first line such as `sep=;` names, or else the one
            of SEPARATORS that occurs most often in the header.

    Raises:
        UserError: the file is not such a table, columns have no name or the same name, or a row does not have as many
            cells as the header.
    """
    text = _text(path, where)
    lines = text.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    announced = ANNOUNCEMENT.fullmatch(lines[first]) if lines else None
    if announced:
        lines[first] = "\n"  # so that the other lines keep their numbers
        separator = separator or _known(announced["separator"], where)
        first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    head = lines[first].rstrip("\r\n") if lines else ""
    separator = separator or max(SEPARATORS, key=lambda s: len(next(csv.reader([head], delimiter=s), [])))
    try:
        rows = _rows("".join(lines), separator, strip)
    except csv.Error as error:
        raise UserError(f"{where}: not CSV ({error}); save the table as CSV in UTF-8") from None
    rows = [(row, line) for row, line in rows if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise UserError(f"{where}: {counted(len(rows), 'row')}; a header and a row for each image are needed")
    columns = rows[0][0]
    twice = [repr(name) for name, count in Counter(map(nfc, columns)).items() if count > 1]
    if "" in columns:
        number, count = columns.index("") + 1, len(columns)
        raise UserError(
            f"{where}: column {number} of {count} has no name in the header; give it one, or remove it (pandas writes "
            "numbers of rows there; index=False leaves them out)"
        )
    if twice:
        raise UserError(f"{where}: the header has a column twice: {few(twice)}; give each column a name of its own")
    table = Table(
        where, columns, [row for row, _ in rows[1:]], [line for _, line in rows[1:]], separator, announced is not None
    )
    table.refuse(
        [len(row) != len(columns) for row in table.rows], f"do not have the header's {counted(len(columns), 'cell')}"
    )
    return table


def _text(path: Path, where: str) -> str:
    """Returns the text of a file in UTF-8, with or without a byte order mark."""
    try:
        data = on_disk(path).read_bytes()
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}; give a CSV file with a header") from None
    except ValueError:
        raise UserError(f"{where}: no such file; give a CSV file with a header") from None
    if data.startswith(b"PK\x03\x04"):
        raise UserError(f"{where}: not a text file but an archive, such as a workbook; save the table as CSV in UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        found = "but UTF-16" if utf16 else f"(byte {error.start}), in line {data[: error.start].count(10) + 1}"
        raise UserError(f"{where}: not UTF-8 {found}; save the table as CSV in UTF-8") from None
    if "\0" in text:
        raise UserError(f"{where}: not a text file; save the table as CSV in UTF-8")
    return text


def _known(separator: str, where: str) -> str:
    if separator not in SEPARATORS:
        raise UserError(f"{where}: the first line names {separator!r}; separate cells by commas, semicolons or tabs")
    return separator


def _rows(text: str, separator: str, strip: bool) -> list[tuple[list[str], int]]:
    """Returns the cells of each row and its line; blanks before a quotation mark are ignored if that makes sense."""

    def rows(text: str, skip: bool) -> list[tuple[list[str], int]]:
        options = {"delimiter": separator, "strict": True, "skipinitialspace": skip}
        reader = csv.reader(io.StringIO(text, newline=""), **options)
        try:
            return [([AROUND.sub("", cell) if strip else cell for cell in row], reader.line_num) for row in reader]
        except csv.Error as error:
            raise csv.Error(f"{error}, line {reader.line_num}") from None

    if not strip:
        return rows(text, skip=False)
    for readable in (text, _without_blanks_after_quotes(text, separator)):
        try:
            return rows(readable, skip=True)
        except csv.Error:
            pass
    return rows(text, skip=False)  # a cell may begin with a blank and a quotation mark, and go on after the closing one


def _without_blanks_after_quotes(text: str, separator: str) -> str:
    """Returns the text without blanks between the closing quotation mark of a cell and the end of the cell."""
    begin, end = rf"(?:\A|(?<=[{re.escape(separator)}\r\n]))", rf"(?=[{re.escape(separator)}\r\n]|\Z)"
    # A whole cell is matched, so that nothing within its quotation marks is.
    return re.sub(rf'{begin}( *"(?:[^"]|"")*+") *{end}', r"\1", text)
