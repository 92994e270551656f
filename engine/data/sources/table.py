"""The dataset `csv`: a CSV file with a row for each image, which holds its path and one label or several."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from engine.data.check.findings import Finding, Source
from engine.data.settings import DataPath, FileSettings
from engine.tasks import TASKS, Task
from engine.wording import few
from models.settings import UserError

SEPARATORS = ",;\t"
SPLITS = ("train", "val", "test")


class CsvSettings(FileSettings):
    """`path` is the table; see find_csv for its columns."""

    name: Literal["csv"] = "csv"
    path: DataPath = Field(description="the CSV file, with a header")
    images: DataPath | None = Field(None, description="folder to which the paths are relative; null: the table's own")
    labels: Literal["one", "many"] = Field(
        "one", description="one: each image has one label; many: any number of labels"
    )

    @property
    def task(self) -> Task:
        return TASKS[self.labels]


@dataclass(frozen=True)
class Table:
    """A CSV file that was read.

    Attributes:
        where: the beginning of error messages, such as "data.path = 'a.csv'".
        columns: the header.
        rows: the cells of each row.
        lines: the line of each row in the file, from 1.
        separator: the character between cells.
    """

    where: str
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]
    separator: str

    def column(self, name: str) -> list[str]:
        """Returns the cells of a column."""
        at = self.columns.index(name)
        return [row[at] for row in self.rows]

    def refuse(self, wrong: list[bool], rule: str) -> None:
        """Raises a UserError if there are wrong rows; the message counts them and names the first lines."""
        lines = [str(line) for line, bad in zip(self.lines, wrong) if bad]
        if lines:
            raise UserError(f"{self.where}: {len(lines)} rows {rule} (line {few(lines)})")


def find_csv(settings: CsvSettings) -> Source:
    """Finds the images in a CSV file: UTF-8, separated by commas, semicolons or tabs, with a header.

    The column `path`, or else the first one, holds the image's file. With data.labels "one" the column `label` holds
    the name of its class. With "many" either the column `labels` holds names separated by `;`, or every column other
    than the path and `split` is a label, 1 where it applies and 0 elsewhere. The optional column `split` holds train,
    val or test; without val or test rows images are held out (see engine.data.split).

    Returns:
        Files and labels, int64 (N,), or float32 (N, K) for "many", in the order of the rows. Classes are sorted by
        name, or in the order of the columns. Missing files are among the findings.

    Raises:
        UserError: the file is not a table, lacks a column, or has rows without a required entry.
    """
    where = f"data.path = {settings.path!r}"
    table = read_table(Path(settings.path), where)
    path_column = "path" if "path" in table.columns else table.columns[0]
    layout = LAYOUTS[settings.labels]
    names = [c for c in table.columns if c not in (path_column, "split")]
    if not layout.required <= set(names) or not names:
        raise UserError(
            f"{where}: columns are {', '.join(table.columns)}; data.labels = {settings.labels!r} needs {layout.columns}"
        )
    paths, findings = _paths(table, path_column, Path(settings.images or Path(settings.path).parent), settings)
    splits = _splits(table)
    classes, labels, of_labels = layout.read(table, names, splits)
    findings += of_labels
    samples = {}
    for split in [split for split in SPLITS if split in splits]:
        rows = [i for i, other in enumerate(splits) if other == split and os.path.isfile(paths[i])]
        samples[split] = ([paths[i] for i in rows], labels[rows])
    fix = "repair them or remove their rows"
    return Source(where, classes, samples, fix, findings=findings, task=settings.task)


def read_table(path: Path, where: str, *, strip: bool = True, separator: str | None = None) -> Table:
    """Reads a CSV file in UTF-8 with a header and at least one row; rows whose cells are all empty are ignored.

    Args:
        path: the file.
        where: the beginning of error messages, such as "data.path = 'a.csv'".
        strip: whether to remove blanks around each cell.
        separator: the character between cells; None: the one of SEPARATORS that occurs most often in the header.

    Raises:
        UserError: the file is not such a table, columns have no name or the same name, or a row does not have as many
            cells as the header.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # with or without a byte order mark
        if "\0" in text:
            raise UserError(f"{where}: not a text file; save the table as CSV in UTF-8")
        head = next((line for line in text.splitlines() if line.strip()), "")
        separator = separator or max(SEPARATORS, key=lambda s: len(next(csv.reader([head], delimiter=s), [])))
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = [([cell.strip() if strip else cell for cell in row], reader.line_num) for row in reader]
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start}); save the table as CSV in UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{where}: not CSV ({error}); save the table as CSV in UTF-8") from None
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}; give a CSV file with a header") from None
    rows = [(row, line) for row, line in rows if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise UserError(f"{where}: {len(rows)} rows; a header and a row for each image are needed")
    columns = rows[0][0]
    twice = [repr(name) for name, count in Counter(columns).items() if count > 1]
    if twice or "" in columns:
        problem = f"a column twice: {few(twice)}" if twice else "a column without a name"
        raise UserError(f"{where}: the header has {problem}; give each column a name of its own")
    table = Table(where, columns, [row for row, _ in rows[1:]], [line for _, line in rows[1:]], separator)
    table.refuse([len(row) != len(columns) for row in table.rows], f"do not have the header's {len(columns)} cells")
    return table


def _paths(table: Table, column: str, folder: Path, settings: CsvSettings) -> tuple[list[Path], list[Finding]]:
    """Returns the file of each row, and an error about files that do not exist."""
    cells = table.column(column)
    table.refuse([not cell for cell in cells], f"have no {column}")
    files = [os.path.normpath(cell) for cell in cells]  # ./a.jpg is a.jpg
    count = Counter(files)
    table.refuse(
        [count[file] > 1 for file in files],
        f"name a file that another row names; keep one row for each image{LAYOUTS[settings.labels].one_row}",
    )
    paths = [folder / cell for cell in cells]
    missing = tuple(repr(cell) for cell, path in zip(cells, paths) if not os.path.isfile(path))
    if not missing:
        return paths, []
    text = f"{len(missing)} of {len(paths)} files are not in {folder}"
    fix = "correct the paths, or set data.images to the folder to which they are relative"
    return paths, [Finding(text, missing, fix, error=True)]


def _splits(table: Table) -> list[str]:
    """Returns the split of each row."""
    if "split" not in table.columns:
        return ["train"] * len(table.rows)
    splits = [cell.lower() for cell in table.column("split")]
    table.refuse([split not in SPLITS for split in splits], f"have a split other than {', '.join(SPLITS)}")
    if "train" not in splits:
        raise UserError(f"{table.where}: no row has the split train; mark the training images, or drop the column")
    return splits


def _one(table: Table, names: list[str], splits: list[str]) -> tuple[list[str], Tensor, list[Finding]]:
    """Returns the sorted classes of the training rows, and the label of each row, int64 (N,)."""
    cells = table.column("label")
    table.refuse([not cell for cell in cells], "have no label")
    classes = sorted({cell for cell, split in zip(cells, splits) if split == "train"})
    number = {name: i for i, name in enumerate(classes)}
    strange = sorted({repr(cell) for cell in cells if cell not in number})
    if strange:
        raise UserError(f"{table.where}: labels without a training image: {few(strange)}; correct them or add some")
    if len(classes) < 2:
        raise UserError(f"{table.where}: a single label, {classes[0]!r}; a classifier needs two or more")
    return classes, torch.tensor([number[cell] for cell in cells]), []


def _many(table: Table, names: list[str], splits: list[str]) -> tuple[list[str], Tensor, list[Finding]]:
    """Returns the classes and the labels, float32 (N, K), from names in `labels` or from one column for each label."""
    if "labels" in names:
        classes, labels = _lists(table)
        findings = _without_labels(labels)
    else:
        classes, labels = _flags(table, names)
        findings = []
    return classes, labels, findings + _without_images(labels, splits, classes)


def _lists(table: Table) -> tuple[list[str], Tensor]:
    """Returns the sorted names in the column `labels`, and 1 for those of each row, float32 (N, K)."""
    cells = [[name.strip() for name in cell.split(";") if name.strip()] for cell in table.column("labels")]
    classes = sorted({name for names in cells for name in names})
    if not classes:
        raise UserError(f"{table.where}: no row has labels; write names separated by ; into the column labels")
    number = {name: i for i, name in enumerate(classes)}
    labels = torch.zeros(len(cells), len(classes))
    for row, names in enumerate(cells):
        labels[row, [number[name] for name in names]] = 1
    return classes, labels


def _flags(table: Table, names: list[str]) -> tuple[list[str], Tensor]:
    """Returns the label columns and their values, float32 (N, K)."""
    values = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}  # the last two are how pandas writes columns of floats
    for name in names:
        cells = table.column(name)
        wrong = [cell not in values for cell in cells]
        if any(wrong):
            fix = "write 0 or 1, or remove the column"
            if name == "label":
                fix += ", or set data.labels=one"
            example = cells[wrong.index(True)]
            table.refuse(wrong, f"have a value other than 0 or 1 in column {name!r}, such as {example!r}; {fix}")
    columns = [[values[cell] for cell in table.column(name)] for name in names]
    return names, torch.tensor(columns).T.contiguous()


def _without_labels(labels: Tensor) -> list[Finding]:
    """Returns a warning about images without labels."""
    bare = int((labels.sum(1) == 0).sum())
    text = f"{bare} of {len(labels)} images have no label, which is taken to mean that none applies"
    return [Finding(text)] if bare else []


def _without_images(labels: Tensor, splits: list[str], classes: list[str]) -> list[Finding]:
    """Returns a warning about labels that apply to no training image."""
    trains = torch.tensor([split == "train" for split in splits])
    bare = tuple(repr(name) for name, count in zip(classes, labels[trains].sum(0).tolist()) if not count)
    return [Finding(f"{len(bare)} labels have no positive training image", bare)] if bare else []


class Layout(NamedTuple):
    """The columns of a table for one value of `data.labels`."""

    required: set[str]
    columns: str  # the columns that the table needs, for error messages
    one_row: str  # the end of the error about a file that occurs in two rows
    read: Callable[[Table, list[str], list[str]], tuple[list[str], Tensor, list[Finding]]]


LAYOUTS = {
    "one": Layout({"label"}, "path and label; for one 0/1 column per label set data.labels=many", "", _one),
    "many": Layout(set(), "path, and labels or one 0/1 column per label", ", with all its labels", _many),
}
