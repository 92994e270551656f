"""Finished runs side by side: those that differ in nothing but seed and fold are one row, with mean and spread."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from engine.runs.folder import RunFolder
from engine.runs.results import Results
from models.settings import UserError

SEED = ("name", "out", "seed")  # what may differ within a row


@dataclass(frozen=True)
class Row:
    """Runs of one kind. `top1`, or the metric that `metric` names, in percent, None where there are no test images; the
    spread is the sample standard deviation, None for one run. What older runs did not write down is None, or what held
    for them."""

    name: str
    seeds: list[int]
    folds: list[int]  # those that were run; empty where there are none
    model: str
    method: str  # how it was trained: from scratch, full, head, gradual, lora
    metric: str
    top1: float | None
    spread: float | None
    params: int
    gmacs: float
    images_per_second: float
    seconds: float
    peak_memory_mib: float
    trained_params: int
    saved_mib: float | None


def compare(folders: Sequence[Path]) -> list[Row]:
    """Reads run folders, or folders of folds, and groups them, in the order in which each kind first appears.

    Raises:
        UserError: a folder that holds no finished run, or the same seed and fold of one kind twice.
    """
    kinds: dict[str, list[Results]] = {}
    for folder in runs_in(folders):
        alike = kinds.setdefault(kind(folder), [])
        results = RunFolder(folder).read_results()
        if results is None:
            raise UserError(f"{folder}: not a finished run (no results.json); finish it with --resume {folder}")
        if any(_place(results) == _place(other) for other in alike):
            seed, fold = _place(results)
            which = f"seed {seed}" + ("" if fold is None else f", fold {fold},")
            raise UserError(f"{folder}: {which} of this kind is given twice; leave one out")
        alike.append(results)
    return [_row(alike) for alike in kinds.values()]


def runs_in(folders: Sequence[Path]) -> list[Path]:
    """The run folders, and in place of a folder of folds those of its folds.

    Raises:
        UserError: no run folder.
    """
    found: list[Path] = []
    for folder in folders:
        run = RunFolder(folder)
        runs = run.folds if run.holds_folds else [run]
        if run.holds_folds and (missing := run.unfinished_folds()):
            raise UserError(f"{runs[missing[0]]}: this fold is not finished; finish it with --resume {folder}")
        found += [run.path for run in runs]
    return found


def kind(folder: Path) -> str:
    """A text that two run folders share if they differ in nothing but the seed and the fold.

    Raises:
        UserError: no run folder.
    """
    return RunFolder(folder).settings.model_dump_json(exclude={**dict.fromkeys(SEED, True), "split": {"fold"}})


def _place(results: Results) -> tuple[int, int | None]:
    """A run's seed and fold."""
    return results.seed, results.fold


def _row(alike: list[Results]) -> Row:
    first = alike[0]
    scores = [100 * results.test_score for results in alike if results.test_score is not None]
    return Row(
        name=_common_name([results.name for results in alike]),
        seeds=list(dict.fromkeys(results.seed for results in alike)),
        folds=sorted({results.fold for results in alike if results.fold is not None}),
        model=first.model,
        method=first.method,
        metric=first.metric,
        top1=mean(scores) if scores else None,
        spread=stdev(scores) if len(scores) > 1 else None,
        params=first.params,
        gmacs=first.gmacs,
        images_per_second=mean(results.images_per_second for results in alike),
        seconds=mean(results.seconds for results in alike),
        peak_memory_mib=mean(results.peak_memory_mib for results in alike),
        trained_params=first.trained_params,
        saved_mib=first.saved_mib,
    )


def _common_name(names: list[str]) -> str:
    """What the names begin with: `vit_s0`, `vit_s1` -> `vit`."""
    shared = names[0]
    for name in names[1:]:
        while not name.startswith(shared):
            shared = shared[:-1]
    return (re.sub(r"[_-]s?$", "", shared) if len(names) > 1 else shared) or names[0]
