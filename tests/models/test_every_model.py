"""What every model in MODELS has to offer, and the model that docs/finetuning.md adds as an example."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from models import MODELS, build_model
from models.interface import NamedHeads
from models.settings.zoo import LIBRARIES
from tests.paths import ROOT

OURS = [name for name in MODELS if name not in LIBRARIES]


@pytest.mark.parametrize("name", OURS)
def test_a_model_says_what_it_takes_and_what_classifies(name):
    model = build_model(name, num_classes=7).eval()
    missing = [attribute for attribute in ("img_size", "in_chans", "num_classes") if not hasattr(model, attribute)]
    assert not missing, f"{type(model).__name__} has no {missing[0]}; see docs/finetuning.md, Adding a model"
    assert model.num_classes == 7
    assert isinstance(model, NamedHeads), f"{type(model).__name__} has no head_names, such as ('head',)"
    with torch.inference_mode():
        logits = model(torch.zeros(2, model.in_chans, model.img_size, model.img_size))
    assert isinstance(logits, torch.Tensor) and logits.shape == (2, 7), (
        "forward returns logits (B, classes) and no more"
    )
    for head in model.head_names:
        assert sum(p.numel() for p in model.get_submodule(head).parameters()), f"{head} has no parameters"


@pytest.mark.parametrize("name", OURS)
def test_settings_are_named_as_in_the_table_and_described(name):
    cls, _ = MODELS[name]
    assert cls.model_fields["name"].default == name
    assert not [key for key, field in cls.model_fields.items() if key != "name" and not field.description]


@pytest.mark.slow
def test_the_example_of_the_docs_is_counted_and_trains(tmp_path):
    """Added as the page says to a copy of the project: two files and an entry."""
    page = (ROOT / "docs" / "finetuning.md").read_text().partition("## Adding a model")[2]
    settings, network = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    entry = re.search(r"```\n(    .*?)```", page, re.DOTALL)[1]
    for part in ("models", "engine", "tools", "configs"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "models/settings/tiny_cnn.py").write_text(settings)
    (tmp_path / "models/tiny_cnn.py").write_text(network)
    registry = tmp_path / "models/registry.py"
    text = registry.read_text()
    for before, added in (
        ("from .settings.vit import", "from .settings.tiny_cnn import TinyCNNSettings\n"),
        ('    "lenet5": (', entry),
    ):
        assert text.count(before) == 1
        text = text.replace(before, added + before)
    registry.write_text(text)
    cfg = ["--cfg", "digits/lenet5", "model.name=tiny_cnn", "model.width=4"]
    code = f"""
from tools import flops, train
flops.main({cfg})
train.main({[*cfg, "train.epochs=1", "split.part=0.1", f"out={tmp_path}/runs", "name=tiny", "finetune.mode=head"]})
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout and "% trained" in done.stdout
