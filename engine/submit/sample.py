"""Files that are handed in: what a sample file asks for, written in that form, read back.

A spreadsheet computes a cell that begins with one of FORMULA, also where it was meant as a name. Such a cell is written
with an apostrophe before it, which spreadsheets take for "this is text"; whoever reads one here takes it off again.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.data.sources.table import read_table
from engine.files import replacing
from engine.wording import few
from models.settings import UserError

log = logging.getLogger("hybridmerge")

FORMULA = "=+-@\t\r＝＋－＠"  # wide ones too: some spreadsheets take them for the others
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
QUOTED = re.compile(r"[\",;\t\r\n]|^\s|\s$")  # more than one separator: a spreadsheet may split at another than ours
TOGETHER = ";"  # between the labels of an image that has many


@dataclass(frozen=True)
class Sample:
    """What a submission looks like: its columns, which of them has the ids, and the ids in the order of the rows.

    `labels` are the cells of the other column where there is one, each once; `numeric` tells whether the cells of all
    other columns are numbers. None of the texts has an apostrophe for spreadsheets any more.
    """

    where: str
    columns: list[str]
    ids_at: int
    ids: list[str]
    separator: str = ","
    labels: tuple[str, ...] = ()
    numeric: bool = False

    @property
    def others(self) -> list[str]:
        """The columns beside the ids."""
        return self.columns[: self.ids_at] + self.columns[self.ids_at + 1 :]

    def spelling(self, classes: Sequence[str], many: bool = False) -> dict[str, str]:
        """How the sample spells each class, where all of its columns or labels stand for one class each and none is
        left out; else as it is. Spellings may differ in case, in leading zeros, and in blanks, - or _ between words.

        Args:
            classes: names.
            many: whether labels of an image are joined.
        """
        by_key = {_key(name): name for name in classes}
        labels = [name for cell in self.labels for name in (cell.split(TOGETHER) if many else [cell])]
        for theirs in (self.others, list(dict.fromkeys(name.strip() for name in labels if name.strip()))):
            if len(by_key) == len(classes) == len(theirs) and {_key(name) for name in theirs} == by_key.keys():
                return {by_key[_key(name)]: name for name in theirs}
        return {name: name for name in classes}

    def asks_for_probabilities(self, classes: Sequence[str], many: bool) -> bool:
        """Whether there is a column of probabilities for each class, rather than one column of labels.

        Args:
            classes: names.
            many: whether any number of them apply to an image.

        Raises:
            UserError: neither is what the columns are, or labels are not joined as they are here.
        """
        asked, has = set(self.others), {name.strip() for name in self.spelling(classes, many).values()}
        if asked == has and len(self.others) == len(classes):
            return True
        if len(self.others) > 1:
            unknown, missing = (sorted(map(repr, names)) for names in (asked - has, has - asked))
            said = [
                f"{len(names)} {what} ({few(names)})"
                for names, what in ((unknown, "are no class"), (missing, "classes have none"))
                if names
            ]
            raise UserError(
                f"{self.where}: {len(self.others)} columns beside {self.columns[self.ids_at]!r}, but not "
                f"one for each of the {len(classes)} classes: {', '.join(said)}; "
                "give a sample with one column of labels, or one for each class"
            )
        (name,) = self.others
        if name in has and self.numeric and not set(self.labels) <= has:
            raise UserError(
                f"{self.where}: column {name!r} is one of {len(classes)} classes and holds numbers: it "
                "asks for that class alone; write --probabilities, and keep its column"
            )
        if many:
            _check_together(self, has)
        return False


def _key(name: str) -> str:
    """What spellings of one name have in common; a sign or a decimal point sets two numbers apart."""
    words = re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", name.casefold().strip())
    return re.sub(r"(?<![0-9.,])0+(?=[0-9])", "", words)


def _check_together(sample: Sample, classes: set[str]) -> None:
    odd = [repr(name) for name in sorted(classes) if TOGETHER in name]
    if odd:
        raise UserError(
            f"{sample.where}: labels of an image are joined by {TOGETHER}, which these have in them: "
            f"{few(odd)}; write --probabilities, with a column for each"
        )
    cells = [cell for cell in sample.labels if cell and not {n.strip() for n in cell.split(TOGETHER)} <= classes]
    if cells:
        raise UserError(
            f"{sample.where}: column {sample.others[0]!r} has {cells[0]!r}, which is not names joined by "
            f"{TOGETHER}; write --probabilities, with a column for each label"
        )


def read_sample(path: Path, matching: Callable[[Sequence[str]], int] | None = None) -> Sample:
    """Reads a sample file: a header, and a row for each image.

    Args:
        path: CSV in UTF-8, separated by commas, semicolons or tabs.
        matching: tells how many of the texts name an image. The column of ids is the first of those where most do, if
            that is half of the rows or more; else, and without it, the first in which no text is there twice.

    Raises:
        UserError: no such file, fewer than two columns, or ids that are missing or there twice.
    """
    table = read_table(path, str(path))
    if len(table.columns) < 2:
        raise UserError(
            f"{path}: a single column, {table.columns[0]!r}; give a file with ids and labels, separated "
            "by commas, semicolons or tabs"
        )
    columns = [[unguarded(row[i]) for row in table.rows] for i in range(len(table.columns))]

    def fitness(cells: list[str]) -> tuple[int, bool]:
        found = matching(cells) if matching else 0
        # Labels such as 1 and 2 may name images by chance: where no column's cells do, ids are told by being unique.
        return found if 2 * found >= len(cells) else 0, len(set(cells)) == len(cells)

    ids_at = max(range(len(columns)), key=lambda i: fitness(columns[i]))  # the first of equals
    ids, name = columns[ids_at], table.columns[ids_at]
    count = Counter(ids)
    table.refuse([not cell for cell in ids], f"have no {name}")
    table.refuse([count[cell] > 1 for cell in ids], f"have the same {name} as another; keep one row for each image")
    rest = [cells for i, cells in enumerate(columns) if i != ids_at]
    labels = tuple(dict.fromkeys(rest[0])) if len(rest) == 1 else ()
    numeric = all(NUMBER.fullmatch(cell) for cells in rest for cell in cells)
    return Sample(str(path), list(map(unguarded, table.columns)), ids_at, ids, table.separator, labels, numeric)


def is_formula(cell: str) -> bool:
    """Whether a spreadsheet would compute a cell."""
    text = cell.lstrip(" \n")
    return text[:1] != "" and text[0] in FORMULA and not NUMBER.fullmatch(text)


def guarded(cell: str) -> str:
    """A cell as text for spreadsheets: an apostrophe before a formula, and before what `unguarded` would change."""
    return "'" + cell if is_formula(cell.lstrip("'")) else cell


def unguarded(cell: str) -> str:
    """What `guarded` was given."""
    return cell[1:] if cell.startswith("'") and is_formula(cell.lstrip("'")) else cell


def number(value: float) -> str:
    """A probability as it is written."""
    return f"{value:.9g}"


@dataclass(frozen=True)
class Report:
    """What was found in a submission: mistakes of each kind, what is odd but may be meant, and a line about it."""

    problems: list[str]
    warnings: list[str]
    summary: str = ""


def write(
    path: Path,
    sample: Sample,
    rows: Sequence[Sequence[str]],
    keep_formulas: bool = False,
    check: Callable[[Path], Report] | None = None,
) -> None:
    """Writes a submission: UTF-8, lines ended by a line feed. It takes its name when it was read back and is right.

    Args:
        path: the file, which may exist.
        sample: for header, separator and ids.
        rows: for each id the cells beside it.
        keep_formulas: write cells that a spreadsheet would compute as they are.
        check: judges the whole file.

    Raises:
        UserError: the file cannot be written, or what was read back is not what should stand there; the old file stays.
    """
    assert len(rows) == len(sample.ids)
    at = sample.ids_at
    cells = [sample.columns, *([*row[:at], name, *row[at:]] for name, row in zip(sample.ids, rows, strict=True))]
    formulas = sorted({repr(cell) for row in cells for cell in row if guarded(cell) != cell})
    if formulas:
        what = "are written as they are (--formulas keep): open the file in no spreadsheet"
        if not keep_formulas:
            what = "are written with an apostrophe before them; a scorer that compares texts needs --formulas keep"
        log.warning(
            "%s: %d texts would be computed by a spreadsheet and %s: %s", path, len(formulas), what, few(formulas)
        )
        if not keep_formulas:
            cells = [[guarded(cell) for cell in row] for row in cells]
    text = "".join(sample.separator.join(map(_quoted, row)) + "\n" for row in cells)
    with replacing(path) as file:
        file.write(text.encode())
        file.flush()
        table = read_table(Path(file.name), str(path), strip=False, separator=sample.separator)
        if [table.columns, *table.rows] != cells:
            raise UserError(f"{path}: not written: read back, it has other cells than were predicted; this is a bug")
        if check is not None and (problems := check(Path(file.name)).problems):
            raise UserError(f"{path}: not written: {'; '.join(problems)}")


def _quoted(cell: str) -> str:
    if QUOTED.search(cell) or guarded(cell) != cell or unguarded(cell) != cell:
        return '"' + cell.replace('"', '""') + '"'
    return cell
