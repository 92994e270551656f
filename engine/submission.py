"""Files that are handed in: what a sample file asks for, written in that form, read back and checked.

A spreadsheet computes a cell that begins with one of FORMULA, also where it was meant as a name. Such a cell is written
with an apostrophe before it, which spreadsheets take for "this is text"; whoever reads one here takes it off again.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from engine.data.images import few
from engine.data.table import Table, read_table
from engine.run import replacing
from engine.testset import natural
from models.settings import UserError

log = logging.getLogger("hybridmerge")

FORMULA = "=+-@\t\r＝＋－＠"  # wide ones too: some spreadsheets take them for the others
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
QUOTED = re.compile(r"[\",;\t\r\n]|^\s|\s$")  # more than one separator: a spreadsheet may split at another than ours
TOGETHER = ";"  # between the labels of an image that has many
SUM = 1e-3  # how far probabilities, which may be rounded to a few digits, may sum up to something else than 1
NOT_ONE = "probabilities that do not sum up to 1"


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

    def asks_for_probabilities(self, classes: Sequence[str], many: bool) -> bool:
        """Whether there is a column of probabilities for each class, rather than one column of labels.

        Args:
            classes: names.
            many: whether any number of them apply to an image.

        Raises:
            UserError: neither is what the columns are, or labels are not joined as they are here.
        """
        asked, has = set(self.others), {name.strip() for name in classes}
        if asked == has and len(self.others) == len(classes):
            return True
        if len(self.others) > 1:
            unknown, missing = (sorted(map(repr, names)) for names in (asked - has, has - asked))
            said = [f"{len(names)} {what} ({few(names)})" for names, what in
                    ((unknown, "are no class"), (missing, "classes have none")) if names]  # fmt: skip
            raise UserError(f"{self.where}: {len(self.others)} columns beside {self.columns[self.ids_at]!r}, but not "
                            f"one for each of the {len(classes)} classes: {', '.join(said)}; "
                            "give a sample with one column of labels, or one for each class")  # fmt: skip
        (name,) = self.others
        if name in has and self.numeric and not set(self.labels) <= has:
            raise UserError(f"{self.where}: column {name!r} is one of {len(classes)} classes and holds numbers: it "
                            "asks for that class alone; write --probabilities, and keep its column")  # fmt: skip
        if many:
            _check_together(self, has)
        return False


def _check_together(sample: Sample, classes: set[str]) -> None:
    odd = [repr(name) for name in sorted(classes) if TOGETHER in name]
    if odd:
        raise UserError(f"{sample.where}: labels of an image are joined by {TOGETHER}, which these have in them: "
                        f"{few(odd)}; write --probabilities, with a column for each")  # fmt: skip
    cells = [cell for cell in sample.labels if cell and not {n.strip() for n in cell.split(TOGETHER)} <= classes]
    if cells:
        raise UserError(f"{sample.where}: column {sample.others[0]!r} has {cells[0]!r}, which is not names joined by "
                        f"{TOGETHER}; write --probabilities, with a column for each label")  # fmt: skip


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
        raise UserError(f"{path}: a single column, {table.columns[0]!r}; give a file with ids and labels")
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
        log.warning("%s: %d texts would be computed by a spreadsheet and %s: %s", path, len(formulas), what,
                    few(formulas))  # fmt: skip
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


@dataclass(frozen=True)
class Report:
    """What was found in a submission: mistakes of each kind, what is odd but may be meant, and a line about it."""

    problems: list[str]
    warnings: list[str]
    summary: str = ""


def validate(
    path: Path,
    sample: Sample,
    classes: Sequence[str] | None = None,
    many: bool | None = None,
    keep_formulas: bool = False,
) -> Report:
    """Checks a submission against its sample: columns, every id once and in order, labels or probabilities, formulas.

    Args:
        path: the submission.
        sample: what it should look like.
        classes: the labels that are allowed; None: not known, so that labels are compared with the sample's alone.
        many: whether any number of labels apply to an image; None: not known.
        keep_formulas: cells that a spreadsheet would compute are no mistake.
    """
    try:
        table = _read_as(path, sample)
    except UserError as error:
        return Report([str(error)], [])
    problems, warnings = _header(table, sample), []
    if not keep_formulas:
        problems += _raw_formulas(table)
    warnings += _blanks(table, {*sample.columns, *sample.ids, *(classes or ())})
    clean = [[unguarded(cell.strip()).strip() for cell in row] for row in (table.columns, *table.rows)]
    columns = dict(zip(clean[0], zip(*clean[1:])))
    if (ids := columns.get(sample.columns[sample.ids_at])) is not None:
        problems += _ids(table, ids, sample)
    if not set(sample.others) <= columns.keys():
        return Report(problems, warnings)
    counts, probabilities = None, len(sample.others) > 1 and sample.numeric
    try:
        probabilities = probabilities if classes is None else sample.asks_for_probabilities(classes, bool(many))
    except UserError as error:
        return Report([*problems, str(error)], warnings)
    if probabilities:
        wrong, odd, counts = _probabilities(table, [columns[name] for name in sample.others], sample.others, many)
    elif len(sample.others) == 1:
        wrong, odd, counts = _labels(table, columns[sample.others[0]], sample, classes, many)
    else:
        wrong, odd = [], ["what its columns should hold is not known, and not checked; give --run or --classes"]
    return Report(problems + wrong, warnings + odd, f"{len(table.rows)} rows" + _distribution(counts, classes))


def _read_as(path: Path, sample: Sample) -> Table:
    """The table, by the sample's separator if that gives the sample's columns, else by its own."""
    try:
        table = read_table(path, str(path), strip=False, separator=sample.separator)
        if [unguarded(name.strip()) for name in table.columns] == sample.columns:
            return table
    except UserError:
        pass
    return read_table(path, str(path), strip=False)


def _header(table: Table, sample: Sample) -> list[str]:
    problems, names = [], {",": "commas", ";": "semicolons", "\t": "tabs"}
    columns = [unguarded(name.strip()) for name in table.columns]
    if table.separator != sample.separator:
        problems.append(f"cells are separated by {names[table.separator]}, the sample's by {names[sample.separator]}")
    missing = [repr(name) for name in sample.columns if name not in columns]
    unknown = [repr(name) for name in columns if name not in sample.columns]
    if missing:
        problems.append(f"{len(missing)} of the sample's columns are missing: {few(missing)}; the header has "
                        f"{few(list(map(repr, columns)))}")  # fmt: skip
    if unknown:
        problems.append(f"{len(unknown)} columns are not in the sample: {few(unknown)}")
    if not missing and not unknown and columns != sample.columns:
        problems.append(f"columns are in another order than {', '.join(sample.columns[:5])}")
    return problems


def _ids(table: Table, ids: Sequence[str], sample: Sample) -> list[str]:
    problems, count, wanted = [], Counter(ids), set(sample.ids)
    twice = [name for name, number in count.items() if number > 1]
    missing = [name for name in sample.ids if name not in count]
    unknown = [name for name in count if name not in wanted]
    for names, what in ((twice, "more than once"), (missing, "missing"), (unknown, "not in the sample")):
        if names:
            problems.append(f"{len(names)} ids are {what}: {few(list(map(repr, names)))}")
    if {PurePosixPath(name).stem for name in missing} & {PurePosixPath(name).stem for name in unknown}:
        problems[-1] += "; spell them as the sample does, with or without the extension"
    if not problems and list(ids) != sample.ids:
        at = next(i for i, (one, other) in enumerate(zip(ids, sample.ids)) if one != other)
        problems.append(f"rows are in another order than the sample's, from line {table.lines[at]}: {ids[at]!r}, where "
                        f"the sample has {sample.ids[at]!r}")  # fmt: skip
    return problems


def _raw_formulas(table: Table) -> list[str]:
    lines = [1, *table.lines]
    found = [f"{cell!r} (line {line})" for line, row in zip(lines, (table.columns, *table.rows))
             for cell in row if is_formula(cell)]  # fmt: skip
    if not found:
        return []
    return [f"{len(found)} cells would be computed by a spreadsheet: {few(found)}; write an apostrophe before them"]


def _blanks(table: Table, names: set[str]) -> list[str]:
    """A warning about cells that are not written as they are meant, unless a name has these blanks itself."""
    lines = [1, *table.lines]
    found = [f"{cell!r} (line {line})" for line, row in zip(lines, (table.columns, *table.rows)) for cell in row
             if cell != cell.strip() and unguarded(cell) not in names]  # fmt: skip
    if not found:
        return []
    return [f"{len(found)} cells have blanks around them, which many scorers take for a part of the name: {few(found)}"]


def _labels(
    table: Table, cells: Sequence[str], sample: Sample, classes: Sequence[str] | None, many: bool | None
) -> tuple[list[str], list[str], Counter]:
    """Problems, warnings, and how often each label is there."""
    problems, warnings = [], []
    empty = [f"line {line}" for line, cell in zip(table.lines, cells) if not cell]
    if empty and not many and (classes is not None or "" not in sample.labels):
        problems.append(f"{len(empty)} rows have no label: {few(empty)}")
    rows = [[name.strip() for name in cell.split(TOGETHER)] if many else [cell] for cell in cells]
    counts = Counter(name for row in rows for name in row if name)
    known = {name.strip() for name in (classes if classes is not None else sample.labels)}
    unknown = [f"{name!r} ({number} rows)" for name, number in counts.items() if name not in known]
    if classes is not None and unknown:
        problems.append(f"{len(unknown)} labels are unknown: {few(unknown)}; known are {few(sorted(map(repr, known)))}")
    elif unknown and len(known) > 1:
        warnings.append(f"{len(unknown)} labels are not in the sample: {few(unknown)}")
    if classes is None:
        warnings.append("labels are compared with no list of names; give --run or --classes")
    return problems, warnings + _lopsided(counts, len(cells), many), counts


def _probabilities(
    table: Table, columns: Sequence[Sequence[str]], names: Sequence[str], many: bool | None
) -> tuple[list[str], list[str], Counter]:
    """Problems, warnings, and how often each class is the most probable."""
    kinds: dict[str, list[str]] = {}
    counts: Counter = Counter()
    for line, row in zip(table.lines, zip(*columns)):
        fault, values = "", [float(cell) if _is_number(cell) else None for cell in row]
        if None in values:
            fault = "a cell that is no number"
        elif not all(map(math.isfinite, values)):
            fault = "a probability that is not finite"
        elif not all(0 <= value <= 1 for value in values):
            fault = "a probability outside 0 to 1"
        elif not many and abs(sum(values) - 1) > SUM:
            fault = NOT_ONE
        if fault in ("", NOT_ONE):
            counts[names[values.index(max(values))]] += 1
        if fault:
            kinds.setdefault(fault, []).append(f"line {line}")
    problems, warnings = [], []
    for fault, lines in kinds.items():
        said = f"{len(lines)} rows have {fault}: {few(lines)}"
        if fault == NOT_ONE and many is None:
            warnings.append(f"{said}; right only if an image can have many labels")
        else:
            problems.append(said)
    return problems, warnings + ([] if many else _lopsided(counts, len(table.rows), many)), counts


def _is_number(cell: str) -> bool:
    return NUMBER.fullmatch(cell) is not None or cell.lower().lstrip("+-") in ("nan", "inf", "infinity")


def _lopsided(counts: Counter, rows: int, many: bool | None) -> list[str]:
    """A warning where one label is nearly all there is."""
    if not counts or many or rows < 2:
        return []
    (name, most), *_ = counts.most_common(1)
    if most == rows:
        return [f"every row says {name!r}"]
    if most > rows / 2 and len(counts) > 2:
        return [f"{most} of {rows} rows say {name!r}"]
    return []


def _distribution(counts: Counter | None, classes: Sequence[str] | None) -> str:
    if not counts:
        return ""
    of = "" if classes is None else f" of {len(classes)}"
    (most, top), (least, low) = counts.most_common()[0], counts.most_common()[-1]
    return f", {len(counts)}{of} labels; most often {most!r} ({top}), least {least!r} ({low})"


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders in a folder, or in its folder `train`.

    Raises:
        UserError: no such folder, or none in it.
    """

    def folders(path: Path) -> list[str]:
        inside = path.iterdir() if path.is_dir() else ()
        return sorted((p.name for p in inside if p.is_dir() and not p.name.startswith(".")), key=natural)

    found = folders(folder / "train") or folders(folder)
    if not found:
        raise UserError(f"--classes {folder}: {'no folder in it' if folder.is_dir() else 'no such folder'}; "
                        "give the folder that holds a folder for each class")  # fmt: skip
    return found
