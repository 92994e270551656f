"""Sweeps of finished runs, the JSON of tools/eval.py --sweep, as points: each value is one, and budgets are a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from engine.runs.folder import RunFolder
from engine.study.compare.lines import line_names
from engine.study.compare.runs import read_outcome, repetition
from engine.study.origin import Origin
from engine.study.points import Outcome, Point
from engine.study.table import Skip, common_name, refuse
from models.settings import UserError


@dataclass(frozen=True)
class Swept:
    """One row of a sweep's file."""

    value: Any  # of the key that was swept
    metric: str
    score: float  # a fraction
    gmacs: float | None
    images_per_second: float
    origin: Origin

    @property
    def name(self) -> str:
        """The repetition: the seed, and the fold where there is one."""
        return repetition(self.origin.seed, self.origin.fold)


def points_of_sweeps(files: Sequence[Path], skip: Skip = refuse) -> list[Point]:
    """Returns a point for each value of each sweep; sweeps of runs that differ only in seed and fold share points.

    Args:
        files: written by tools/eval.py --sweep ... --json FILE.
        skip: called with a file that cannot be compared, which is then left out; it may raise the error instead.
    """
    groups: dict[tuple[str, ...], dict[str, Swept]] = {}
    for file in files:
        try:
            found = [(_group(row), row) for row in read_sweep(file)]
            for group, row in found:
                if row.name in groups.get(group, {}):
                    value = json.dumps(row.value)
                    raise UserError(f"{file}: {row.origin.key} = {value} of {row.name} is given twice; leave one out")
        except UserError as error:
            skip(file, error)
            continue
        for group, row in found:
            groups.setdefault(group, {})[row.name] = row
    rows = [list(group.values()) for group in groups.values()]
    runs = [common_name([row.origin.run for row in group]) for group in rows]
    kinds = [(group[0].origin.trained, group[0].origin.line, group[0].origin.split) for group in rows]
    lines = line_names(kinds, runs, [group[0].origin.merging for group in rows])
    return [_point(group, run, line) for group, run, line in zip(rows, runs, lines, strict=True)]


def read_sweep(file: Path) -> list[Swept]:
    """Reads the file of a sweep.

    Raises:
        UserError: the file is missing or damaged, is not that of a sweep, or is of an older version.
    """
    again = "write it again with tools/eval.py --sweep KEY=[...] --json FILE"
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read, {(error.strerror or str(error)).lower()}; {again}") from None
    except ValueError:
        raise UserError(f"{file}: damaged, not JSON; {again}") from None
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) and "value" in row for row in rows)):
        raise UserError(f"{file}: not the rows of a sweep; {again}")
    if not all(isinstance(row.get("origin"), dict) for row in rows):
        raise UserError(f"{file}: does not say which run was evaluated, as an older version wrote it; {again}")
    try:
        return [_row(row) for row in rows]
    except (UserError, KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{file}: damaged, {reason}; {again}") from None


def _row(row: Mapping[str, Any]) -> Swept:
    gmacs = None if row["gmacs"] is None else float(row["gmacs"])
    speed = float(row["images_per_second"])
    return Swept(row["value"], row["metric"], float(row[row["metric"]]), gmacs, speed, Origin.checked(row["origin"]))


def _group(row: Swept) -> tuple[str, ...]:
    """Rows of one group differ only in seed and fold. Values of a key that leave the settings equal are kept apart."""
    return (row.origin.trained, row.origin.evaluated, row.origin.split, row.origin.key, json.dumps(row.value))


def _point(rows: Sequence[Swept], run: str, line: str | None) -> Point:
    first = rows[0].origin
    value = rows[0].value if isinstance(rows[0].value, str) else json.dumps(rows[0].value)
    split = "" if first.split == "test" else f", {first.split} images"
    counted = [row.gmacs for row in rows if row.gmacs is not None]
    saved = [row.origin.saved_mib for row in rows if row.origin.saved_mib is not None]
    return Point(
        name=f"{run}, {first.key.removeprefix('merge.')} = {value}{split}",
        model=first.model,
        method=first.merging,
        budget=first.budget,
        metric=rows[0].metric,
        scores={row.name: row.score for row in rows},
        costs={
            "gmacs": mean(counted) if counted else None,
            "ms": mean(1000 / row.images_per_second for row in rows),
            "params_m": first.params / 1e6,
            "saved_mib": mean(saved) if saved else None,
        },
        line=line,
        alike=first.line if first.split == "test" else None,
        images=round(mean(row.origin.images for row in rows)),
        outcomes=_outcomes(rows),
        extra={"data": first.data},
        folders=tuple(Path(row.origin.folder) for row in rows),
    )


def _outcomes(rows: Sequence[Swept]) -> dict[str, Callable[[], Outcome]]:
    return {row.name: partial(_outcome, row.origin) for row in rows if row.origin.right}


def _outcome(origin: Origin) -> Outcome:
    """Returns the outcome, with the images named as in the run's predictions.csv where they are the same."""
    assert origin.right is not None
    right = np.array(list(origin.right)) == "1"
    run = RunFolder(origin.folder)
    if origin.split == "test" and run.is_run and run.predictions_file.is_file():
        results = run.read_results()
        if results is not None and results.class_accuracy and results.test_images == len(right):
            return Outcome(read_outcome(run.predictions_file, tuple(results.class_accuracy)).images, right)
    of_run = f"{origin.data}, {origin.split} of seed {origin.seed}"  # else which images these are is not known
    return Outcome(tuple(f"{i} ({of_run})" for i in range(len(right))), right)
