"""Checks a submission against the competition's sample file; reports all mistakes at once, and warns of oddities."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from engine.data.names import nfc, on_disk
from engine.data.sources.layout import Answers, refuse_nested, split_folders
from engine.data.sources.scan import Ignored, class_files, folders_in
from engine.data.tables.cells import NUMBER, is_formula, unguarded
from engine.data.tables.csv_files import Table, read_table
from engine.submit.images import natural
from engine.submit.joined import labels_in
from engine.submit.sample import Sample
from engine.tasks import ONE_LABEL, Task
from engine.wording import counted, few
from models.settings import UserError

SUM = 1e-3  # allowed deviation of a sum of probabilities from 1, since they may be rounded to a few digits
DECIMAL_COMMA = re.compile(r"[0-9]*,[0-9]+")
NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)")
NOT_ONE = "probabilities that do not sum up to 1"
FORM = "; they differ from the sample's in Unicode's form (NFC, NFD): copy them from the sample"


@dataclass(frozen=True)
class Report:
    """The result of checking a submission: mistakes, warnings, and one line that summarises it."""

    problems: list[str]
    warnings: list[str]
    summary: str = ""


def validate(
    path: Path,
    sample: Sample,
    classes: Sequence[str] | None = None,
    task: Task | None = None,
    *,
    keep_formulas: bool = False,
) -> Report:
    """Checks a submission against its sample: columns, ids and their order, labels or probabilities, formulas.

    Args:
        path: the submission.
        sample: the form that it should have.
        classes: the allowed labels; None: unknown, labels are compared only with those in the sample.
        task: what the labels mean; None: unknown, probabilities that do not sum up to 1 are only a warning.
        keep_formulas: whether cells that a spreadsheet would compute are allowed.
    """
    try:
        table, warnings = _read_as(path, sample)
    except UserError as error:
        return Report([str(error)], [])
    problems = _header(table, sample)
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
        probabilities = probabilities if classes is None else sample.asks_for_probabilities(classes, task or ONE_LABEL)
    except UserError as error:
        return Report([*problems, str(error)], warnings)
    if probabilities:
        wrong, odd, counts = _probabilities(table, [columns[name] for name in sample.others], sample.others, task)
    elif len(sample.others) == 1:
        wrong, odd, counts = _labels(table, columns[sample.others[0]], sample, classes, task or ONE_LABEL)
    else:
        wrong, odd = ([], ["its columns are not checked, since the classes are unknown; give --run or --classes"])
    return Report(problems + wrong, warnings + odd, counted(len(table.rows), "row") + _distribution(counts, classes))


def _read_as(path: Path, sample: Sample) -> tuple[Table, list[str]]:
    """Reads the table with the sample's separator if that yields the sample's columns, otherwise with its own.

    Returns:
        The table, and a warning if its columns are the sample's only without the blanks before quotation marks.
    """
    loose = "blanks stand before quotation marks, which many scorers take for a part of the name: remove them"
    for strip, separator in ((False, sample.separator), (True, sample.separator)):
        try:
            table = read_table(path, str(path), strip=strip, separator=separator)
        except UserError:
            continue
        if [unguarded(name.strip()) for name in table.columns] == sample.columns:
            return table, [loose] if strip else []
    return read_table(path, str(path), strip=False), []


def _header(table: Table, sample: Sample) -> list[str]:
    problems, names = [], {",": "commas", ";": "semicolons", "\t": "tabs"}
    if table.announced:
        problems.append("the first line names the separator, for spreadsheets; a scorer takes it for the header")
    columns = [unguarded(name.strip()) for name in table.columns]
    if table.separator != sample.separator:
        problems.append(f"cells are separated by {names[table.separator]}, the sample's by {names[sample.separator]}")
    missing = [repr(name) for name in sample.columns if name not in columns]
    unknown = [repr(name) for name in columns if name not in sample.columns]
    if missing:
        problems.append(
            f"{len(missing)} of the sample's columns are missing: {few(missing)}; the header has "
            f"{few(list(map(repr, columns)))}"
        )
    if unknown:
        problems.append(f"{counted(len(unknown), 'column is', 'columns are')} not in the sample: {few(unknown)}")
    if set(map(nfc, missing)) & set(map(nfc, unknown)):
        problems[-1] += FORM
    if not missing and not unknown and columns != sample.columns:
        problems.append(f"columns are not in the order {', '.join(sample.columns[:5])}")
    return problems


def _ids(table: Table, ids: Sequence[str], sample: Sample) -> list[str]:
    problems, count, sample_ids = [], Counter(ids), set(sample.ids)
    twice = [name for name, number in count.items() if number > 1]
    missing = [name for name in sample.ids if name not in count]
    unknown = [name for name in count if name not in sample_ids]
    for names, what in ((twice, "more than once"), (missing, "missing"), (unknown, "not in the sample")):
        if names:
            problems.append(f"{counted(len(names), 'id is', 'ids are')} {what}: {few(list(map(repr, names)))}")
    if set(map(nfc, missing)) & set(map(nfc, unknown)):
        problems[-1] += FORM
    elif {PurePosixPath(name).stem for name in missing} & {PurePosixPath(name).stem for name in unknown}:
        problems[-1] += "; spell them as the sample does, with or without the extension"
    if not problems and list(ids) != sample.ids:
        at = next(i for i, (one, other) in enumerate(zip(ids, sample.ids)) if one != other)
        problems.append(
            f"rows are not in the sample's order from line {table.lines[at]} on: {ids[at]!r}, where "
            f"the sample has {sample.ids[at]!r}"
        )
    return problems


def _raw_formulas(table: Table) -> list[str]:
    lines = [1, *table.lines]
    cells = [
        f"{cell!r} (line {line})"
        for line, row in zip(lines, (table.columns, *table.rows))
        for cell in row
        if is_formula(cell)
    ]
    if not cells:
        return []
    found = f"{counted(len(cells), 'cell')} would be computed by a spreadsheet: {few(cells)}"
    return [f"{found}; write an apostrophe before {'it' if len(cells) == 1 else 'them'}"]


def _blanks(table: Table, names: set[str]) -> list[str]:
    """Returns a warning about cells with blanks around them, unless the blanks belong to one of the names."""
    lines = [1, *table.lines]
    cells = [
        f"{cell!r} (line {line})"
        for line, row in zip(lines, (table.columns, *table.rows))
        for cell in row
        if cell != cell.strip() and unguarded(cell) not in names
    ]
    if not cells:
        return []
    text = counted(len(cells), "cell has blanks around it", "cells have blanks around them")
    return [f"{text}, which many scorers treat as part of the name: {few(cells)}"]


def _labels(
    table: Table, cells: Sequence[str], sample: Sample, classes: Sequence[str] | None, task: Task
) -> tuple[list[str], list[str], Counter]:
    """Returns problems, warnings, and how often each label occurs."""
    problems, warnings = [], []
    empty = [f"line {line}" for line, cell in zip(table.lines, cells) if not cell]
    if empty and task.one_class and (classes is not None or "" not in sample.labels):
        problems.append(f"{counted(len(empty), 'row has', 'rows have')} no label: {few(empty)}")
    joint = sample.joint(classes or (), task)
    counts = Counter(name for cell in cells for name in labels_in(cell, task, joint) if name)
    spelled = sample.labels if classes is None else sample.spelling(classes, task).values()
    allowed, alike = {name.strip() for name in spelled}, {nfc(name.strip()) for name in spelled}
    unknown = [f"{name!r} ({counted(number, 'row')})" for name, number in counts.items() if nfc(name) not in alike]
    if other := sorted(repr(name) for name in _other_bytes(counts, sample, task, joint)):
        told = counted(len(other), "label is that", "labels are those")
        problems.append(f"{told} of the sample in other bytes: {few(other)}{FORM}")
    if classes is not None and unknown:
        problems.append(
            f"{counted(len(unknown), 'label is', 'labels are')} unknown: {few(unknown)}; known are "
            f"{few(sorted(map(repr, allowed)))}"
        )
    elif unknown and len(allowed) > 1:
        warnings.append(f"{counted(len(unknown), 'label is', 'labels are')} not in the sample: {few(unknown)}")
    if classes is None:
        warnings.append("labels are not compared with a list of classes; give --run or --classes")
    if task.one_class:
        warnings += _lopsided(counts, len(cells))
    return problems, warnings, counts


def _other_bytes(names: Iterable[str], sample: Sample, task: Task, joint: str) -> list[str]:
    """Returns the names that equal labels of a sample in NFC, but none of them as they stand."""
    own = {name for cell in sample.labels for name in labels_in(cell, task, joint)}
    alike = set(map(nfc, own))
    return [name for name in names if name not in own and nfc(name) in alike]


def _probabilities(
    table: Table, columns: Sequence[Sequence[str]], names: Sequence[str], task: Task | None
) -> tuple[list[str], list[str], Counter]:
    """Returns problems, warnings, and how often each class is the most probable."""
    kinds: dict[str, list[str]] = {}
    counts: Counter = Counter()
    one_class = task is None or task.one_class
    for line, row in zip(table.lines, zip(*columns)):
        fault, values = "", [float(cell) if _is_number(cell) else None for cell in row]
        if None in values:
            fault = "a cell that is not a number"
            if any(DECIMAL_COMMA.fullmatch(cell) for cell in row):
                fault = "a decimal comma in place of a point"
        elif not all(map(math.isfinite, values)):
            fault = "a probability that is not finite"
        elif not all(0 <= value <= 1 for value in values):
            fault = "a probability outside 0 to 1"
        elif one_class and abs(sum(values) - 1) > SUM:
            fault = NOT_ONE
        if fault in ("", NOT_ONE):
            counts[names[values.index(max(values))]] += 1
        if fault:
            kinds.setdefault(fault, []).append(f"line {line}")
    problems, warnings = [], []
    for fault, lines in kinds.items():
        text = f"{counted(len(lines), 'row has', 'rows have')} {fault}: {few(lines)}"
        if fault == NOT_ONE and task is None:
            warnings.append(f"{text}; correct only if an image can have many labels")
        else:
            problems.append(text)
    if one_class:
        warnings += _lopsided(counts, len(table.rows))
    return problems, warnings, counts


def _is_number(cell: str) -> bool:
    return NUMBER.fullmatch(cell) is not None or NOT_FINITE.fullmatch(cell.lower()) is not None


def _lopsided(counts: Counter, rows: int) -> list[str]:
    """Returns a warning if one label dominates."""
    if not counts or rows < 2:
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
    """Returns the names of the class folders in a folder, or in its folder of training images, as training finds them.

    Raises:
        UserError: the folder does not exist, has no class folder in it, or it is not clear which are the classes.
    """
    where, fix = f"--classes {folder}", "give the folder that holds a folder for each class"
    folder = on_disk(folder)
    if not folder.is_dir():
        raise UserError(f"{where}: no such folder; {fix}")
    if not folders_in(folder, where):
        raise UserError(f"{where}: no folder in it; {fix}")
    answers = Answers("give a run with --run instead", "give the folder of training images")
    root = split_folders(folder, where, answers=answers)[0]["train"]
    by_class = class_files(root, where, Ignored())
    refuse_nested(by_class, root, folder, where, answers)
    return sorted(by_class, key=natural)
