"""Budget sweeps of the runs of a study: each is evaluated by tools/eval.py, once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from engine.launch.child import tool
from engine.runs.folder import RunFolder
from engine.settings.layers import load_settings
from engine.study.execute.pool import Job
from engine.study.execute.threads import threads_of
from engine.study.plan.cost import kind, work_of
from engine.study.plan.folders import Placed
from engine.study.plan.index import Entry
from engine.study.plan.reading import Plan, as_overrides
from engine.study.plan.rows import PlannedRun
from engine.study.sweep import parse_sweep
from models.interface import merging_method
from models.settings import UserError

SWEEPS = "sweeps"  # in a study folder


def entry_of(study: Path, placed: Placed) -> Entry:
    """Returns a run as the index of its study lists it."""
    run, folder = placed.run, placed.folder.path.relative_to(study).as_posix()
    return Entry(row=run.row, seed=run.seed, fold=run.fold, folder=folder)


def merges(run: PlannedRun) -> bool:
    """Returns whether a run merges tokens, so that there is something to sweep."""
    return merging_method(run.settings.model) not in (None, "none")


def check_sweep(plan: Plan, runs: Sequence[PlannedRun]) -> None:
    """Checks the sweep of a plan, before hours of training: its form, and its values in each row that merges.

    Raises:
        UserError: the sweep cannot be read, a value is not allowed in a row, or no row merges.
    """
    item = plan.settings.sweep
    if not item:
        return
    try:
        key, values = parse_sweep(item)
    except UserError as error:
        raise UserError(f"{plan.path}: sweep: {str(error).removeprefix('--sweep ')}") from None
    merging = {run.row: run for run in runs if merges(run)}
    if not merging:
        raise UserError(f"{plan.path}: sweep: {item}: no model of the plan merges tokens; take it out")
    for row, run in merging.items():
        for value in values:
            try:
                load_settings(run.command[1], [*run.command[2:], *as_overrides({key: value})])
            except UserError as error:
                raise UserError(f"{plan.path}: sweep: row {row!r}: {error}") from None


def sweep_job(study: Path, placed: Placed, item: str, jobs: int = 1) -> Job | None:
    """Returns the job that evaluates a finished run with each value of a sweep; None if there is nothing to do.

    Args:
        study: the study folder.
        placed: the run.
        item: the sweep, such as "merge.r=[0,2,4]".
        jobs: number of processes at a time.
    """
    file = study / entry_of(study, placed).sweep
    if not merges(placed.run) or is_done(file, placed.folder, item):
        return None
    title = f"{placed.run.title}, sweep"

    def ended() -> str:
        if not is_done(file, placed.folder, item):
            raise UserError(f"{file}: was not written")
        return f"{title}: {file}"

    arguments = ["--run", str(placed.folder.path), "--sweep", item, "--json", str(file)]
    file_of_log = study / "logs" / f"{placed.run.title}.sweep.txt"
    kind_of, work = sweep_size(placed)
    environment = threads_of(placed.run.settings.threads, jobs)
    return Job(title, tool("eval", *arguments), file_of_log, ended, kind_of, work, environment=environment)


def sweep_size(placed: Placed) -> tuple[str, float]:
    """Returns the kind and the work of the sweep of a run: much less than that of its training."""
    return f"sweep of {kind(placed.run)}", work_of(placed.run) / 50


def is_done(file: Path, run: RunFolder, item: str) -> bool:
    """Returns whether a file holds a sweep of a run as it is now."""
    key, values = parse_sweep(item)
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        same = [(row["origin"]["key"], row["value"]) for row in rows] == [(key, value) for value in values]
        return same and file.stat().st_mtime >= run.results_file.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        return False
