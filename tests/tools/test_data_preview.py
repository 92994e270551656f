"""tools/data.py preview: a batch as the model will see it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from engine.cli import cli
from engine.data import build_data
from engine.figures import preview
from engine.settings.layers import load_settings
from engine.train.build import build_batches
from tests.engine.data.conftest import save_image
from tools import data as data_tool


@pytest.fixture
def overrides(tmp_path) -> list[str]:
    for i in range(40):
        save_image(tmp_path / "images" / ["a $name$", "b" * 60][i % 2] / f"{i}.png", i, (40, 30))
    return [
        f"data.path={tmp_path / 'images'}",
        "model.num_classes=2",
        "model.img_size=32",
        "model.weights=null",
        "train.batch_size=8",
        "threads=1",
        "device=cpu",
    ]


def run(monkeypatch, *args) -> int:
    monkeypatch.setattr(sys, "argv", ["data.py", "preview", *map(str, args)])
    return cli(data_tool.main)


@pytest.mark.parametrize("mixing", ["[]", "[{name: MixUp}]"])
def test_the_images_are_those_of_the_first_step(overrides, mixing):
    extra = [] if mixing == "[]" else [f"augment.transforms={mixing}", "augment.scale=0", "augment.flip=false"]
    settings = load_settings("zoo/resnet18", [*overrides, *extra, "train.label_smoothing=0"])
    data = build_data(settings.data, settings.split, settings.seed)
    images, targets = preview.first_batch(data, settings, 0)
    batches = build_batches(data, settings, torch.device("cpu"))
    seen, labels = next(batches.epoch(0, first_step=0))[0]
    assert images.equal(seen) and targets.equal(labels)
    batches.close()
    back = preview.as_pixels((torch.full((1, 3, 1, 1), 200 / 255) - mean_of(data)) / std_of(data), data)
    assert (back == 200).all()


def mean_of(data):
    return torch.tensor(data.mean)[:, None, None]


def std_of(data):
    return torch.tensor(data.std)[:, None, None]


def test_a_picture_is_written_and_epochs_differ(overrides, tmp_path, monkeypatch, capsys):
    pictures = []
    for epoch in (0, 0, 1):
        out = tmp_path / "new.png"
        assert run(monkeypatch, "--cfg", "zoo/resnet18", "--out", out, "--epoch", epoch, "--images", 5, *overrides) == 0
        pictures.append(np.asarray(Image.open(out)))
        assert f"picture: {out}" in capsys.readouterr().out
    assert (pictures[0] == pictures[1]).all() and not (pictures[0] == pictures[2]).all()


def test_of_several_folds_the_first(overrides, tmp_path, monkeypatch):
    names = []
    with monkeypatch.context() as patch:
        patch.setattr(preview, "gallery", lambda images, titles, columns, title: names.append(title))
        for extra in ([], ["split.fold=1"]):
            settings = load_settings("zoo/resnet18", [*overrides, "name=x", "split.folds=2", *extra])
            preview.preview(settings, 0, 4)
    assert names == ["x, fold 0 of 2, epoch 0: 32 px", "x, fold 1 of 2, epoch 0: 32 px"]
    out = tmp_path / "a.png"
    data = [one for one in overrides if "img_size" not in one and "num_classes" not in one]
    assert (
        run(
            monkeypatch,
            "--cfg",
            "kaggle/squeezenet",
            *data,
            "data.name=folder",
            "model.num_classes=2",
            "model.img_size=32",
            "--out",
            out,
        )
        == 0
    )
    assert Image.open(out).size[0] > 100


def test_mistakes_are_one_line(overrides, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new.png"
    mistakes = {
        "--images 0": ["--images", "0"],
        "train.batch_size = 64": ["train.batch_size=64"],
        "augment.rotate": ["augment.rotate=1"],
        "no/a.png": ["--out", tmp_path / "no" / "a.png"],
    }
    for said, wrong in mistakes.items():
        args = ["--cfg", "zoo/resnet18", "--out", out, *overrides, *wrong]
        assert run(monkeypatch, *args) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1, err
        assert err.startswith("error: ") and said in err
    assert not out.exists()


def test_labels_and_mixtures_in_words():
    names = ["cat", "dog", "emu"]
    assert preview.described(torch.tensor(1), names) == "dog"
    assert preview.described(torch.tensor([0.7, 0.0, 0.3]), names) == "cat 70 %\nemu 30 %"
    assert preview.described(torch.tensor([1.0, 0.0, 1.0]), names) == "cat\nemu"
    assert preview.described(torch.zeros(3), names) == "none"
