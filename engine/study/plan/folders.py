"""Finds the run folder of each planned run: one that was trained with the same resolved settings, whatever its name.

Settings that do not decide what a run results in may differ: the name, the device, threads, workers, `checkpoint` and
`log` (engine.settings.changes). A path may differ only if the old one is gone, since the files were moved then.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from engine.runs.folder import RunFolder
from engine.runs.folds import of_all
from engine.settings.changes import changed_on_resume, decisive
from engine.settings.schema import RunSettings
from engine.study.plan.rows import PlannedRun, paths_of
from models.settings import UserError

RUNS = "runs"  # in a study folder: the run folders
FOLD = re.compile(r"fold[0-9]+")

State = Literal["done", "started", "new"]


@dataclass(frozen=True)
class Placed:
    """A planned run and its folder, which need not exist yet.

    Attributes:
        run: the planned run.
        top: the run folder, or the folder of all folds that holds it.
        state: done: trained and tested; started: it can be resumed; new: nothing is there.
        problem: what is wrong with a run that came to its end; "": nothing.
        moved: settings that are paths and have changed since, as the files were moved; "": none.
    """

    run: PlannedRun
    top: RunFolder
    state: State
    problem: str = ""
    moved: str = ""

    @property
    def folder(self) -> RunFolder:
        """The run folder itself."""
        return self.top if self.run.fold is None else self.top.fold(self.run.fold)


@dataclass(frozen=True)
class Placing:
    """Where the runs of a plan are.

    Attributes:
        runs: in the order of the plan.
        others: run folders of the study that are not, or no longer, in the plan.
        damaged: folders that cannot be read, and why.
    """

    runs: list[Placed]
    others: list[Path] = field(default_factory=list)
    damaged: dict[Path, str] = field(default_factory=dict)

    def only_done(self) -> Placing:
        """Returns the same without runs that are not done."""
        return replace(self, runs=[placed for placed in self.runs if placed.state == "done"])


def place(runs: Sequence[PlannedRun], study: Path) -> Placing:
    """Finds the folder of each run, and names for those that have none."""
    damaged: dict[Path, str] = {}
    existing: dict[Path, RunSettings] = {}
    for path in sorted((study / RUNS).iterdir()) if (study / RUNS).is_dir() else []:
        if not path.is_dir() or _is_empty(path):
            continue
        try:
            existing[path] = of_all(RunFolder(path).settings)
        except UserError as error:
            damaged[path] = str(error) if str(path) in str(error) else f"{path}: {error}"
    homes = _matched(runs, existing, study)
    for run in runs:
        if run.home not in homes:
            homes[run.home] = _free(study / RUNS / run.settings.name, {*existing, *damaged, *homes.values()})
    placed = [_placed(run, RunFolder(homes[run.home])) for run in runs]
    return Placing(placed, [path for path in existing if path not in homes.values()], damaged)


def _matched(runs: Sequence[PlannedRun], existing: dict[Path, RunSettings], study: Path) -> dict[tuple[str, int], Path]:
    """Returns the existing folder of each run that has one, by `PlannedRun.home`: each folder belongs to one.

    Equal paths go before moved ones, and the run's own name before others.
    """
    homes: dict[tuple[str, int], Path] = {}
    wanted = {run.home: (run, of_all(run.settings)) for run in reversed(runs)}
    could_be = _candidates({home: whole for home, (_, whole) in wanted.items()}, existing)
    for moved in (False, True):
        for own in (True, False):
            for home, (run, whole) in reversed(wanted.items()):
                name = study / RUNS / run.settings.name
                free = [path for path in could_be[home] if path not in homes.values() and (path == name or not own)]
                same = (path for path in free if is_same(existing[path], whole, moved=moved))
                if home not in homes and (found := next(same, None)) is not None:
                    homes[home] = found
    return homes


def _candidates(
    wanted: Mapping[tuple[str, int], RunSettings], existing: Mapping[Path, RunSettings]
) -> dict[tuple[str, int], list[Path]]:
    """Returns for each run the folders whose settings do not plainly differ: a quick check before `is_same`."""
    known = {path: decisive(settings) for path, settings in existing.items()}
    found = {}
    for home, settings in wanted.items():
        now = decisive(settings)
        found[home] = [
            path
            for path, before in known.items()
            if all(now[key] == before[key] for key in now.keys() & before.keys() if key != "model.num_classes")
        ]
    return found


def again(placed: Placed) -> Placed:
    """Looks again at the folder of a run."""
    return _placed(placed.run, RunFolder(placed.top.path))


def is_same(stored: RunSettings, planned: RunSettings, *, moved: bool = False) -> bool:
    """Returns whether a run with these settings is the planned one; see the module.

    Args:
        stored: of a run folder.
        planned: of a run of the plan.
        moved: whether paths may differ where the old one is gone.
    """
    before, now = paths_of(stored), paths_of(planned)
    if before.keys() != now.keys():
        return False
    different = [path for key, path in before.items() if path != now[key]]
    if different and not (moved and all(os.path.isabs(path) and not os.path.exists(path) for path in different)):
        return False
    return not (changed_on_resume(stored, planned) or changed_on_resume(planned, stored))


def _placed(run: PlannedRun, top: RunFolder) -> Placed:
    folder = Placed(run, top, "new").folder
    if not folder.path.is_dir():
        return Placed(run, top, "new")
    try:
        if not folder.is_run:
            return Placed(run, top, "started")
        before, now = paths_of(folder.settings), paths_of(run.settings)
        moved = ", ".join(key for key in now if now[key] != before.get(key))
        return Placed(run, top, "started" if folder.read_results() is None else "done", moved=moved)
    except UserError as error:
        return Placed(run, top, "started", str(error))


def _free(path: Path, used: set[Path]) -> Path:
    """Returns a path that is not used: NAME, NAME-2, NAME-3 ..."""
    number, candidate = 1, path
    while candidate in used or (os.path.lexists(candidate) and not _is_empty(candidate)):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _is_empty(path: Path) -> bool:
    """Whether no run has begun in a folder: it was stopped while it started."""
    if not path.is_dir():
        return False
    for entry in path.iterdir():
        empty_fold = FOLD.fullmatch(entry.name) and _is_empty(entry)
        if not (entry.name.startswith(".") or entry.name == "log.txt" or empty_fold):
            return False
    return True
