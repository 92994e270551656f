"""What the page shows of single run folders: curves, mistakes, settings, versions and commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.runs.folder import RunFolder
from engine.runs.records.results import Results
from engine.settings.changes import flattened
from engine.settings.layers import to_yaml
from engine.settings.schema import RunSettings
from engine.study.points import Point
from models.settings import UserError

# Settings that the rows of a comparison may always differ in: they say which run it is, or where it computed.
NOT_COMPARED = ("name", "out", "seed", "split.fold", "device", "threads")
ABSENT, NULL = "-", "null"


@dataclass(frozen=True)
class Run:
    """A finished run folder of a point."""

    point: str  # the name of its row
    folder: RunFolder
    settings: RunSettings
    results: Results

    @property
    def title(self) -> str:
        """The run's name, with its fold."""
        return self.settings.title


def runs_of(points: Sequence[Point]) -> list[Run]:
    """Reads the run folders of points; those that cannot be read, or are not finished, are left out."""
    runs = []
    for point in points:
        for path in point.folders:
            try:
                folder = RunFolder(path)
                settings, results = folder.settings, folder.read_results()
            except UserError:
                continue
            if results is not None:
                runs.append(Run(point.name, folder, settings, results))
    return runs


def first_runs(runs: Sequence[Run], most: int) -> list[Run]:
    """Returns all runs if they are at most `most`, else the first run of each row, and at most `most` of them."""
    if len(runs) <= most:
        return [*runs]
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.point, run)
    return [*first.values()][:most]


def differing_settings(runs: Sequence[Run]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Returns the names of the rows, and each setting that differs between them with its value in each row.

    A setting that a row does not have counts as null, so that the many options of another model are not listed.
    """
    flat = {run.point: flattened(run.settings) for run in reversed(runs)}  # the first run of a row stands for it
    names = [*dict.fromkeys(run.point for run in runs)]
    keys = dict.fromkeys(key for name in names for key in flat[name] if key not in NOT_COMPARED)
    table = [(key, [_shown(flat[name], key) for name in names]) for key in keys]
    return names, [(key, values) for key, values in table if len({NULL if v == ABSENT else v for v in values}) > 1]


def machines(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Returns each combination of machine, precision, commit and versions, with the names of its runs."""
    groups: dict[str, dict[str, Any]] = {}
    for run in runs:
        results = run.results
        versions = ", ".join(f"{name} {version}" for name, version in (results.versions or {}).items())
        facts = {
            "device": results.device or ABSENT,
            "precision": results.precision or ABSENT,
            "commit": results.commit or ABSENT,
            "versions": versions or ABSENT,
        }
        groups.setdefault(json.dumps(facts), {**facts, "runs": []})["runs"].append(run.title)
    return [{**group, "runs": ", ".join(group["runs"])} for group in groups.values()]


@dataclass(frozen=True)
class Recipe:
    """How to make the runs of a row again: the settings of its first run, and a command for each run."""

    point: str
    file: str  # the name under which the commands expect the settings
    settings: str  # YAML
    commands: list[str]


def recipes(runs: Sequence[Run]) -> list[Recipe]:
    """Returns the recipe of each row."""
    rows: dict[str, list[Run]] = {}
    for run in runs:
        rows.setdefault(run.point, []).append(run)
    made = []
    for point, group in rows.items():
        first, file = group[0], f"{group[0].settings.name}.yaml"
        commands = [_command(file, first, run) for run in group]
        made.append(Recipe(point, file, to_yaml(first.settings), list(dict.fromkeys(commands))))
    return made


def _command(file: str, first: Run, run: Run) -> str:
    own, other = flattened(first.settings), flattened(run.settings)
    changed = [f"{key}={value}" for key in ("name", "seed", "split.fold") if (value := other[key]) != own[key]]
    return shlex.join(["tools/train.py", "--cfg", f"./{file}", *changed])


def _shown(flat: dict[str, Any], key: str) -> str:
    if key not in flat:
        return ABSENT
    value = flat[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
