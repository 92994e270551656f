"""Evaluates one run with several ways of merging, and measures the accuracy, cost and speed of each.

A sweep is written as one key of the `merge:` section and a list of its values, such as "merge.r=[0,4,8]".
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.cost.images import ImageCosts, ImageCounter
from engine.cost.macs import measure_or_say
from engine.data.balance import are_unequal
from engine.measure.ensembles import evaluate_run
from engine.runs.folder import RunFolder
from engine.runs.records.class_scores import ClassScores, classes_to_json
from engine.runs.restore import FinishedRun, load_run
from engine.settings.layers import parse_override
from engine.settings.schema import RunSettings
from engine.study.origin import Origin, origin_of
from engine.tables import Column
from engine.tasks import task_with_metric, title_of
from engine.wording import NOT_COUNTED, fixed, shown
from models.interface import merging_method, removed_per_block, tokens_per_block
from models.settings import UserError

EXAMPLE = "write a key of merge: and a list of values, as in merge.r=[0,4,8]"


@dataclass(frozen=True)
class SweepRow:
    """A run evaluated with one way of merging."""

    value: Any  # the value of the key that is swept
    method: str | None  # the merging method
    removed: list[int]  # number of patches that each block removes; empty where it depends on the image
    tokens: float  # number of tokens after the last block; their mean where it depends on the image
    gmacs: float | None  # for one image, or the mean where they depend on the image; None if they cannot be counted
    loss: float
    metric: str  # name of the main metric
    metrics: dict[str, float]  # fractions, the main metric first
    names: list[str]  # of the classes
    classes: ClassScores | None  # the score of each class
    unequal: bool  # whether the classes are, among these images or among those of training
    images_per_second: float  # over the whole evaluation, after one batch to warm up
    origin: Origin  # the run, for comparisons
    costs: ImageCosts | None = None  # where they depend on the image

    @property
    def score(self) -> float:
        """The main metric, a fraction."""
        return self.metrics[self.metric]

    @property
    def label(self) -> str:
        """The value as written on the command line."""
        return self.value if isinstance(self.value, str) else json.dumps(self.value)

    def to_json(self) -> dict[str, Any]:
        """Returns the row as tools/eval.py --json writes it: each metric under a key of its own."""
        return {
            "value": self.value,
            "method": self.method,
            "removed": self.removed,
            "tokens": self.tokens,
            "gmacs": self.gmacs,
            "loss": self.loss,
            "metric": self.metric,
            **self.metrics,
            **classes_to_json(self.classes, task_with_metric(self.metric), self.names),
            "images_per_second": self.images_per_second,
            "origin": self.origin.model_dump(),
            **({} if self.costs is None else {"gmacs_of_images": self.costs._asdict()}),
        }


def parse_sweep(item: str) -> tuple[str, list[Any]]:
    """Parses a sweep: "merge.r=[0,4,8]" -> ("merge.r", [0, 4, 8]).

    Raises:
        UserError: the text does not have this form.
    """
    path, values = parse_override(item, several=True)
    while isinstance(values, dict) and len(values) == 1:
        ((key, values),) = values.items()
        path.append(key)
    if path[:2] != ["model", "merge"] or len(path) < 3:
        raise UserError(f"--sweep {item}: only merging can differ from what was trained; {EXAMPLE}")
    if not (isinstance(values, list) and values):
        raise UserError(f"--sweep {item}: no list of values; {EXAMPLE}")
    return ".".join(path[1:]), values


def sweep(
    folder: Path, item: str, overrides: Sequence[str] = (), which: str = "best", split: str = "test"
) -> list[SweepRow]:
    """Evaluates a run once for each value of one key of its `merge:` section. The data are loaded once.

    Args:
        folder: the run folder.
        item: the key and its values, such as "merge.r=[0,4,8]".
        overrides: changes to other settings, such as "data.root=DIR".
        which: which checkpoint of the run to load, "best" or "last".
        split: which images to evaluate on, "test" or "val".

    Returns:
        A row for each value, in the given order.

    Raises:
        UserError: a value is not valid (checked before anything is evaluated), the folder is not a run, or its weights
            do not fit.
    """
    key, values = parse_sweep(item)
    changes = [[*overrides, f"{key}={value if isinstance(value, str) else json.dumps(value)}"] for value in values]
    run_folder = RunFolder(folder)
    for change in changes:
        run_folder.solved_settings_with(change)
    rows, data = [], None
    for value, change in zip(values, changes, strict=True):
        run = load_run(run_folder, change, which, data)
        data = run.data
        rows.append(_evaluated(key, value, run, split, run_folder.settings_with(change)))
    return rows


def _evaluated(key: str, value: Any, run: FinishedRun, split: str, settings: RunSettings) -> SweepRow:
    evaluate_run(run, split, first=1)
    start = time.perf_counter()
    with ImageCounter(run.model, run.settings.model) as counter:
        evaluation = evaluate_run(run, split, keep_logits=run.data.task.one_class)
    seconds, classes = time.perf_counter() - start, evaluation.classes
    costs = counter.costs()
    if costs is None:
        tokens = tokens_per_block(run.model)[-1]
        gmacs = measure_or_say(run.model, settings=run.settings.model).gmacs
    else:
        tokens, gmacs = costs.tokens[-1], costs.mean
    return SweepRow(
        value=value,
        method=merging_method(run.settings.model),
        removed=removed_per_block(run.model),
        tokens=tokens,
        gmacs=gmacs,
        loss=evaluation.loss,
        metric=run.data.task.main_metric,
        metrics=evaluation.metrics,
        names=run.data.classes,
        classes=classes,
        unequal=are_unequal(run.data.train_class_images, [] if classes is None else classes.images),
        images_per_second=evaluation.n / seconds,
        origin=origin_of(key, run, split, settings, evaluation),
        costs=costs,
    )


def _gmacs(row: SweepRow) -> str:
    """GMACs of one image, or their mean over the images and its standard deviation."""
    if row.costs is not None:
        return row.costs.in_short()
    return NOT_COUNTED if row.gmacs is None else fixed(row.gmacs, 4)


def notes(rows: Sequence[SweepRow]) -> list[str]:
    """Returns what a reader of the table has to know: where GMACs are means over images, and their spread."""
    return [f"{row.label}: {row.costs.in_words()}" for row in rows if row.costs is not None]


def table(key: str, rows: Sequence[SweepRow]) -> tuple[list[Column], list[list[str]]]:
    """Returns the columns and the cells of a sweep's table.

    Args:
        key: the key that was swept.
        rows: the rows, one or more.
    """
    titles = ["tokens left", "GMACs", f"{title_of(rows[0].metric)}, %", "loss", "images/s"]
    cells = [
        [
            row.label,
            str(row.tokens) if row.costs is None else f"{row.tokens:.1f}",
            _gmacs(row),
            f"{100 * row.score:.2f}",
            f"{row.loss:.4f}",
            f"{row.images_per_second:.0f}",
        ]
        for row in rows
    ]
    classes = [row.classes for row in rows if row.classes is not None]
    if rows[0].unequal and len(classes) == len(rows):
        task, names = task_with_metric(rows[0].metric), rows[0].names
        if task.class_metric != task.main_metric:
            titles.append(f"{task.titles[task.class_metric]}, %")
            cells = [[*of_row, f"{100 * scores.mean:.2f}"] for of_row, scores in zip(cells, classes)]
        titles.append(f"worst {task.class_noun}, %")
        worst = [f"{shown(names[scores.worst])} {100 * scores.worst_score:.2f}" for scores in classes]
        cells = [[*of_row, text] for of_row, text in zip(cells, worst)]
    return [Column(key, words=True), *map(Column, titles)], cells
