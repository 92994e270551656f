"""Reads a competition's sample file, which prescribes the columns, ids and spelling of a submission."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.data.formats import has_image_extension
from engine.data.names import nfc
from engine.data.tables.cells import NUMBER, unguarded
from engine.data.tables.csv_files import read_table
from engine.submit.joined import LABEL_SEPARATOR, joint_of, labels_in, spelling_key
from engine.tasks import Task
from engine.wording import counted, few
from models.settings import UserError


@dataclass(frozen=True)
class Sample:
    """The form of a submission. Apostrophes that protect cells from spreadsheets have been removed from all texts.

    Attributes:
        where: the beginning of error messages, such as the file's name.
        columns: the header.
        ids_at: position of the column of ids.
        ids: ids of the images, in the order of the rows.
        separator: the character between cells.
        labels: the distinct cells of the other column, if there is only one.
        numeric: whether the cells of all other columns are numbers.
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
        """The columns other than that of the ids."""
        return self.columns[: self.ids_at] + self.columns[self.ids_at + 1 :]

    def joint(self, classes: Sequence[str], task: Task) -> str:
        """Returns what joins the labels of an image in a cell, for tasks with any number of them."""
        found = None if task.one_class else joint_of(self.labels, classes)
        return LABEL_SEPARATOR if found is None else found

    def spelling(self, classes: Sequence[str], task: Task) -> dict[str, str]:
        """Returns how the sample spells each class.

        Spellings may differ in case, in leading zeros, and in blanks, hyphens or underscores between words, if the
        sample's columns or labels correspond one to one to the classes. Otherwise every class keeps its own name, with
        the sample's bytes: names that are equal in Unicode's NFC are one name, and the sample's form of it is written.

        Args:
            classes: names of the classes.
            task: what the labels mean, and thereby whether a cell can hold several of them.
        """
        by_key = {spelling_key(name): name for name in classes}
        joint = self.joint(classes, task)
        labels = [name for cell in self.labels for name in labels_in(cell, task, joint) if name]
        for theirs in (self.others, list(dict.fromkeys(labels))):
            if len(by_key) == len(classes) == len(theirs) and {spelling_key(name) for name in theirs} == by_key.keys():
                return {by_key[spelling_key(name)]: name for name in theirs}
        names = labels if len(self.others) == 1 else [*self.others, *labels]
        return _in_form_of(names, classes)

    def asks_for_probabilities(self, classes: Sequence[str], task: Task) -> bool:
        """Returns whether the sample has a column of probabilities for each class, rather than one column of labels.

        Args:
            classes: names of the classes.
            task: what the labels mean.

        Raises:
            UserError: its columns are neither, or its cells are not names of classes, joined by what no name contains.
        """
        asked, offered = set(self.others), {name.strip() for name in self.spelling(classes, task).values()}
        if asked == offered and len(self.others) == len(classes):
            return True
        if len(self.others) > 1:
            unknown, missing = (sorted(map(repr, names)) for names in (asked - offered, offered - asked))
            differences = [
                f"{counted(len(names), *what)} ({few(names)})"
                for names, what in (
                    (unknown, ("is not a class", "are not classes")),
                    (missing, ("class has none", "classes have none")),
                )
                if names
            ]
            raise UserError(
                f"{self.where}: {len(self.others)} columns beside {self.columns[self.ids_at]!r}, but not "
                f"one for each of the {len(classes)} classes: {', '.join(differences)}; "
                "give a sample with one column of labels, or one for each class"
            )
        (name,) = self.others
        if name in offered and self.numeric and not set(self.labels) <= offered:
            raise UserError(
                f"{self.where}: column {name!r} is one of {len(classes)} classes and holds numbers: it "
                "asks for that class alone; write --probabilities, and keep that column"
            )
        if not task.one_class:
            _check_joined_labels(self, offered, task)
        return False


def _in_form_of(names: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """Returns each class in the form of Unicode that the names of a sample have: that of its own, or of the others."""
    spelled = {nfc(name): name for name in names}
    forms = [form for form in ("NFC", "NFD") if all(unicodedata.is_normalized(form, name) for name in names)]
    spelling, count, known = {name: name for name in classes}, Counter(map(nfc, classes)), set(names)
    for name in classes:
        if count[nfc(name)] > 1 or name in known:
            continue
        if nfc(name) in spelled:
            spelling[name] = spelled[nfc(name)]
        elif len(forms) == 1:
            spelling[name] = unicodedata.normalize(forms[0], name)
    return spelling


def _check_joined_labels(sample: Sample, classes: set[str], task: Task) -> None:
    """Raises a UserError if labels cannot be joined as in the sample, or its cells are not names of classes."""
    joint, known = sample.joint(sorted(classes), task), set(map(nfc, classes))
    odd = [repr(name) for name in sorted(classes) if joint in name]
    if odd:
        raise UserError(
            f"{sample.where}: labels of an image are joined by {joint}, which these labels contain: "
            f"{few(odd)}; write --probabilities, with a column for each"
        )
    cells = [cell for cell in sample.labels if not set(map(nfc, labels_in(cell, task, joint))) <= known]
    if cells:
        raise UserError(
            f"{sample.where}: column {sample.others[0]!r} has {cells[0]!r}, which is not names of classes "
            f"({few(sorted(map(repr, classes)))}) joined by {joint!r}, or by what no name contains; write "
            "--probabilities, with a column for each label"
        )


def read_sample(path: Path, matching: Callable[[Sequence[str]], int] | None = None) -> Sample:
    """Reads a sample file: a header, and a row for each image.

    Args:
        path: CSV in UTF-8, separated by commas, semicolons or tabs.
        matching: counts how many of a column's cells name an image. The column of ids is the one with the highest
            count, if that is at least half of the rows; otherwise, or without `matching`, it is the first column
            without repetitions.

    Raises:
        UserError: the file does not exist, has fewer than two columns, or has missing or repeated ids.
    """
    table = read_table(path, str(path))
    if len(table.columns) < 2:
        raise UserError(
            f"{path}: a single column, {table.columns[0]!r}; give a file with ids and labels, separated "
            "by commas, semicolons or tabs"
        )
    columns = [[unguarded(row[i]) for row in table.rows] for i in range(len(table.columns))]

    def fitness(cells: list[str]) -> tuple[int, bool]:
        matches = matching(cells) if matching else 0
        if 2 * matches < len(cells):
            matches = 0  # labels such as 1 and 2 may name images by chance
        return matches, len(set(cells)) == len(cells)

    ids_at = max(range(len(columns)), key=lambda i: fitness(columns[i]))  # the first of equals
    ids, name = columns[ids_at], table.columns[ids_at]
    if matching and (has_image_extension(name) or any(map(str.isdigit, name))) and matching([name]):
        raise UserError(f"{path}: the first line names an image, {name!r}; write a header above it, such as ID,Label")
    count = Counter(ids)
    table.refuse([not cell for cell in ids], f"have no {name}")
    table.refuse([count[cell] > 1 for cell in ids], f"have the same {name} as another; keep one row for each image")
    rest = [cells for i, cells in enumerate(columns) if i != ids_at]
    labels = tuple(dict.fromkeys(rest[0])) if len(rest) == 1 else ()
    numeric = all(NUMBER.fullmatch(cell) for cells in rest for cell in cells)
    return Sample(str(path), list(map(unguarded, table.columns)), ids_at, ids, table.separator, labels, numeric)
