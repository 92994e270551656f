"""The dataset `csv`: a CSV file with a row for each image, which holds its path and one label or several."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from engine.data.check.findings import Finding, Source
from engine.data.formats import has_image_extension
from engine.data.names import Files, differing, nfc, on_disk, split_of, twins
from engine.data.settings import DataPath, FileSettings
from engine.data.sources.joined import LabelSeparator, joined_classes, missing_names, names_in
from engine.data.sources.table_paths import find_paths, path_column
from engine.data.tables.cells import unguarded
from engine.data.tables.csv_files import Table, read_table
from engine.tasks import TASKS, Task
from engine.wording import counted, few
from models.settings import UserError

SPLITS = ("train", "val", "test")
FLAGS = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0, "no": 0.0, "yes": 1.0, "n": 0.0, "y": 1.0}


class CsvSettings(FileSettings):
    """`path` is the table; see find_csv for its columns."""

    name: Literal["csv"] = "csv"
    path: DataPath = Field(description="the CSV file, with a header")
    images: DataPath | None = Field(None, description="folder to which the paths are relative; null: the table's own")
    labels: Literal["one", "many"] = Field(
        "one", description="one: each image has one label; many: any number of labels"
    )
    label_separator: LabelSeparator | None = Field(
        None,
        description="what joins the names in a cell of the column labels: semicolon, bar, comma, slash, blank, ...",
    )

    @model_validator(mode="after")
    def _joins_something(self) -> CsvSettings:
        if self.label_separator and self.labels != "many":
            raise ValueError(f"label_separator = {self.label_separator}: joins many labels; set labels=many as well")
        return self

    @property
    def task(self) -> Task:
        return TASKS[self.labels]


def find_csv(settings: CsvSettings) -> Source:
    """Finds the images in a CSV file: UTF-8, separated by commas, semicolons or tabs, with a header.

    The column `path`, or else the first one, holds the image's file; its extension may be left out. Without `path`
    it is an error if another column than the first names images, since the first may then hold numbers of rows. With
    data.labels "one" the column `label` holds the name of the image's class. With "many" either the column `labels`
    holds names separated by `;`, or by data.label_separator, or every column other than the path and `split` is a
    label, 1 where it applies and 0 elsewhere. The optional column `split` holds train, val or test; without val or test
    rows images are held out (see engine.data.split). Names are compared in Unicode's composed form, NFC.

    Returns:
        Files and labels, int64 (N,), or float32 (N, K) for "many", in the order of the rows. Classes are sorted by
        name, or in the order of the columns. Missing files are among the findings.

    Raises:
        UserError: the file is not a table, lacks a column, or has rows without a required entry.
    """
    where = f"data.path = {settings.path!r}"
    layout = LAYOUTS[settings.labels]
    table = _read(settings, where, {"path", "split", layout.column})
    files = Files(on_disk(Path(settings.images or Path(settings.path).parent)), has_image_extension)
    path = path_column(table, files, layout.column)
    names = [c for c in table.columns if c not in (path, "split")]
    _check_splits(table, path, layout)
    if not layout.required <= set(names) or not names:
        fix = f"data.labels = {settings.labels!r} needs {layout.columns}"
        if len(table.columns) == 1:
            fix += "; cells are separated by commas, semicolons or tabs"
        raise UserError(f"{where}: the header has {', '.join(map(repr, table.columns))}; {fix}")
    paths, findings = find_paths(table, path, files, layout.one_row)
    splits = _splits(table)
    classes, labels, of_labels = layout.read(table, names, splits, settings)
    findings += of_labels + missing_names(classes)
    samples = {}
    for split in [split for split in SPLITS if split in splits]:
        rows = [i for i, other in enumerate(splits) if other == split and os.path.isfile(paths[i])]
        samples[split] = ([paths[i] for i in rows], labels[rows])
    fix = "repair them or remove their rows"
    return Source(where, classes, samples, fix, findings=findings, task=settings.task)


def _read(settings: CsvSettings, where: str, known: set[str]) -> Table:
    """Reads the table as it was meant: without the apostrophes that guard cells from spreadsheets, as predictions have
    them, and with the columns that have a meaning in lower case, as in Path and Split."""
    table = read_table(Path(settings.path), where)
    columns, *rows = [[unguarded(cell) for cell in row] for row in (table.columns, *table.rows)]
    lower = [name.casefold() for name in columns]
    columns = [
        low if low in known and lower.count(low) == 1 else name for name, low in zip(columns, lower, strict=True)
    ]
    return replace(table, columns=columns, rows=rows)


def _check_splits(table: Table, path: str, layout: Layout) -> None:
    """Raises a UserError if a column that is not used holds the splits."""
    for name in [name for name in table.columns if name not in (path, "split", layout.column)]:
        if "split" not in table.columns and {split_of(cell) for cell in table.column(name)} <= set(SPLITS):
            raise UserError(
                f"{table.where}: column {name!r} holds splits, such as {table.column(name)[0]!r}; call it split, or "
                "remove it"
            )


def _splits(table: Table) -> list[str]:
    """Returns the split of each row."""
    if "split" not in table.columns:
        return ["train"] * len(table.rows)
    splits = [split_of(cell) or "" for cell in table.column("split")]
    table.refuse([not split for split in splits], f"have a split other than {', '.join(SPLITS)}")
    if "train" not in splits:
        raise UserError(f"{table.where}: no row has the split train; mark the training images, or drop the column")
    return splits


def _one(
    table: Table, names: list[str], splits: list[str], settings: CsvSettings
) -> tuple[list[str], Tensor, list[Finding]]:
    """Returns the sorted classes of the training rows, and the label of each row, int64 (N,)."""
    cells = table.column("label")
    table.refuse([not cell for cell in cells], "have no label")
    trained = _spelling(cell for cell, split in zip(cells, splits) if split == "train")
    strange = sorted({repr(cell) for cell in cells if nfc(cell) not in trained})
    if strange:
        raise UserError(f"{table.where}: labels without a training image: {few(strange)}; correct them or add some")
    classes = [trained[key] for key in sorted(trained)]
    if len(classes) < 2:
        raise UserError(f"{table.where}: a single label, {classes[0]!r}; a classifier needs two or more")
    number = {nfc(name): i for i, name in enumerate(classes)}
    return classes, torch.tensor([number[nfc(cell)] for cell in cells]), _two_forms(cells) + joined_classes(cells)


def _spelling(names: Iterable[str]) -> dict[str, str]:
    """Returns each name as it is written first, by its NFC."""
    spelling: dict[str, str] = {}
    for name in names:
        spelling.setdefault(nfc(name), name)
    return spelling


def _two_forms(names: Iterable[str]) -> list[Finding]:
    """Returns a warning about names that are written in two forms of Unicode, each of which is taken as one name."""
    same = tuple(map(differing, twins(names)))
    text = counted(len(same), "label is", "labels are")
    return [Finding(f"{text} written in two of Unicode's forms, and taken as one each", same)] if same else []


def _many(
    table: Table, names: list[str], splits: list[str], settings: CsvSettings
) -> tuple[list[str], Tensor, list[Finding]]:
    """Returns the classes and the labels, float32 (N, K), from names in `labels` or from one column for each label."""
    if "labels" in names:
        cells = names_in(table, settings.label_separator)
        classes, labels = _lists(cells)
        findings = _without_labels(labels) + _two_forms(name for cell in cells for name in cell)
    elif settings.label_separator:
        raise UserError(f"{table.where}: data.label_separator = {settings.label_separator!r} needs a column labels")
    else:
        classes, labels = _flags(table, names)
        findings = []
    return classes, labels, findings + _without_images(labels, splits, classes)


def _lists(cells: list[list[str]]) -> tuple[list[str], Tensor]:
    """Returns the sorted names in the column `labels`, and 1 for those of each row, float32 (N, K)."""
    spelling = _spelling(name for names in cells for name in names)
    number = {key: i for i, key in enumerate(sorted(spelling))}
    labels = torch.zeros(len(cells), len(number))
    for row, names in enumerate(cells):
        labels[row, [number[nfc(name)] for name in names]] = 1
    return [spelling[key] for key in number], labels


def _flags(table: Table, names: list[str]) -> tuple[list[str], Tensor]:
    """Returns the label columns and their values, float32 (N, K)."""
    columns = []
    for name in names:
        cells = table.column(name)
        values = [_flag(cell) for cell in cells]
        wrong = [value is None for value in values]
        if any(wrong):
            fix = "write 0 or 1, or remove the column"
            if name == "label":
                fix += ", or set data.labels=one"
            fix += ", or call it labels if it has the names of labels" if all(map(_is_text, cells)) else ""
            example = cells[wrong.index(True)]
            table.refuse(wrong, f"have a value other than 0 or 1 in column {name!r}, such as {example!r}; {fix}")
        columns.append([value or 0.0 for value in values])
    return names, torch.tensor(columns).T.contiguous()


def _is_text(cell: str) -> bool:
    return not re.fullmatch(r"[-+0-9.,eE]*", cell)


def _flag(cell: str) -> float | None:
    """Returns whether a label applies, 0 or 1, also from False, yes, 1.0 or 1,0; None if the cell does not say."""
    word = cell.casefold()
    if re.fullmatch(r"[01][.,]0*", word):
        word = word[0]
    return FLAGS.get(word)


def _without_labels(labels: Tensor) -> list[Finding]:
    """Returns a warning about images without labels."""
    bare = int((labels.sum(1) == 0).sum())
    text = f"{bare} of {len(labels)} images have no label, which is taken to mean that none applies"
    return [Finding(text)] if bare else []


def _without_images(labels: Tensor, splits: list[str], classes: list[str]) -> list[Finding]:
    """Returns a warning about labels that apply to no training image."""
    trains = torch.tensor([split == "train" for split in splits])
    bare = tuple(repr(name) for name, count in zip(classes, labels[trains].sum(0).tolist()) if not count)
    return (
        [Finding(f"{counted(len(bare), 'label has', 'labels have')} no positive training image", bare)] if bare else []
    )


class Layout(NamedTuple):
    """The columns of a table for one value of `data.labels`."""

    column: str  # the one with names
    required: set[str]
    columns: str  # the columns that the table needs, for error messages
    one_row: str  # the end of the error about a file that occurs in two rows
    read: Callable[[Table, list[str], list[str], CsvSettings], tuple[list[str], Tensor, list[Finding]]]


LAYOUTS = {
    "one": Layout("label", {"label"}, "path and label; for many labels of an image set data.labels=many", "", _one),
    "many": Layout("labels", set(), "path, and labels or one 0/1 column per label", ", with all its labels", _many),
}
