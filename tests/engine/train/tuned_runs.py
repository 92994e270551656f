"""Settings of short fine-tuning runs on the digits."""

from __future__ import annotations

from engine.runs.checkpoints import checkpoint
from engine.settings.schema import RunSettings
from models.settings import check

PLAIN = {"crop": 0, "erase": 0.0, "mixup": 0.0, "cutmix": 0.0}
VIT = {
    "name": "vit",
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "merge": {"r": 3},
}
SHORT = {"epochs": 2, "batch_size": 16, "lr": 0.003}
SPLIT = {"val": 0.1, "part": 0.25}


def settings_of(**sections) -> RunSettings:
    """Settings of a short run on the digits; a section replaces the whole section."""
    body = {
        "name": "tuned",
        "threads": 1,
        "device": "cpu",
        "model": VIT,
        "data": {"name": "digits"},
        "split": SPLIT,
        "augment": PLAIN,
        "train": {},
        "log": {"every_steps": 1, "images": 4},
        **sections,
    }
    return check(RunSettings, {**body, "train": {**SHORT, **body["train"]}})


MODES = {
    "head": {"mode": "head"},
    "gradual": {
        "mode": "gradual",
        "groups": [{"parts": ["head"], "lr": 1e-3}, {"parts": ["blocks.1", "norm"], "epoch": 1, "lr": 1e-4}],
    },
    "full": {"mode": "full", "layer_decay": 0.5},
    "lora": {"mode": "lora", "rank": 2, "dropout": 0.1},
}


def state_of(run) -> dict:
    return checkpoint.load(run / "best.pt")["model"]
