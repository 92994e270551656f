"""Finds the checkpoint from which a stopped run continues, past damaged ones and without losing its best weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.files import writing
from engine.runs.checkpoints import checkpoint
from engine.runs.checkpoints.checkpoint import NewerFormat
from engine.runs.folder import RunFolder
from engine.runs.log import start_log
from engine.runs.records.metrics import metrics_of
from engine.runs.records.results import Results
from models.settings import UserError

log = logging.getLogger("hybridmerge")

NEEDED = {**checkpoint.WEIGHTS, "optimizer": dict, "progress": dict, "data": str, "lines": int}


@dataclass(frozen=True)
class StoppedRun:
    """Where a run continues.

    Attributes:
        file: the checkpoint; None: none has been written yet, and the run starts.
        state: what it holds.
        unusable: newer checkpoints that are damaged or incomplete, and what is wrong with each.
        lost_best: what is wrong with best.pt, if it is not the best so far; "": nothing.
        remakes_best: whether going on from here makes best.pt again, to the same bits.
    """

    file: Path | None = None
    state: dict[str, Any] | None = None
    unusable: Mapping[Path, str] = field(default_factory=dict)
    lost_best: str = ""
    remakes_best: bool = False

    def set_aside(self) -> None:
        """Logs what is missing or damaged, and renames what is damaged, so that it never replaces what can be used."""
        if self.file and not os.path.lexists(last := RunFolder(self.file.parent).checkpoint("last")):
            log.warning("%s: missing; the run goes on from %s", last, self.file.name)
        for file, problem in self.unusable.items():
            aside = file.with_name(f"{file.name}.damaged")
            with writing(file):
                os.replace(file, aside)
            log.warning("%s; renamed to %s, the run goes on from %s", problem, aside.name, self.file and self.file.name)
        if self.lost_best and self.remakes_best:
            log.warning("%s; it is made again, from %s on", self.lost_best, self.file and self.file.name)


def find_stopped(run: RunFolder) -> StoppedRun:
    """Returns the newest checkpoint of a run that can be used, or an older one if only that makes best.pt again.

    Raises:
        NewerFormat: a newer version wrote a checkpoint.
        UserError: none of the checkpoints can be used.
    """
    unusable: dict[Path, str] = {}
    for file in run.last_checkpoints:
        try:
            state = checkpoint.load(file, NEEDED)
        except NewerFormat:
            raise
        except UserError as error:
            unusable[file] = _problem(file, error)
            continue
        lost = _lost_best(run, _step(state, "best_step"))
        remaking = _that_remakes_best(run, file, state) if lost else None
        return StoppedRun(*(remaking or (file, state)), unusable, lost, remakes_best=remaking is not None)
    if not unusable:
        return StoppedRun()
    first, *others = unusable.values()
    more = f", and {len(others)} older likewise" if others else ""
    raise UserError(
        f"{first}{more}: nothing is left to continue from; put a copy back, or start the run again under another name="
    )


def _that_remakes_best(run: RunFolder, newest: Path, state: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """Returns the newest checkpoint that is not after the best weights, so that going on from it makes them again."""
    best = _step(state, "best_step")
    if _step(state) <= best:
        return newest, state
    for file in run.last_checkpoints:
        if file != newest and 0 < _step(checkpoint.peek(file)) <= best:
            with suppress(UserError):  # damaged
                return file, checkpoint.load(file, NEEDED)
    return None


def check_nothing_lost(run: RunFolder, first_save: int) -> None:
    """Checks that a run without a checkpoint has never had one, before it starts again over its files.

    Args:
        run: the run folder.
        first_save: the step after which a run like it writes its first checkpoint.

    Raises:
        UserError: the run came further than its first checkpoint.
    """
    reached = max(_last_step(run.metrics_file), _number(checkpoint.peek(run.checkpoint("best")).get("step")))
    if reached > first_save or run.predictions_file.exists():
        came = f"the run came to step {reached}" if reached else f"it has {run.predictions_file.name}"
        raise UserError(
            f"{run.checkpoint('last')}: missing, although {came}; put it back, or start the run again under another "
            "name="
        )
    if reached:
        log.info("no checkpoint had been written yet: the run starts again")


def warn_of_lost_best(run: RunFolder, results: Results) -> None:
    """Logs a warning if the best weights of a finished run are missing or damaged."""
    if problem := _lost_best(run, results.best_step):
        steps = [_step(checkpoint.peek(file)) for file in run.last_checkpoints]
        remakes = any(0 < step <= results.best_step for step in steps)
        start_log()
        or_make = f", or delete {run.results_file} and resume again, which makes it again" if remakes else ""
        log.warning("%s; put a copy back%s", problem, or_make)


def _lost_best(run: RunFolder, step: int) -> str:
    """Returns what is wrong with best.pt if it is not that of `step`, the best so far; "" if nothing is.

    Raises:
        NewerFormat: a newer version wrote it.
    """
    file = run.checkpoint("best")
    if step == 0:
        return ""
    if not os.path.lexists(file):
        return f"{file}: missing"
    try:
        found = _number(checkpoint.load(file, checkpoint.WEIGHTS).get("step"))
    except NewerFormat:
        raise
    except UserError as error:
        return _problem(file, error)
    return f"{file}: of step {found}, and the best so far was step {step}" if found < step else ""


def _problem(file: Path, error: UserError) -> str:
    """Returns what an error says of a file, without the fix behind the semicolon; paths may hold semicolons."""
    name, said = str(file), str(error)
    start = len(name) if said.startswith(name) else 0
    return said[:start] + said[start:].partition(";")[0]


def _progress(state: Mapping[str, Any]) -> Mapping[str, Any]:
    progress = state.get("progress")
    return progress if isinstance(progress, dict) else {}


def _step(state: Mapping[str, Any], key: str = "step") -> int:
    return _number(_progress(state).get(key))


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _last_step(file: Path) -> int:
    """Returns the largest step in metrics.jsonl; 0 if there is none."""
    return max((int(row["step"]) for row in metrics_of(file)), default=0)
