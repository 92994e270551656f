"""Expands a plan into the runs that it means: rows x varied settings x seeds x folds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from engine.runs.folds import of_fold
from engine.settings.changes import decisive
from engine.settings.layers import CONFIGS, load_settings
from engine.settings.schema import RunSettings
from engine.study.plan.reading import Plan, as_overrides, plain
from models.settings import UserError

MOST = 100_000  # runs
LONGEST = 200  # bytes of a row's name: file systems allow 255, and seed, fold and endings of files are added to it


@dataclass(frozen=True)
class Row:
    """Runs that differ only in seed and fold.

    Attributes:
        name: unique in the plan.
        cfg: the config, as `load_settings` takes it.
        overrides: what is put over it, the last layer last.
    """

    name: str
    cfg: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
        row: the name of its row.
        settings: resolved, with `split.fold`. Their name and `out` say where a run that has not begun will be.
        command: the config and the overrides that it comes from.
    """

    row: str
    settings: RunSettings
    command: tuple[str, ...]

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def fold(self) -> int | None:
        return self.settings.split.fold

    @property
    def home(self) -> tuple[str, int]:
        """What is equal for runs that share a folder of all folds: row and seed."""
        return self.row, self.seed

    @property
    def title(self) -> str:
        """What it is called in tables and errors, which is also the usual name of its folder: row_s0, row_s0_f2."""
        return f"{self.row}_s{self.seed}" + ("" if self.fold is None else f"_f{self.fold}")


def planned_runs(plan: Plan) -> list[PlannedRun]:
    """Returns every run of a plan, seed by seed, so that each row has its first result early.

    Raises:
        UserError: settings that are wrong, named with the plan and the row; two runs that are the same.
    """
    rows = rows_of(plan)
    seeds = _seeds(plan)
    if len(rows) * len(seeds) > MOST:
        raise UserError(f"{plan.path}: {len(rows) * len(seeds):,} runs; a study has at most {MOST:,}")
    runs = [run for seed in seeds for row in rows for run in _of_row(plan, row, seed)]
    _check_different(plan, runs)
    return runs


def rows_of(plan: Plan) -> list[Row]:
    """Returns the rows of a plan, without seeds: configs and named rows, each with every combination of `vary`."""
    settings = plan.settings
    shared = as_overrides(settings.set)
    bases = [(_name_of(plan, cfg, "configs"), _cfg(plan, cfg), shared) for cfg in settings.configs]
    for name, row in settings.rows.items():
        bases.append((name, _cfg(plan, row.cfg or settings.cfg or ""), [*shared, *as_overrides(row.set)]))
    if not bases and settings.cfg:
        bases.append((_name_of(plan, settings.cfg, "cfg"), _cfg(plan, settings.cfg), shared))
    rows = []
    for name, cfg, overrides in bases:
        for changes in _combinations(settings.vary):
            full = "_".join([name, *(f"{key.rpartition('.')[2]}{_short(value)}" for key, value in changes.items())])
            rows.append(Row(full, cfg, (*overrides, *as_overrides(changes), *plan.overrides)))
    for name, count in Counter(row.name for row in rows).items():
        if count > 1:
            raise UserError(f"{plan.path}: two rows are called {name!r}; give them names of their own under rows:")
        if (length := len(name.encode())) > LONGEST:
            raise UserError(
                f"{plan.path}: row '{name[:40]}...': a name of {length} bytes, too long for a folder; give it a name "
                f"of at most {LONGEST} under rows:"
            )
    return rows


def with_row(plan: Plan, row: str, problem: object) -> UserError:
    """Returns an error about a row of a plan."""
    return UserError(f"{plan.path}: row {row!r}: {problem}")


def _combinations(vary: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*vary.values()):
        yield dict(zip(vary, values, strict=True))


def _short(value: Any) -> str:
    """Returns a value as a part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", plain(value)).strip("-") or "none"


def _cfg(plan: Plan, cfg: str) -> str:
    """Returns what `load_settings` takes: files are relative to the plan, names are those under configs/."""
    beside = plan.beside / cfg
    return str(beside) if beside.is_file() and not (CONFIGS / f"{cfg}.yaml").is_file() else cfg


def _name_of(plan: Plan, cfg: str, key: str) -> str:
    try:
        return load_settings(_cfg(plan, cfg)).name
    except UserError as error:
        raise UserError(f"{plan.path}: {key}: {error}") from None


def _seeds(plan: Plan) -> list[int | None]:
    seeds = plan.settings.seeds
    return list(range(seeds)) if isinstance(seeds, int) else list(seeds) if seeds else [None]


def _of_row(plan: Plan, row: Row, seed: int | None) -> Iterator[PlannedRun]:
    """Yields the runs of a row with one seed: one for each fold."""
    folds = plan.settings.folds
    more = [f"seed={seed}"] if seed is not None else []
    more += [f"split.folds={folds}"] if isinstance(folds, int) else []
    more += [f"threads={plan.settings.threads}"] if plan.settings.threads else []
    try:
        settings = load_settings(row.cfg, [*row.overrides, *more])
        named = {"name": f"{row.name}_s{settings.seed}", "out": str(Path(plan.folder) / "runs")}
        settings = settings.model_copy(update=named)
        if isinstance(folds, list) and settings.split.folds is None:
            raise UserError(f"folds = {folds}: there are no folds to choose from; set split.folds, or folds: 5")
        if isinstance(folds, list) and max(folds) >= settings.split.folds:
            raise UserError(f"folds = {folds}: split.folds = {settings.split.folds}; use 0 to split.folds - 1")
    except UserError as error:
        raise with_row(plan, row.name, error) from None
    command = ("--cfg", row.cfg, *row.overrides, *more)
    numbers = folds if isinstance(folds, list) else range(settings.split.folds or 0)
    if not settings.split.folds or (settings.split.fold is not None and folds is None):
        numbers = [settings.split.fold]
    for number in numbers:
        chosen = () if number is None else (f"split.fold={number}",)
        yield PlannedRun(row.name, of_fold(settings, number), (*command, *chosen))


def _check_different(plan: Plan, runs: list[PlannedRun]) -> None:
    seen: dict[str, PlannedRun] = {}
    for run in runs:
        other = seen.setdefault(repr(decisive(run.settings) | paths_of(run.settings)), run)
        if other is not run:
            raise UserError(f"{plan.path}: {other.title} and {run.title} have the same settings; take one out")


def paths_of(settings: RunSettings) -> dict[str, str]:
    """Returns the paths, and names on hubs, that decide what a run is trained on and starts from, by dotted key."""
    found = {"model.weights": settings.model.weights}
    found |= {f"data.{key}": getattr(settings.data, key, None) for key in ("path", "images")}
    return {key: value for key, value in found.items() if isinstance(value, str)}
