"""Groups finished runs into rows (tools/compare.py).

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
from engine.settings.schema import RunSettings
from engine.wording import counted, fixed
from models.merging.settings import BUDGETS
from models.settings import UserError

MAY_DIFFER = ("name", "out", "seed")  # keys of settings that may differ within a row
Skip = Callable[[Path, UserError], None]  # called with a folder that cannot be compared, and why


def refuse(folder: Path, error: UserError) -> None:
    """Raises the error of a folder that cannot be compared: a `Skip` that skips nothing."""
    raise error


@dataclass(frozen=True)
class Row:
    """Results of runs that differ only in seed and fold, and their run folders."""

    results: list[Results]
    folders: Sequence[Path] = ()

    @property
    def name(self) -> str:
        """The common beginning of the runs' names: `vit_s0`, `vit_s1` -> `vit`."""
        return common_name([results.name for results in self.results])

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
class Number:
    """How a number is shown: in a unit, with decimals.

    Called with a value, it returns the text.
    """

    decimals: int  # at least
    unit: float = 1.0  # the title's unit, in the field's
    significant: bool = True  # whether small numbers get more decimals, see `fixed`

    def __call__(self, value: float) -> str:
        return self.text(self.scaled(value))

    def scaled(self, value: float) -> float:
        """Returns a field's value in the title's unit."""
        return value if self.unit == 1 else value / self.unit

    def text(self, scaled: float) -> str:
        """Returns the text of a value that is already in the title's unit."""
        return fixed(scaled, self.decimals) if self.decimals and self.significant else f"{scaled:.{self.decimals}f}"


def number(decimals: int, unit: float = 1.0) -> Number:
    """Returns how a number is shown in a unit, with at least the given number of decimals; see `fixed`."""
    return Number(decimals, unit)


percent = Number(2, 0.01, significant=False)  # a fraction as percent


@dataclass(frozen=True)
class ResultColumn:
    """A column that shows a field of `Results`."""

    title: str  # with the unit
    shows: Number | None = None  # None: the values are words
    spread: bool = False  # whether to add the standard deviation if a row has several runs


# Field or property of Results, or a metric such as test_top5 -> its column. The test score, the model, how it merges,
# and the costs of `engine.study.points.COSTS` have columns of their own.
COLUMNS: dict[str, ResultColumn] = {
    "test_balanced_accuracy": ResultColumn("balanced, %", percent, spread=True),
    "data": ResultColumn("data"),
    "method": ResultColumn("training"),
    "trained_params": ResultColumn("trained, M", number(3, 1e6)),
    "trained_share": ResultColumn("trained, %", percent),
    "images_per_second": ResultColumn("training images/s", number(0)),
    "seconds": ResultColumn("training, s", number(0)),
}


def compare(folders: Sequence[Path], skip: Skip = refuse) -> list[Row]:
    """Reads run folders, or folders of all folds, and groups them in the order in which each kind first appears.

    Args:
        folders: the folders.
        skip: called with a folder that cannot be compared, which is then left out; it may raise the error instead.

    Raises:
        UserError: a folder does not hold a finished run, or the same seed and fold of one kind occur twice.
    """
    groups: dict[str, list[tuple[Path, Results]]] = {}
    for given in folders:
        try:
            found = [(kind(folder), folder, _finished(folder)) for folder in runs_in([given])]
            for group, folder, results in found:
                _check_once(folder, results, [other for _, other in groups.get(group, ())])
        except UserError as error:
            skip(given, error)
            continue
        for group, folder, results in found:
            groups.setdefault(group, []).append((folder, results))
    return [Row([results for _, results in group], [folder for folder, _ in group]) for group in groups.values()]


def _finished(folder: Path) -> Results:
    results = RunFolder(folder).read_results()
    if results is None:
        raise UserError(f"{folder}: not a finished run (no results.json); finish it with --resume {folder}")
    return results


def _check_once(folder: Path, results: Results, others: Sequence[Results]) -> None:
    if any((results.seed, results.fold) == (other.seed, other.fold) for other in others):
        fold = "" if results.fold is None else f", fold {results.fold},"
        raise UserError(f"{folder}: seed {results.seed}{fold} of this kind is given twice; leave one out")


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
    return kind_of(RunFolder(folder).settings)


def kind_of(settings: RunSettings, *, any_budget: bool = False) -> str:
    """Returns a text that is equal for settings that differ only in the seed and the fold.

    Args:
        settings: the settings.
        any_budget: whether they may also differ in how many tokens are merged.
    """
    excluded: dict[str, Any] = {**dict.fromkeys(MAY_DIFFER, True), "split": {"fold"}}
    if any_budget:
        excluded["model"] = {"merge": set(BUDGETS)}
    return settings.model_dump_json(exclude=excluded)


def common_name(names: Sequence[str]) -> str:
    """Returns the common beginning of names, without an ending such as `_s`: `vit_s0`, `vit_s1` -> `vit`."""
    shared = names[0]
    for name in names[1:]:
        while not name.startswith(shared):
            shared = shared[:-1]
    return (re.sub(r"[_-]s?$", "", shared) if len(names) > 1 else shared) or names[0]
