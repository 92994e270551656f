"""Finished run folders for tests that train nothing."""

from __future__ import annotations

import json
from pathlib import Path

from engine.runs.folder import RunFolder
from engine.settings.layers import load_settings
from tests.results import results_of


def write_run(parent: Path, name: str, seed: int, top1: float, *overrides: str) -> Path:
    """Writes a run folder as training leaves it: settings, results, and the metrics of four steps and two epochs."""
    run = RunFolder(parent / name)
    run.path.mkdir()
    run.write_settings(load_settings("digits/vit", [f"name={name}", f"seed={seed}", *overrides]))
    run.write_results(results_of(name=name, seed=seed, test_metrics={"top1": top1}, images_per_second=100 + seed))
    lines = [{"step": step, "train/loss": 2.0 / step, "train/accuracy": 0.1 * step} for step in (1, 2, 3, 4)]
    lines += [{"step": step, "val/loss": 2.5 / step, "val/top1": 0.1 * step} for step in (2, 4)]
    run.metrics_file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return run.path
