"""What the runs of a study cost: multiply-adds by counting, and hours from a few real steps of each kind of run."""

from __future__ import annotations

import heapq
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.cost.table import cost_of
from engine.data.loading.workers import processors
from engine.settings.changes import decisive
from engine.settings.layers import to_yaml
from engine.settings.schema import RunSettings
from engine.study.plan.folders import Placed
from engine.study.plan.rows import PlannedRun, paths_of
from engine.tables import Column
from engine.wording import NOT_COUNTED, counted, duration, fixed
from models.settings import UserError

TRAINING = 3  # a training step costs about three times the forward pass: the backward pass is two products for each one


@dataclass(frozen=True)
class Measured:
    """What tools/train.py --estimate measured of a kind of run, or why it could not."""

    values: Mapping[str, Any]
    problem: str = ""


def gmacs_of(settings: RunSettings) -> float | None:
    """Returns the billions of multiply-adds of one image forward; None if they cannot be counted.

    Raises:
        UserError: the model cannot be built, or its budget cannot be met.
    """
    key = settings.model.model_dump_json()
    if key not in _COUNTED:
        _COUNTED[key] = cost_of(settings.name, settings.model).cost.gmacs
    return _COUNTED[key]


_COUNTED: dict[str, float | None] = {}  # settings of a model, as JSON -> what was counted


def _gmacs(run: PlannedRun) -> float | None:
    try:
        return gmacs_of(run.settings)
    except UserError as error:
        raise UserError(f"row {run.row!r}: {error}") from None


def work_of(run: PlannedRun) -> float:
    """Returns the work of a run in a unit that is the same for all runs of a study: GMACs of an image times epochs.

    It is for the progress of a study only: a model that cannot be counted counts as one GMAC.

    Raises:
        UserError: see `gmacs_of`; it names the row.
    """
    t = run.settings.train
    length = t.epochs if t.steps is None else t.steps * t.batch_size * t.accumulate / 50_000
    return (_gmacs(run) or 1.0) * length


def kind(run: PlannedRun) -> str:
    """Returns a text that is equal for runs that take equally long: they differ only in seed and fold."""
    values = decisive(run.settings)
    values |= paths_of(run.settings)  # other data may be more data
    return repr({key: value for key, value in values.items() if key not in ("seed", "split.fold")})


def measure(run: PlannedRun, jobs: int = 1) -> Measured:
    """Times a few training steps of a run in a process of its own; see `engine.train.estimate`.

    The time that the process takes to start and to end is added, since each run is such a process.

    Args:
        run: the run.
        jobs: number of runs at a time, whose share of the processors it has.
    """
    from engine.launch.child import Child, reason, tool
    from engine.study.execute.threads import threads_of

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "run.yaml").write_text(to_yaml(run.settings), encoding="utf-8")
        started = time.monotonic()
        child = Child(
            tool("train", "--cfg", str(folder / "run.yaml"), "--estimate", "--json", str(folder / "estimate.json")),
            folder / "log.txt",
            threads_of(run.settings.threads, jobs),
        )
        try:
            code = child.wait()
        finally:
            child.kill()
        if code:
            return Measured({}, reason(code, folder / "log.txt"))
        took = time.monotonic() - started
        values = json.loads((folder / "estimate.json").read_text(encoding="utf-8"))
        return Measured({**values, "seconds": values["seconds"] + max(0.0, took - values["took_seconds"])})


def measure_all(runs: list[Placed], say: Callable[[str], None], jobs: int = 1) -> dict[str, Measured]:
    """Measures one run of each kind that is not done; `say` is told before each."""
    first = {kind(placed.run): placed.run for placed in reversed(runs) if placed.state != "done"}
    measured = {}
    for number, (text, run) in enumerate(reversed(first.items()), 1):
        say(f"measuring the first steps of {run.row} ({number} of {len(first)})")
        measured[text] = measure(run, jobs)
    return measured


def table(runs: list[Placed], measured: Mapping[str, Measured]) -> tuple[list[Column], list[list[str]]]:
    """Returns the columns and cells of what a study would run.

    Args:
        runs: all runs of the plan.
        measured: by `kind`; empty: nothing was measured, and columns that need it are left out.
    """
    folds = any(placed.run.fold is not None for placed in runs)
    columns = [Column("row", words=True), Column("seed"), *([Column("fold")] if folds else []), Column("GMACs/image")]
    timed = bool(measured)
    columns += [Column("images x epochs"), Column("GMACs x images"), Column("time")] if timed else [Column("epochs")]
    columns.append(Column("state", words=True))
    cells = []
    for placed in runs:
        run, t = placed.run, placed.run.settings.train
        found = measured.get(kind(run))
        values = found.values if found else {}
        gmacs = values.get("gmacs") if values else _gmacs(run)
        row = [run.row, str(run.seed), *([str(run.fold)] if folds else [])]
        row.append(NOT_COUNTED if gmacs is None else fixed(gmacs, 4))
        length = f"{t.epochs}" if t.steps is None else f"{t.steps} steps"
        if not timed:
            row.append(length)
        elif not values:
            row += ["-", "-", "-"]
        else:
            row.append(f"{values['train_images']:,} x {length}" if t.steps is None else f"{values['images']:,}")
            row.append("-" if gmacs is None else f"{gmacs * values['images']:,.0f}")
            row.append(duration(values["seconds"]))
        row.append(_state(placed) + (f", cannot start: {found.problem}" if found and found.problem else ""))
        cells.append(row)
    return columns, cells


def _state(placed: Placed) -> str:
    renamed = placed.top.path.name != placed.run.settings.name
    where = f", in {placed.top.path.name}" if renamed and placed.state != "new" else ""
    where += f"; {placed.moved} has changed, and the old path is gone" if placed.moved else ""
    return {"done": "done", "started": "to be continued", "new": "to be run"}[placed.state] + where


def at_once(runs: Sequence[Mapping[str, Any]], jobs: int) -> float:
    """Returns the seconds of all runs where each of `jobs` processes takes the next one when it is free."""
    free = [0.0] * jobs
    for values in runs:
        heapq.heapreplace(free, free[0] + values["seconds"])
    return max(free)


def summary(runs: list[Placed], measured: Mapping[str, Measured], jobs: int) -> list[str]:
    """Returns lines on how much is left of a study, and how long it takes.

    Args:
        runs: all runs of the plan.
        measured: by `kind`; empty: nothing was measured.
        jobs: number of runs at a time.
    """
    left = [placed for placed in runs if placed.state != "done"]
    lines = [f"{counted(len(runs), 'run')}, {len(runs) - len(left)} done, {len(left)} left"]
    if not (left and measured):
        return lines
    known = [measured[kind(placed.run)].values for placed in left if measured[kind(placed.run)].values]
    total = sum(values["gmacs"] * values["images"] for values in known if values["gmacs"] is not None)
    seconds = sum(values["seconds"] for values in known)
    device = known[0]["device"] if known else ""
    lines.append(f"{total / 1e6:,.3g} PMACs forward, about {TRAINING} times as many in training")
    if known:
        steps = known[0]["timed_steps"]
        lines.append(
            f"about {duration(seconds)} one after another on {device}, from the mean of {steps} real steps of each "
            "kind of run; a run that is to be continued is counted whole"
        )
    if known and jobs > 1:
        jobs = min(jobs, len(known))
        lines.append(f"{jobs} at a time: {duration(at_once(known, jobs))} if they do not slow each other down")
        threads = max(values["threads"] for values in known)
        if device.startswith("cpu") and threads * jobs > processors():
            lines.append(
                f"they will: {jobs} x {counted(threads, 'thread')} on {counted(processors(), 'processor')}; "
                "give fewer jobs= or threads="
            )
    if any(values["kept_features"] for values in known):
        lines.append("runs that train only a head may keep features, and then take less")
    return lines
