"""A tiny run on the handwritten digits, and three folds of it, for the engine's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from engine.runs.tracking import Tracker
from engine.settings.schema import RunSettings
from engine.train import final_test, folds_report
from engine.train.loop import validation
from models.settings import check
from tests.engine.launch.slurm import slurm  # noqa: F401, a fixture
from tests.engine.settings.settings_files import BODY, write

TINY = {
    "name": "tiny",
    "threads": 1,
    "device": "cpu",
    "model": {
        "name": "hybrid",
        "img_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "num_classes": 10,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "drop_path_rate": 0.2,
        "merge": {"method": "tome", "r": 3},
        "cnn": {"block": "residual", "depth": 1},
    },
    "data": {"name": "digits"},
    "split": {"val": 0.1, "part": 0.25},
    "augment": {"crop": 1, "erase": 0.3, "mixup": 0.2, "cutmix": 1.0},
    "train": {"epochs": 3, "batch_size": 16, "accumulate": 2, "lr": 0.003, "ema": 0.9, "label_smoothing": 0.1},
    "log": {"every_steps": 1, "images": 4},
}


@pytest.fixture
def tiny():
    """Makes the settings of a tiny run; keyword arguments replace keys of its sections."""

    def make(**sections) -> RunSettings:
        tree = {key: {**value} if isinstance(value, dict) else value for key, value in TINY.items()}
        for key, value in sections.items():
            tree[key] = {**tree[key], **value} if isinstance(value, dict) and key in tree else value
        return check(RunSettings, tree)

    return make


@pytest.fixture
def no_pictures(monkeypatch):
    """The runs of this test draw nothing: pictures are a third of the time of a short run."""
    monkeypatch.setattr(Tracker, "figure", lambda *_: None)
    for module in (final_test, folds_report):
        for name in ("draw", "confusion_figure", "confused_figure"):
            monkeypatch.setattr(module, name, lambda *_: None)
    for module in (final_test, validation):
        monkeypatch.setattr(module, "mistakes_figure", lambda *_: None)


@pytest.fixture(autouse=True)
def one_thread():
    """Bits depend on the number of threads: every test has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir()
    return made


@pytest.fixture
def body(tmp_path: Path) -> str:
    """The path of a settings file that says only what has no default."""
    return write(tmp_path, "a.yaml", BODY)


@pytest.fixture(scope="session")
def finished_folds(tmp_path_factory) -> Path:
    """The folder of three folds of a tiny run, trained and summarised. Tests must not change it."""
    from tests.engine import fold_runs  # it imports TINY from here

    return fold_runs.train(tmp_path_factory.mktemp("folds") / "tiny")


@pytest.fixture
def copied_folds(finished_folds: Path, tmp_path: Path) -> Path:
    """A copy of `finished_folds` that a test may change."""
    return Path(shutil.copytree(finished_folds, tmp_path / "tiny"))
