"""A small ViT of timm with random weights in a file, and images of noise in folders named by ImageNet's ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from engine.settings.layers import load_file
from engine.study.zeroshot.settings import ZeroshotSettings
from tests.engine.data.conftest import save_image

CLASSES = {"n01440764": 0, "n02102040": 217, "n03888257": 701}  # wnid -> ImageNet's number: tench, springer, parachute
BODY = """
name: small
model: {name: timm:test_vit, img_size: 64, weights: vit.safetensors}
data: {name: folder, path: images}
methods: [tome, dpc_knn]
budgets: [{r: 0}, {r: 4}]
batch_size: 4
device: cpu
threads: 1
"""


def make_files(folder: Path) -> Path:
    """Writes vit.safetensors, images/ and small.yaml; returns the last."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64)  # 4 x 4 patches, 1,000 classes
    for parameter in model.parameters():
        parameter.data.mul_(3)  # so that predictions differ from image to image, and by what is merged
    save_file(model.state_dict(), folder / "vit.safetensors")
    for number in range(18):
        save_image(folder / "images" / list(CLASSES)[number % 3] / f"{number}.png", number, (64, 64))
    (folder / "small.yaml").write_text(BODY)
    return folder / "small.yaml"


@pytest.fixture(scope="session")
def session_files(tmp_path_factory) -> Path:
    return make_files(tmp_path_factory.mktemp("zeroshot"))


@pytest.fixture
def load(session_files, monkeypatch):
    """Loads the small comparison with overrides."""
    monkeypatch.chdir(session_files.parent)
    return lambda *overrides: load_file(ZeroshotSettings, "small.yaml", overrides, "zeroshot")
