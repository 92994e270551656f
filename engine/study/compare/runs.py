"""Finished runs as points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

from engine.data.images import relative_paths
from engine.measure.predictions import read_predictions
from engine.runs.folder import RunFolder
from engine.runs.records.results import Results
from engine.study.compare.budgets import merging_of
from engine.study.compare.lines import line_names
from engine.study.origin import alike_but_for_budget
from engine.study.points import Outcome, Point
from engine.study.table import COLUMNS, Number, Row, Skip, compare, refuse


def points_of_runs(folders: Sequence[Path], skip: Skip = refuse) -> list[Point]:
    """Returns a point for all runs that differ only in seed and fold.

    Args:
        folders: run folders, or folders of all folds.
        skip: called with a folder that cannot be compared, which is then left out; it may raise the error instead.
    """
    rows = compare(folders, skip)
    settings = [RunFolder(row.folders[0]).settings for row in rows]
    merging = [merging_of(one.model, row.results[0].removed) for one, row in zip(settings, rows)]
    alike = [alike_but_for_budget(one) for one in settings]
    lines = line_names(alike, [row.name for row in rows], [method for method, _ in merging])
    return [_point(row, *how, *of) for row, how, *of in zip(rows, merging, lines, alike, strict=True)]


def repetition(seed: int, fold: int | None) -> str:
    """Returns what tells repetitions of a row apart: "seed 0", or "seed 0, fold 2"."""
    return f"seed {seed}" if fold is None else f"seed {seed}, fold {fold}"


def _point(row: Row, method: str | None, budget: str | None, line: str | None, alike: str) -> Point:
    first, name_of = row.results[0], [repetition(results.seed, results.fold) for results in row.results]
    extra: dict[str, str | float | None] = {}
    spreads: dict[str, float | None] = {}
    for field, column in COLUMNS.items():
        value, spread = row.value(field), row.spread(field) if column.spread else None
        scaled = column.shows.scaled if isinstance(column.shows, Number) else lambda value: value
        extra[column.title] = None if value is None else scaled(value)
        if spread is not None:
            spreads[column.title] = scaled(spread)
    worst = row.worst_class
    extra |= {"worst class": None, "worst class, %": None} if worst is None else _worst(*worst)
    return Point(
        name=row.name,
        model=first.model,
        method=method,
        budget=budget,
        metric=row.metric,
        scores={name: own.test_score for name, own in zip(name_of, row.results) if own.test_score is not None},
        costs=_costs(row),
        line=line,
        alike=alike,
        images=_images(row.results),
        outcomes=_outcomes(row, name_of),
        extra=extra,
        spreads=spreads,
        folders=tuple(row.folders),
        repetitions=row.runs,
    )


def _worst(name: str, score: float) -> dict[str, str | float | None]:
    return {"worst class": name, "worst class, %": 100 * score}


def _costs(row: Row) -> dict[str, float | None]:
    """Returns the costs that a training records. The memory is that of the training."""
    return {
        "gmacs": row.value("gmacs"),
        "memory_mib": row.value("peak_memory_mib"),
        "params_m": row.value("params") / 1e6,
        "saved_mib": row.value("saved_mib"),
    }


def _images(results: Sequence[Results]) -> int | None:
    return round(mean(own.test_images for own in results)) or None


def _outcomes(row: Row, names: Sequence[str]) -> dict[str, Callable[[], Outcome]]:
    """Returns how to read the outcome of each run that has one class for each image and left its predictions."""
    found: dict[str, Callable[[], Outcome]] = {}
    for folder, results, name in zip(row.folders, row.results, names, strict=True):
        file, classes = RunFolder(folder).predictions_file, results.class_accuracy
        if classes and results.test_images and file.is_file():
            found[name] = partial(read_outcome, file, tuple(classes))
    return found


def read_outcome(file: Path, classes: Sequence[str]) -> Outcome:
    """Reads the outcome of a run from its predictions.csv.

    Images are named by their path within their common folder, wherever it is, or by their position. The name of its
    class is added, so that images of other data at the same positions are not taken for the same.

    Raises:
        UserError: the file is damaged.
    """
    predictions = read_predictions(file, classes)
    labels = (classes[label] for label in predictions.labels)
    images = tuple(f"{image} ({label})" for image, label in zip(relative_paths(predictions.images), labels))
    return Outcome(images, predictions.labels == predictions.predicted)
