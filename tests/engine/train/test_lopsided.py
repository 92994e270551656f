"""Classes of unequal size: what a run says of them, and that weights and balanced draws help, from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.measure.evaluate import Evaluation
from engine.runs.checkpoints import checkpoint
from engine.runs.folder import RunFolder
from engine.settings.schema import RunSettings
from engine.study.compare import outputs
from engine.study.compare.reading import read
from engine.train.experiment import run_experiment
from engine.train.folds import run_folds
from engine.train.folds_report import summarise
from engine.train.loop.validation import Validation
from engine.train.report import print_folds, print_run
from models.settings import UserError, check
from tests.engine.data.conftest import save_image
from tests.engine.train.loop.test_trainer import run_until
from tests.tools.colours import save_colour
from tools import data as data_tool
from tools import eval as eval_tool

pytestmark = pytest.mark.usefixtures("no_pictures")

MODEL = {"name": "vit", "img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 2}
REMEDIES = {
    "weights": {"class_weights": "balanced"},
    "given": {"class_weights": {"mole": 6.0}},
    "draws": {"sampling": "balanced"},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """38 images of one class and 6 of another, of colours that differ less than their noise."""
    folder = tmp_path_factory.mktemp("lopsided") / "images"
    for i in range(38):
        save_colour(folder / "skin" / f"{i}.png", (130, 120, 110), i, (8, 8))
    for i in range(6):
        save_colour(folder / "mole" / f"{i}.png", (110, 120, 130), 100 + i, (8, 8))
    return folder


def settings_of(images: Path, train: dict | None = None, **sections) -> RunSettings:
    tree = {
        "name": "lopsided",
        "threads": 1,
        "device": "cpu",
        "model": MODEL,
        "data": {"name": "folder", "path": str(images), "size": 8},
        "split": {"test": 0.34, "val": 0.0, **sections.pop("split", {})},
        "train": {"epochs": 4, "batch_size": 7, "precision": "fp32", **(train or {})},
        "log": {"every_steps": 50, "images": 0},
        **sections,
    }
    return check(RunSettings, tree)


@pytest.fixture(scope="module")
def plain(images, tmp_path_factory) -> Path:
    """A run that learns to say nothing but the common class."""
    folder = tmp_path_factory.mktemp("plain") / "lopsided"
    folder.mkdir()
    run_experiment(settings_of(images), folder)
    return folder


def test_accuracy_hides_a_class_that_balanced_accuracy_shows(plain, capsys):
    results = RunFolder(plain).read_results()
    assert results.test_score == pytest.approx(13 / 15) and results.test_metrics["balanced_accuracy"] == 0.5
    written = json.loads((plain / "results.json").read_text())
    assert written["test_balanced_accuracy"] == 0.5
    assert (written["worst_class"], written["worst_class_score"], written["worst_class_images"]) == ("mole", 0.0, 2)
    assert written["class_images"] == {"mole": 2, "skin": 13}
    assert written["train_class_images"] == {"mole": 4, "skin": 25}
    print_run(results, plain)
    said = capsys.readouterr().out
    assert "test accuracy   86.67 %  (top-5 100.00 %, 15 images)\n" in said
    assert "balanced        50.00 %  (balanced accuracy: the mean over 2 classes of 2 to 13 images)\n" in said
    assert "worst class     mole 0.00 %  (2 images)\n" in said
    log = (plain / "log.txt").read_text()
    assert log.count("classes are unequal: 4 to 25 training images; look at balanced accuracy") == 1


def test_it_is_said_again_by_evaluation_and_comparison(plain, capsys, tmp_path):
    eval_tool.main(["--run", str(plain), "--json", str(tmp_path / "a.json")])
    said = capsys.readouterr().out
    assert "balanced_accuracy 50.00 %" in said and "worst class     mole 0.00 %  (2 images)\n" in said
    (part,) = json.loads((tmp_path / "a.json").read_text())["evaluated"]
    assert (part["balanced_accuracy"], part["worst_class"], part["class_images"]["mole"]) == (0.5, "mole", 2)
    columns, (cells,) = outputs.table(read([plain]).points)
    row = dict(zip([column.title for column in columns], cells, strict=True))
    assert (row["balanced, %"], row["worst class"], row["worst class, %"]) == ("50.00", "mole", "0.00")


def test_unequal_training_images_suffice(images, tmp_path, capsys):
    """The validation and test images of a table are of equal numbers: every report says what training is like."""
    parts = {0: "test", 1: "test", 2: "val", 3: "val"}
    rows = [
        f"{name}/{i}.png,{name},{parts.get(i, 'train')}" for name, n in (("skin", 38), ("mole", 6)) for i in range(n)
    ]
    (tmp_path / "a.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    data = {"name": "csv", "path": str(tmp_path / "a.csv"), "images": str(images), "size": 8}
    (tmp_path / "run").mkdir()
    results = run_experiment(settings_of(images, {"epochs": 1, "lr": 1e-5}, data=data, split={}), tmp_path / "run")
    assert results.class_images == {"mole": 2, "skin": 2} and results.train_class_images == {"mole": 2, "skin": 34}
    (epoch,) = [line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if "epoch 1/1" in line]
    assert "balanced_accuracy 0." in epoch
    print_run(results, tmp_path / "run")
    file = tmp_path / "a.json"
    eval_tool.main(
        ["--run", str(tmp_path / "run"), "merge.method=tome", "--sweep", "merge.r=[0, 1]", "--json", str(file)]
    )
    said, rows = capsys.readouterr().out, json.loads(file.read_text())
    balanced, worst = 100 * results.test_metrics["balanced_accuracy"], results.worst_class
    assert f"balanced        {balanced:.2f} %" in said and "worst class     " in said
    assert "| balanced accuracy, % | worst class, % |" in said
    assert f"{balanced:.2f} | {worst} {100 * results.worst_class_score:.2f} |".replace(" ", "") in said.replace(" ", "")
    assert [row["class_images"] for row in rows] == [{"mole": 2, "skin": 2}] * 2
    assert (rows[0]["worst_class"], rows[0]["class_accuracy"]) == (worst, results.class_accuracy)


def test_the_preflight_says_it_before_training(images, capsys):
    data_tool.main(["check", str(images)])
    assert "note: classes are unequal: 6 to 38 training images; look at balanced accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("how", REMEDIES)
def test_weights_and_balanced_draws_raise_the_worst_class(how, images, folder):
    results = run_experiment(settings_of(images, REMEDIES[how]), folder)
    assert results.class_accuracy["mole"] == 1.0 and results.worst_class_score > 0.8
    assert results.test_metrics["balanced_accuracy"] > 0.9
    log = (folder / "log.txt").read_text()
    assert "classes are unequal: 4 to 25 training images; train." in log and "look at" not in log


@pytest.mark.parametrize("how", REMEDIES)
def test_resumed_from_any_step_it_ends_the_same(how, images, tmp_path, monkeypatch):
    """Also with several micro-batches in a step, and augmentation."""
    settings = settings_of(
        images,
        {**REMEDIES[how], "batch_size": 3, "accumulate": 2, "label_smoothing": 0.1},
        augment={"flip": True, "scale": 0.5, "mixup": 0.2},
        checkpoint={"every_steps": 3},
        log={"every_steps": 1, "images": 0},
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    run_experiment(settings, whole)
    run_until(monkeypatch, 6, settings, stopped)
    run_experiment(settings, stopped, resume=True)
    one, other = (checkpoint.load(folder / "last.pt")["model"] for folder in (whole, stopped))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_folds_pool_the_classes(images, tmp_path, capsys):
    settings = settings_of(images, {"epochs": 1, "lr": 1e-5}, split={"folds": 2, "val": 0.0})
    run_folds(settings, tmp_path / "folds")
    print_folds(summarise(settings, tmp_path / "folds"), tmp_path / "folds")
    report = json.loads((tmp_path / "folds" / "folds.json").read_text())
    pooled = report["class_accuracy"]
    assert report["class_images"] == {"mole": 6, "skin": 38} and report["unequal"]
    assert report["balanced_accuracy"] == pytest.approx(sum(pooled.values()) / 2)
    worst = min(pooled, key=pooled.__getitem__)
    assert (report["worst_class"], report["worst_class_score"]) == (worst, pytest.approx(pooled[worst]))
    said = capsys.readouterr().out
    assert f"balanced        {100 * report['balanced_accuracy']:.2f} %" in said
    assert f"worst classes   {worst} {100 * pooled[worst]:.0f} %" in said and "| balanced, % |" in said
    assert "worst class " not in said, "it is the first of the worst classes"
    eval_tool.main(["--run", str(tmp_path / "folds")])
    assert f"balanced        {100 * report['balanced_accuracy']:.2f} %" in capsys.readouterr().out


def test_the_best_epoch_is_selected_by_the_metric_that_is_asked_for(images, tmp_path, monkeypatch):
    """Accuracy is highest while only the common class is said."""
    script = [{"top1": 0.95, "balanced_accuracy": 0.5}, {"top1": 0.9, "balanced_accuracy": 0.8}]
    for select, step, score in (("top1", 4, 0.95), ("balanced_accuracy", 8, 0.8), (None, 4, 0.95)):
        folder, scores = tmp_path / str(select), iter(script)
        folder.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(Validation, "run", lambda *_, scores=scores: Evaluation(n=9, loss=1.0, metrics=next(scores)))
            settings = settings_of(images, {"select": select, "epochs": 2, "batch_size": 5}, split={"val": 0.3})
            results = run_experiment(settings, folder)
        assert (results.best_step, results.val_score, results.selected_by) == (step, score, select)
        assert checkpoint.load(folder / "best.pt")["step"] == step
        assert json.loads((folder / "results.json").read_text())[f"val_{select or 'top1'}"] == score
        assert RunFolder(folder).read_results() == results


@pytest.mark.parametrize(
    ("select", "val", "says"),
    [
        (
            "balanced_accuracy",
            0.0,
            "balanced_accuracy: there are no validation images (split.val = 0); the last epoch is used",
        ),
        ("top5", 0.3, "top5: all 2 classes are among the first 5, so that the first epoch is kept"),
        ("balanced_accuracy", 0.3, ""),
    ],
)
def test_a_metric_that_selects_nothing_is_said(select, val, says, images, folder):
    run_experiment(settings_of(images, {"select": select, "epochs": 2, "batch_size": 5}, split={"val": val}), folder)
    log = (folder / "log.txt").read_text()
    assert f"train.select = {says}" in log if says else "train.select" not in log


def test_without_test_images_the_validation_images_show_the_worst_class(images, folder, capsys):
    results = run_experiment(settings_of(images, {"epochs": 1, "lr": 1e-5}, split={"test": 0.0, "val": 0.3}), folder)
    assert results.classes_of == "val" and results.no_test == "split.test = 0"
    print_run(results, folder)
    said = capsys.readouterr().out
    assert "test accuracy   not measured: no test images (split.test = 0)\n" in said
    assert f"worst class     {results.worst_class} {100 * results.worst_class_score:.2f} %  (" in said
    columns, _ = outputs.table(read([folder]).points)
    assert "worst class, %" not in [column.title for column in columns], "not of test images"


def test_the_true_reason_for_no_test_images_is_said(tmp_path, capsys):
    """The share is 0.2, and no class can spare an image of its only one."""
    for name in "abcd":
        save_image(tmp_path / "images" / name / "only.png", ord(name), (8, 8))
    settings = settings_of(
        tmp_path / "images", {"batch_size": 2}, split={"test": 0.2}, model={**MODEL, "num_classes": 4}
    )
    (tmp_path / "run").mkdir()
    print_run(run_experiment(settings, tmp_path / "run"), tmp_path / "run")
    reason = "split.test = 0.2, but no class has an image to spare"
    said, log = capsys.readouterr().out, (tmp_path / "run" / "log.txt").read_text()
    assert f"not measured: no test images ({reason})\n" in said and f"{reason}: no test images, " in log
    assert "split.test = 0)" not in said and "split.test = 0:" not in log
    with pytest.raises(UserError, match=rf"--split test: the run has no such images \({reason}\); use another"):
        eval_tool.main(["--run", str(tmp_path / "run")])


def test_settings_that_do_not_go_together():
    base = {"name": "a", "model": MODEL, "data": {"name": "csv", "path": "a.csv", "size": 8, "labels": "many"}}
    for train, message in (
        ({"sampling": "balanced"}, r"train.sampling = 'balanced': only where each image has one class"),
        ({"select": "top1"}, r"train.select = 'top1': not a metric of these labels; known: map, f1"),
    ):
        with pytest.raises(UserError, match=message):
            check(RunSettings, {**base, "train": train})
    with pytest.raises(UserError, match=r"train.class_weights: not beside train.sampling = balanced"):
        check(RunSettings, {**base, "train": {"class_weights": [1.0], "sampling": "balanced"}})
