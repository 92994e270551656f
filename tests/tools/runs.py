"""Small finished runs that no default is made for: another library's models, LeNet-5, images of many labels."""

from __future__ import annotations

import csv
import io
from contextlib import redirect_stdout
from pathlib import Path

from engine.settings.schema import RunSettings
from engine.train.experiment import run_experiment
from models.settings import check
from tests.engine.data.conftest import save_image
from tests.quiet import end_log

TIMM = {"name": "timm", "arch": "test_vit", "img_size": 32, "options": {"depth": 2}}  # 2 x 2 patches
PLAIN = {"crop": 0, "erase": 0.0, "mixup": 0.0, "cutmix": 0.0}
SHORT = {"epochs": 1, "batch_size": 8, "lr": 0.01}


def folder_run(path: Path, model: dict) -> Path:
    """A run on a folder of images of noise, two classes of 20."""
    for i in range(40):
        save_image(path / "images" / "ab"[i % 2] / f"{i}.png", i, (40, 40))
    data = {"name": "folder", "path": str(path / "images"), "size": model["img_size"]}
    return _run(path / "run", model={**model, "num_classes": 2}, data=data)


def many_labels_run(path: Path, model: dict) -> Path:
    """A run on a table of 60 images of noise, two labels."""
    rows = [("path", "odd", "second")]
    for i in range(60):
        rows.append((save_image(path / "images" / f"{i}.png", i, (8, 8)).name, i % 2, (i // 2) % 2))
    with open(path / "images" / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    data = {"name": "csv", "path": str(path / "images" / "table.csv"), "labels": "many", "size": model["img_size"]}
    return _run(path / "run", model={**model, "num_classes": 2}, data=data)


def _run(folder: Path, **sections) -> Path:
    folder.mkdir()
    body = {
        "name": folder.name,
        "threads": 1,
        "device": "cpu",
        "split": {"val": 0.2, "test": 0.2},
        "augment": PLAIN,
        "train": SHORT,
        "log": {"every_steps": 1, "images": 0},
        **sections,
    }
    with redirect_stdout(io.StringIO()):
        run_experiment(check(RunSettings, body), folder)
    end_log()
    return folder
