"""Compares finished runs in one table (tools/compare.py).

Runs that differ only in seed and fold share a row, with the mean of their numbers. A new column is a line in COLUMNS,
for a field of `engine.runs.records.results.Results` or for a metric.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from engine.data.names import same_names
from engine.runs.folder import RunFolder
from engine.runs.folds import check_same_settings
from engine.runs.records.class_scores import pooled_scores
from engine.runs.records.results import Results
from engine.tables import Column
from engine.tasks import title_of
from engine.wording import NOT_COUNTED, counted, fixed, shown
from models.settings import UserError

MAY_DIFFER = ("name", "out", "seed")  # keys of settings that may differ within a row
MISSING = "-"


@dataclass(frozen=True)
class Row:
    """Results of runs that differ only in seed and fold."""

    results: list[Results]

    @property
    def name(self) -> str:
        """The common beginning of the runs' names: `vit_s0`, `vit_s1` -> `vit`."""
        return _common_name([results.name for results in self.results])

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs, each once."""
        return list(dict.fromkeys(results.seed for results in self.results))

    @property
    def folds(self) -> list[int]:
        """The folds that were run, each once; empty without k-fold."""
        return sorted({results.fold for results in self.results if results.fold is not None})

    @property
    def metric(self) -> str:
        """The name of the main metric."""
        return self.results[0].metric

    @property
    def runs(self) -> str:
        """The number of seeds and folds that the row averages, such as "3", "5 folds" or "3 x 5 folds"."""
        seeds, folds = len(self.seeds), len(self.folds)
        if not folds:
            return str(seeds)
        of_folds = counted(folds, "fold")
        return of_folds if seeds == 1 else f"{seeds} x {of_folds}"

    def value(self, field: str) -> Any:
        """Returns the mean of a field over the runs that have it, or the first run's text; None if no run has it."""
        values = self._values(field)
        if not values or isinstance(values[0], str):
            return values[0] if values else None
        return mean(values)

    def spread(self, field: str) -> float | None:
        """Returns the sample standard deviation of a field; None for fewer than two runs that have it."""
        values = self._values(field)
        return stdev(values) if len(values) > 1 else None

    @property
    def worst_class(self) -> tuple[str, float] | None:
        """The class with the lowest score on the test images of all runs together, and this score; None if unknown."""
        tested = [results for results in self.results if results.classes_of == "test"]
        scores = [results.class_scores for results in tested if results.class_scores is not None]
        names = [list(results.class_images) for results in tested if results.class_images is not None]
        if scores and len(scores) == len(self.results) and all(same_names(other, names[0]) for other in names):
            together = pooled_scores(scores)
            return names[0][together.worst], together.worst_score
        only = self.results[0]  # perhaps of an older version, which did not count the images of each class
        if len(self.results) > 1 or not tested or only.worst_class is None:
            return None
        return only.worst_class, only.worst_class_score

    def _values(self, field: str) -> list[Any]:
        values = [results.value(field) for results in self.results]
        return [value for value in values if value is not None]


@dataclass(frozen=True)
class ResultColumn:
    """A column that shows a field of `Results`."""

    title: str
    text: Callable[[Any], str]  # converts a value to text
    words: bool = False  # whether the values are words instead of numbers
    spread: bool = False  # whether to add the standard deviation if a row has several runs
    missing: str = MISSING  # in the place of a value that no run of a row has

    def cell(self, row: Row, field: str) -> str:
        """Returns the text of a row's cell."""
        value = row.value(field)
        if value is None:
            return self.missing
        spread = row.spread(field) if self.spread else None
        return self.text(value) if spread is None else f"{self.text(value)} ± {self.text(spread)}"


class WorstClassColumn(ResultColumn):
    """The worst class of a row, and its score in percent."""

    def cell(self, row: Row, field: str) -> str:
        if row.worst_class is None:
            return MISSING
        name, score = row.worst_class
        return f"{shown(name)} {self.text(score)}"


def number(decimals: int, unit: float = 1.0) -> Callable[[float], str]:
    """Returns a function that formats a number in a unit, with at least the given number of decimals; see `fixed`."""
    return lambda value: fixed(value / unit, decimals) if decimals else f"{value / unit:.0f}"


def percent(value: float) -> str:
    """Returns a fraction as percent, with two decimals."""
    return f"{100 * value:.2f}"


# Field or property of Results, or a metric such as test_top5 -> its column. `{metric}` in a title is replaced by the
# titles of the main metrics.
COLUMNS: dict[str, ResultColumn] = {
    "test_score": ResultColumn("test {metric}, %", percent, spread=True),
    "test_balanced_accuracy": ResultColumn("balanced, %", percent, spread=True),
    "worst_class": WorstClassColumn("worst class, %", percent),
    "model": ResultColumn("model", str, words=True),
    "method": ResultColumn("method", str, words=True),
    "params": ResultColumn("params, M", number(3, 1e6)),
    "trained_params": ResultColumn("trained, M", number(3, 1e6)),
    "trained_share": ResultColumn("trained, %", percent),
    "gmacs": ResultColumn("GMACs", number(4), missing=NOT_COUNTED),
    "images_per_second": ResultColumn("images/s", number(0)),
    "seconds": ResultColumn("training, s", number(0)),
    "peak_memory_mib": ResultColumn("peak memory, MiB", number(0)),
    "saved_mib": ResultColumn("saved, MiB", number(2)),
}


def table(rows: Sequence[Row]) -> tuple[list[Column], list[list[str]]]:
    """Returns the columns and the cells of a comparison: name, number of seeds and folds, then COLUMNS."""
    metrics = " or ".join(dict.fromkeys(title_of(row.metric) for row in rows))
    columns = [Column("run", words=True), Column("seeds")]
    columns += [Column(column.title.format(metric=metrics), column.words) for column in COLUMNS.values()]
    cells = [[row.name, row.runs, *(column.cell(row, field) for field, column in COLUMNS.items())] for row in rows]
    return columns, cells


def compare(folders: Sequence[Path]) -> list[Row]:
    """Reads run folders, or folders of all folds, and groups them in the order in which each kind first appears.

    Raises:
        UserError: a folder does not hold a finished run, or the same seed and fold of one kind occur twice.
    """
    groups: dict[str, list[Results]] = {}
    for folder in runs_in(folders):
        group = groups.setdefault(kind(folder), [])
        results = RunFolder(folder).read_results()
        if results is None:
            raise UserError(f"{folder}: not a finished run (no results.json); finish it with --resume {folder}")
        if any((results.seed, results.fold) == (other.seed, other.fold) for other in group):
            fold = "" if results.fold is None else f", fold {results.fold},"
            raise UserError(f"{folder}: seed {results.seed}{fold} of this kind is given twice; leave one out")
        group.append(results)
    return [Row(group) for group in groups.values()]


def runs_in(folders: Sequence[Path]) -> list[Path]:
    """Returns the run folders, with a folder of all folds replaced by the run folders of its folds.

    Raises:
        UserError: a folder is not a run folder, or a fold is not finished.
    """
    paths: list[Path] = []
    for folder in folders:
        run = RunFolder(folder)
        runs = run.folds if run.holds_folds else [run]
        if run.holds_folds and (missing := run.unfinished_folds()):
            raise UserError(f"{runs[missing[0]]}: this fold is not finished; finish it with --resume {folder}")
        if run.holds_folds:
            check_same_settings(run)
        paths += [run.path for run in runs]
    return paths


def kind(folder: Path) -> str:
    """Returns a text that is equal for two run folders if their settings differ only in the seed and the fold.

    Raises:
        UserError: the folder is not a run folder.
    """
    excluded = {**dict.fromkeys(MAY_DIFFER, True), "split": {"fold"}}
    return RunFolder(folder).settings.model_dump_json(exclude=excluded)


def _common_name(names: list[str]) -> str:
    shared = names[0]
    for name in names[1:]:
        while not name.startswith(shared):
            shared = shared[:-1]
    return (re.sub(r"[_-]s?$", "", shared) if len(names) > 1 else shared) or names[0]
