"""Real runs for the tests of the page, trained once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from engine.runs.folder import RunFolder
from engine.settings.schema import RunSettings
from engine.study.points import Point
from engine.train.experiment import run_experiment
from models.settings import check
from tests.engine.conftest import TINY
from tests.quiet import end_log


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> list[Point]:
    """Two rows, of two runs and of one run: a tiny hybrid with two budgets. Tests must not change their folders."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        _point([_trained(folder / f"r{r}_s{seed}", r, seed) for seed in range(seeds)], r)
        for r, seeds in ((0, 2), (3, 1))
    ]


@pytest.fixture(scope="session")
def ten_runs(runs, tmp_path_factory) -> list[Point]:
    """Ten rows of a run each: copies of one folder."""
    folder = tmp_path_factory.mktemp("ten")
    copies = [Path(shutil.copytree(runs[0].folders[0], folder / f"copy{i}")) for i in range(10)]
    return [replace(runs[0], name=copy.name, folders=(copy,)) for copy in copies]


def _trained(path: Path, r: int, seed: int) -> RunFolder:
    path.mkdir()
    model = {**TINY["model"], "merge": {"method": "tome", "r": r}}
    tree = {**TINY, "name": path.name, "seed": seed, "model": model, "train": {**TINY["train"], "epochs": 2}}
    tree["log"] = {**TINY["log"], "images": 0}
    run_experiment(check(RunSettings, tree), path)
    end_log()
    return RunFolder(path)


def _point(runs: list[RunFolder], r: int) -> Point:
    results = [run.read_results() for run in runs]
    first = results[0]
    return Point(
        name=f"r{r}",
        model="hybrid",
        method="tome",
        budget=f"r = {r}",
        metric="top1",
        scores={f"seed {one.seed}": one.test_score for one in results},
        costs={"gmacs": first.gmacs, "params_m": first.params / 1e6, "memory_mib": first.peak_memory_mib},
        line="hybrid tome",
        images=first.test_images,
        folders=tuple(run.path for run in runs),
    )
