"""Three folds of a tiny run on the digits."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

from engine.settings.schema import RunSettings
from engine.train.folds import run_folds
from engine.train.folds_report import summarise
from models.settings import check
from tests.engine.conftest import TINY
from tests.quiet import end_log
from tests.tools.runs import PLAIN

K = 3
SHORT = {
    "augment": PLAIN,
    "train": {"epochs": 1, "batch_size": 16, "lr": 0.01},
    "log": {"every_steps": 50, "images": 0},
}


def settings_of(split: dict, **sections) -> RunSettings:
    return check(RunSettings, {**TINY, **SHORT, **sections, "split": {"val": 0.1, "part": 0.2, "folds": K, **split}})


def quietly(settings: RunSettings, folder: Path, resume: bool = False) -> dict[int, dict]:
    with redirect_stdout(io.StringIO()):
        found = run_folds(settings, folder, resume=resume)
    end_log()
    return found


def results(folder: Path) -> list[dict]:
    return [json.loads((folder / f"fold{fold}" / "results.json").read_text()) for fold in range(K)]


def train(folder: Path) -> Path:
    """Trains all folds and writes their report; returns the folder."""
    quietly(settings_of({}), folder)
    with redirect_stdout(io.StringIO()):
        summarise(settings_of({}), folder)
    return folder
