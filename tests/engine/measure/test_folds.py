"""Folds are evaluated again, each on the images that tested it, alone and together with others."""

import io
import json
import re
import shutil
import sys
from contextlib import redirect_stdout
from statistics import mean, stdev

import pytest
import torch

from engine.cli import cli
from engine.data.loading.loader import Normalise
from engine.measure.ensembles import load_folds
from engine.runs.folder import RunFolder
from engine.runs.folds import of_fold
from engine.runs.restore import load_run
from engine.train.folds_report import summarise
from engine.train.report import print_folds
from models.settings import UserError
from tests.engine.data.conftest import save_image
from tests.engine.fold_runs import K, quietly, results, settings_of
from tools import eval as eval_tool

pytestmark = pytest.mark.precision


def test_all_folds_are_evaluated_each_on_its_own_images(finished_folds, tmp_path, monkeypatch, capsys):
    def tell(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eval.py", "--run", str(finished_folds), *args])
        code = cli(eval_tool.main)
        return code, *capsys.readouterr()

    report = json.loads((finished_folds / "folds.json").read_text())
    with redirect_stdout(io.StringIO()) as said:
        print_folds(RunFolder(finished_folds).read_folds_report(), finished_folds)
    code, out, err = tell()
    assert code == 0 and err == "" and out.count(": the same\n") == K
    assert out.splitlines()[-3:] == [
        line for line in said.getvalue().splitlines() if line.startswith(("mean ", "all images ", "1,000 new images"))
    ]

    drawn = []
    monkeypatch.setattr("engine.figures.confusion.confusion_figure", lambda *args: drawn.append(args))
    monkeypatch.setattr("engine.figures.drawing.save_figure", lambda figure, path: drawn.append(path))
    code, out, err = tell("--tta", "flip", "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"))
    scores = []
    for fold in range(K):
        run = load_run(finished_folds / f"fold{fold}")
        images = run.data.test.read(torch.arange(len(run.data.test)))
        views = [Normalise(run.data.mean, run.data.std)(view) for view in (images, images.flip(-1))]
        with torch.inference_mode():
            both = sum(run.model.eval()(view).softmax(1) for view in views)
        scores.append((both.argmax(1) == run.data.test.labels).double().mean().item())
        said = f"fold{fold}, best.pt on 479 test images, each and its mirror image: top1 {100 * scores[-1]:.2f} %"
        assert said in out
    assert code == 0 and f"\nmean            {100 * mean(scores):.2f} ± {100 * stdev(scores):.2f} %" in out
    assert "the same" not in out and mean(scores) != pytest.approx(report["mean"])
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["tta"] == "flip" and written["mean"] == pytest.approx(mean(scores)) and written["unseen"]
    assert [fold["top1"] for fold in written["evaluated"]] == pytest.approx(scores)
    (matrix, classes, title), path = drawn
    pooled = written["pooled"]
    assert matrix.sum() == 1437 and matrix.trace() == pooled["correct"] and len(classes) == 10
    assert title == f"tiny: {100 * pooled['accuracy']:.2f} % of 1437 test images" and path == tmp_path / "a.png"

    code, out, _ = tell("merge.r=0")
    assert code == 0 and out.count("merging differs from training") == K and "the same" not in out
    code, out, _ = tell("--split", "val")
    assert code == 0 and "\nmean " in out and "new images" not in out
    for args, words in (
        (["split.test_seed=1"], "split: each fold is tested on its own images; .*fold0"),
        (["--sweep", "merge.r=[0]"], "holds 3 folds, each a run of its own; give one of them, such as .*fold0"),
        (
            ["--run", str(finished_folds / "fold0")],
            "fold0: is one run, and .*tiny holds folds; give folders of one kind",
        ),
        (["--run", str(finished_folds)], "tiny: given twice"),
        (["--sweep", "merge.r=[0]", "--tta", "flip"], "--sweep: takes a single --run, without --tta"),
    ):
        code, out, err = tell(*args)
        assert code == 2 and out == "" and len(err.splitlines()) == 1 and re.search(words, err), err


def test_several_runs_of_folds_are_evaluated_together(finished_folds, tmp_path, monkeypatch, capsys):
    other = tmp_path / "tiny"  # the same folds, in another folder
    shutil.copytree(finished_folds, other)
    monkeypatch.setattr(sys, "argv", ["eval.py", "--run", str(finished_folds), "--run", str(other)])
    assert cli(eval_tool.main) == 0
    out = capsys.readouterr().out
    report = json.loads((finished_folds / "folds.json").read_text())
    for fold, run in enumerate(results(finished_folds)):
        assert f"{finished_folds}/fold{fold} + {other}/fold{fold}, best.pt on 479" in out
        assert f"top1 {100 * run['test_top1']:.2f} %" in out
    assert f"\nmean            {100 * report['mean']:.2f} ± " in out


def test_another_fold_than_the_runs_own_is_no_test(finished_folds, caplog):
    for override in ("split.fold=2", "split.test_seed=1", "seed=3"):
        caplog.clear()
        load_run(finished_folds / "fold1", [override])
        assert "the model has seen images that test it now" in caplog.text
    caplog.clear()
    load_run(finished_folds / "fold1", ["split.fold=1", "split.part=1"])
    assert "has seen" not in caplog.text


def test_folds_are_evaluated_on_what_tested_them_alone(tmp_path, caplog):
    for i in range(36):
        save_image(tmp_path / "images" / "abc"[i % 3] / f"{i}.png", i, (8, 8))
    model = {"name": "lenet5", "num_classes": 3, "img_size": 8, "in_chans": 3, "padding": 2}
    data = {"name": "folder", "path": str(tmp_path / "images"), "size": 8}
    quietly(settings_of({"part": 1, "val": 0}, data=data, model=model), tmp_path / "runs")
    (tmp_path / "images").rename(tmp_path / "moved")
    moved = [f"data.path={tmp_path / 'moved'}"]
    assert [len(run.data.test) for _, run in load_folds(tmp_path / "runs", moved)] == [12] * K
    assert "WARNING" not in caplog.text
    save_image(tmp_path / "moved" / "b" / "4.png", 100, (8, 8))  # other pixels
    assert len(list(load_folds(tmp_path / "runs", moved))) == K
    assert caplog.text.count("was trained on other images, labels or pixels than those read") == K
    save_image(tmp_path / "moved" / "b" / "new.png", 99, (8, 8))
    with pytest.raises(UserError, match="fold.: its test images differ from those that the data has now"):
        list(load_folds(tmp_path / "runs", moved))
    (tmp_path / "runs" / "fold1" / "settings.yaml").unlink()
    with pytest.raises(UserError, match="fold1: has no settings.yaml; delete it, then tools/train.py --resume"):
        list(load_folds(tmp_path / "runs", moved))


def test_images_that_changed_their_fold_since_are_refused(tmp_path):
    """Fold 0 was run before an image was deleted: it has as many of each class, but others."""
    for i in range(36):
        save_image(tmp_path / "images" / "abc"[i % 3] / f"{i}.png", i, (8, 8))
    split = {"part": 1, "val": 0}
    model = {"name": "lenet5", "num_classes": 3, "img_size": 8, "in_chans": 3, "padding": 2}
    settings = settings_of(split, data={"name": "folder", "path": str(tmp_path / "images"), "size": 8}, model=model)
    quietly(of_fold(settings, 0), tmp_path / "runs")
    (tmp_path / "images" / "a" / "0.png").unlink()
    quietly(settings, tmp_path / "runs", resume=True)
    with redirect_stdout(io.StringIO()) as said, pytest.raises(UserError, match="fold0: its test images differ"):
        summarise(settings, tmp_path / "runs")
    assert "fold0: was run on other labels or pixels" in said.getvalue() and "fold1: was" not in said.getvalue()
