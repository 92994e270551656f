"""A run of a network whose multiply-adds cannot be counted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engine.cost.macs import measure_or_say
from engine.measure.reevaluate import describe_merging
from engine.runs.restore import load_run
from engine.train.experiment import run_experiment
from engine.train.folds_report import together
from engine.train.report import print_run
from tests.engine.train.tuned_runs import settings_of

# timm's Sequencer has LSTMs in place of attention.
LSTM = {
    "name": "timm",
    "arch": "sequencer2d_s",
    "img_size": 32,
    "in_chans": 1,
    "options": {"layers": [1] * 4, "embed_dims": [16] * 4, "hidden_sizes": [4] * 4},
}


@pytest.fixture
def settings(tmp_path):
    labels = np.arange(24) % 3
    images = np.random.default_rng(0).integers(0, 60, (24, 32, 32)) + 60 * labels[:, None, None]
    splits = {f"{split}_images": images.astype(np.uint8) for split in ("train", "val", "test")}
    np.savez(tmp_path / "data.npz", **splits, **{f"{split}_labels": labels for split in ("train", "val", "test")})
    data = {"name": "npz", "path": str(tmp_path / "data.npz")}
    return settings_of(model=LSTM, data=data, split={}, train={"steps": 2, "batch_size": 8})


def test_it_trains_and_says_that_they_are_not_counted(settings, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    results = run_experiment(settings, folder)
    assert results.gmacs is None and results.test_score is not None and results.params > 0
    record = json.loads((folder / "results.json").read_text())
    assert record["gmacs"] is None and record["activations"] is None
    assert "GMACs are not counted: aten::lstm (8 times)" in (folder / "log.txt").read_text()
    print_run(results, folder)
    assert "GMACs           not counted\n" in capsys.readouterr().out
    run = load_run(folder)
    assert describe_merging(run).endswith("GMACs not counted") and measure_or_say(run.model).macs is None
    assert together(settings, [results, results]).gmacs is None
