"""The recipes under configs/kaggle: each parses, builds as it is on the meta device, and trains when made narrow."""

from __future__ import annotations

import json

import pytest
import torch
import torchvision

from engine.runs.folder import RunFolder, with_budget
from engine.settings.layers import load_settings
from models import build
from tests.engine.data.conftest import save_image
from tests.marks import mostly_slow
from tests.paths import CONFIGS

RECIPES = sorted(path.stem for path in (CONFIGS / "kaggle").glob("*.yaml"))
# name -> pixels, and parameters in millions, from and to
KNOWN = {
    "vit_l16_swag": (512, 304, 305),
    "convnext_t": (224, 28.2, 28.4),
    "beit_l384_lora": (384, 304, 306),
    "deit_tiny": (224, 5.5, 5.6),
    "deit_tiny_full": (224, 5.5, 5.6),
    "deit_tiny_lora": (224, 5.5, 5.6),
    "squeezenet": (224, 0.77, 0.78),
    "squeezenet_gradual": (224, 0.77, 0.78),
}


@pytest.fixture
def narrow(monkeypatch):
    """torchvision's and timm's constructors with the same names of layers, fewer and thinner ones."""
    vit, convnext = torchvision.models.vision_transformer, torchvision.models.convnext
    make_vit, make_convnext = vit._vision_transformer, convnext._convnext

    def small_vit(patch_size, num_layers, num_heads, hidden_dim, mlp_dim, *args, **options):
        return make_vit(patch_size, 1, 2, 16, 32, *args, **options)

    def small_convnext(blocks, *args, **options):
        widths = [8, 8, 16, 16]
        blocks = [convnext.CNBlockConfig(w, None if w is None else o, 1) for w, o in zip(widths, [8, 16, 16, None])]
        return make_convnext(blocks, *args, **options)

    monkeypatch.setattr(vit, "_vision_transformer", small_vit)
    monkeypatch.setattr(convnext, "_convnext", small_convnext)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_builds_at_its_size(recipe):
    settings = load_settings(f"kaggle/{recipe}", ["model.weights=null", "model.num_classes=100"])
    assert settings.split.folds == 5 and settings.split.val == 0
    assert settings.data.name == "kaggle" and settings.data.size == settings.model.img_size == KNOWN[recipe][0]
    with torch.device("meta"):
        model = build(with_budget(settings).model)
    _, low, high = KNOWN[recipe]
    assert low < sum(p.numel() for p in model.parameters()) / 1e6 < high


# One with SqueezeNet stands for both; DeiT-Tiny is not narrow, and trains as the others do.
@pytest.mark.parametrize(
    "recipe", mostly_slow(RECIPES, ["vit_l16_swag", "convnext_t", "beit_l384_lora", "squeezenet_gradual"])
)
def test_two_steps_of_a_narrow_model(recipe, narrow, tmp_path):
    from engine.train.experiment import run_experiment

    for i in range(24):
        save_image(tmp_path / "kaggle" / "train" / f"{i % 2 + 9}" / f"{i}.png", i, (40, 30))
    small = ["model.options={embed_dim: 32, depth: 2, num_heads: 2}"] if "beit" in recipe else []
    size = "model.img_size=64"
    settings = load_settings(
        f"kaggle/{recipe}",
        [
            "model.weights=null",
            "model.num_classes=2",
            f"data.path={tmp_path / 'kaggle'}",
            size,
            "data.workers=0",
            "split.folds=null",
            "split.test=0.2",
            "train.batch_size=2",
            "train.steps=2",
            "train.warmup_ratio=0",
            "train.warmup_epochs=0",
            "threads=1",
            "device=cpu",
            *small,
            *late_groups(recipe),
        ],
    )
    with RunFolder(tmp_path / "run").lock():
        results = run_experiment(settings, tmp_path / "run")
    assert results.steps == 2 and results.test_images == 4
    assert json.loads((tmp_path / "run" / "results.json").read_text())["method"] == results.method
    frozen = {"vit_l16_swag": 0.01, "beit_l384_lora": 0.5}.get(recipe, 1)
    assert 0 < results.trained_share <= frozen


def late_groups(recipe: str) -> list[str]:
    """Two steps are one epoch: all groups begin at once."""
    settings = load_settings(f"kaggle/{recipe}")
    if settings.finetune is None or settings.finetune.mode != "gradual":
        return []
    groups = [group.model_copy(update={"epoch": 0}) for group in settings.finetune.groups]
    return [f"finetune.groups={json.dumps([group.model_dump() for group in groups])}"]
