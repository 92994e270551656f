"""A run goes on where its archive was unpacked on another system, which spells names in other bytes."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import torch

from engine.measure.ensembles import evaluate_run
from engine.runs.restore import load_run
from models.settings import UserError
from tests.engine.settings.settings_files import write
from tests.quiet import end_log
from tests.tools.colours import BLUE, GREEN, RED, SETTINGS, save_colour
from tools import train as train_tool

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def cfg(tmp_path, monkeypatch, capsys) -> str:
    """A settings file beside the same images with composed and with decomposed names."""
    monkeypatch.chdir(tmp_path)
    for form, root in (("NFC", "linux"), ("NFD", "macos")):
        seed = 0
        for name, colour in (("Äpfel", RED), ("Birnen", GREEN), ("Ölbaum", BLUE)):
            for letter in "aäoöuüzé":
                path = unicodedata.normalize(form, f"{root}/{name}/{letter}.png")
                save_colour(Path(path), colour, seed=(seed := seed + 1))
    return write(tmp_path, "colours.yaml", SETTINGS.replace("path: images", "path: linux"))


def train(*argv: str) -> None:
    train_tool.main(list(argv))
    end_log()


def test_a_run_goes_on_to_the_same_weights(cfg):
    for name, then in (("one", "linux"), ("two", "macos")):
        train("--cfg", cfg, f"name={name}")
        train("--resume", f"runs/{name}", f"data.path={then}", "train.epochs=2")
    one, two = (torch.load(f"runs/{name}/last.pt", weights_only=True)["model"] for name in ("one", "two"))
    assert all(one[key].equal(two[key]) for key in one)
    run = load_run(Path("runs/two"), ["data.path=linux"])
    assert evaluate_run(run, "test").metrics == run.results.test_metrics


def test_folds_go_on_and_are_told_together(cfg):
    train("--cfg", cfg, "split.folds=2", "split.fold=0")
    train("--resume", "runs/colours", "data.path=macos")
    folds = [load_run(Path(f"runs/colours/fold{i}"), ["data.path=linux"]) for i in range(2)]
    assert len(folds[0].data.test) + len(folds[1].data.test) == 24
    report = json.loads(Path("runs/colours/folds.json").read_text(encoding="utf-8"))
    assert list(report["class_accuracy"]) == list(report["class_images"]) == ["Birnen", "Äpfel", "Ölbaum"]


def test_the_number_of_joined_labels_is_the_one_that_is_asked_for(cfg):
    rows = [f"linux/Birnen/{letter}.png,{names}\n" for letter, names in zip("aäoöuüzé", ("a|b", "b|c", "c", "a") * 2)]
    Path("table.csv").write_text("path,labels\n" + "".join(rows))
    table = ["data.name=csv", "data.path=table.csv", "data.labels=many", "split.test=0.5", "train.batch_size=2"]
    with pytest.raises(UserError, match=r"data.label_separator=bar \(3 labels\), or semicolon .* \(4 labels\)"):
        train("--cfg", cfg, *table, "model.num_classes=3")
    with pytest.raises(UserError, match="model.num_classes = 4: the data has 3; set model.num_classes=3"):
        train("--cfg", cfg, *table, "data.label_separator=bar", "model.num_classes=4")
    train("--cfg", cfg, *table, "data.label_separator=bar", "model.num_classes=3")
    assert load_run(Path("runs/colours")).classes == ["a", "b", "c"]
