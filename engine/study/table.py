"""Finished runs side by side: those that differ in nothing but seed and fold are one row, with mean and spread."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from engine.runs.results import read_results
from engine.settings.layers import load_settings
from engine.settings.schema import RunSettings
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
    kinds: dict[str, list[dict]] = {}
    for folder in runs_in(folders):
        alike = kinds.setdefault(kind(folder), [])
        results = read_results(folder)
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
        split = _settings(folder).split
        parts = range(split.folds) if split.all_folds else None
        found += [folder] if parts is None else [folder / f"fold{fold}" for fold in parts]
        for path in found[-len(parts) :] if parts else []:
            if not (path / "results.json").is_file():
                raise UserError(f"{path}: this fold is not finished; finish it with --resume {folder}")
    return found


def kind(folder: Path) -> str:
    """A text that two run folders share if they differ in nothing but the seed and the fold.

    Raises:
        UserError: no run folder.
    """
    return _settings(folder).model_dump_json(exclude={**dict.fromkeys(SEED, True), "split": {"fold"}})


def _settings(folder: Path) -> RunSettings:
    if not (folder / "settings.yaml").is_file():
        raise UserError(f"{folder}: not a run folder (it has no settings.yaml); give the folder that training printed")
    return load_settings(str(folder / "settings.yaml"))


def _place(results: dict) -> tuple[int, int | None]:
    """A run's seed and fold."""
    return results["seed"], results.get("fold")


def _row(alike: list[dict]) -> Row:
    metric = alike[0].get("metric", "top1")
    top1 = [100 * results[f"test_{metric}"] for results in alike if results[f"test_{metric}"] is not None]
    averages = {key: mean(r[key] for r in alike) for key in ("images_per_second", "seconds", "peak_memory_mib")}
    return Row(
        name=_common_name([results["name"] for results in alike]),
        seeds=list(dict.fromkeys(results["seed"] for results in alike)),
        folds=sorted({results["fold"] for results in alike if results.get("fold") is not None}),
        model=alike[0].get("model", "-"),
        method=alike[0].get("method", "from scratch"),
        metric=metric,
        top1=mean(top1) if top1 else None,
        spread=stdev(top1) if len(top1) > 1 else None,
        params=alike[0]["params"],
        gmacs=alike[0]["gmacs"],
        trained_params=alike[0].get("trained_params", alike[0]["params"]),
        saved_mib=alike[0].get("saved_mib"),
        **averages,
    )


def _common_name(names: list[str]) -> str:
    """What the names begin with: `vit_s0`, `vit_s1` -> `vit`."""
    shared = names[0]
    for name in names[1:]:
        while not name.startswith(shared):
            shared = shared[:-1]
    return (re.sub(r"[_-]s?$", "", shared) if len(names) > 1 else shared) or names[0]
