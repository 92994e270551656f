"""A small ViT of timm with random weights in a file, and photographs of nearly one colour, a folder for each class."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from engine.settings.layers import load_file
from engine.study.segment.settings import SegmentSettings
from tests.tools.colours import BLUE, GREEN, RED, save_colour

YELLOW = (220, 220, 40)
BODY = """
name: small
model: {name: timm:test_vit, img_size: 64, weights: vit.safetensors}
data: {name: planted, path: images, train: 16, test: 10, objects: [1, 3]}
methods: [tome]
budgets: [{r: 0}, {r: 4}]
batch_size: 7
device: cpu
threads: 1
"""


def make_files(folder: Path) -> Path:
    """Writes vit.safetensors, images/ and small.yaml; returns the last."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", img_size=64).state_dict(), folder / "vit.safetensors")  # 4 x 4 patches
    for number, colour in enumerate((RED, GREEN, BLUE, YELLOW)):
        for photograph in range(5):
            save_colour(folder / "images" / f"c{number}" / f"{photograph}.png", colour, photograph, (64, 64))
    (folder / "small.yaml").write_text(BODY)
    return folder / "small.yaml"


@pytest.fixture(scope="session")
def session_files(tmp_path_factory) -> Path:
    return make_files(tmp_path_factory.mktemp("segment"))


@pytest.fixture
def load(session_files, monkeypatch):
    """Loads the small comparison with overrides."""
    monkeypatch.chdir(session_files.parent)
    return lambda *overrides: load_file(SegmentSettings, "small.yaml", overrides, "segment")
