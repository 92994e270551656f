"""Folds: each is an ordinary run, together they test every image once, and what one has done is not done again."""

import csv
import io
import json
import re
import shutil
import sys
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.cli import cli
from engine.data import build_data
from engine.data.loader import Normalise
from engine.files import write_json_atomic
from engine.measure.ensembles import evaluate_run, load_folds
from engine.measure.intervals import mean_interval, prediction_interval, wilson
from engine.runs.folder import RunFolder
from engine.runs.folds import of_fold
from engine.runs.restore import load_run
from engine.settings.layers import load_settings
from engine.settings.schema import RunSettings
from engine.study.table import compare
from engine.train import folds
from engine.train.experiment import warn_of_seen
from engine.train.folds import run_folds, summarise
from engine.train.report import print_folds
from engine.train.session import train_folds
from models.settings import UserError, check
from tests.engine.conftest import TINY
from tests.engine.data.conftest import save_image
from tests.quiet import end_log
from tests.results import results_of
from tests.tools.runs import PLAIN
from tests.tools.tables import read_markdown
from tools import compare as compare_tool
from tools import eval as eval_tool

pytestmark = pytest.mark.precision

K = 3
SHORT = {
    "augment": PLAIN,
    "train": {"epochs": 1, "batch_size": 16, "lr": 0.01},
    "log": {"every_steps": 50, "images": 0},
}


def settings_of(split: dict, **sections) -> RunSettings:
    return check(RunSettings, {**TINY, **SHORT, **sections, "split": {"val": 0.1, "part": 0.2, "folds": K, **split}})


def quietly(settings: RunSettings, folder: Path, resume: bool = False) -> dict[int, dict]:
    with redirect_stdout(io.StringIO()):
        found = run_folds(settings, folder, resume=resume)
    end_log()
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("folds") / "tiny"
    quietly(settings_of({}), folder)
    with redirect_stdout(io.StringIO()):
        summarise(settings_of({}), folder)
    return folder


def results(folder: Path) -> list[dict]:
    return [json.loads((folder / f"fold{fold}" / "results.json").read_text()) for fold in range(K)]


def test_the_report_is_what_the_folds_say(finished):
    report, runs = json.loads((finished / "folds.json").read_text()), results(finished)
    accuracies, sizes = [run["test_top1"] for run in runs], [run["test_images"] for run in runs]
    assert [fold["test_top1"] for fold in report["fold"]] == accuracies and sum(sizes) == report["images"] == 1437
    assert (report["mean"], report["std"]) == pytest.approx((mean(accuracies), stdev(accuracies)))
    assert report["interval"] == pytest.approx(mean_interval(accuracies, sizes))
    rows = []
    for fold, run in enumerate(runs):
        with open(finished / f"fold{fold}" / "predictions.csv", newline="") as file:
            mine = list(csv.DictReader(file))
        right = sum(row["label"] == row["predicted"] for row in mine)
        assert run["fold"] == fold and len(mine) == run["test_images"] and right == round(run["test_top1"] * len(mine))
        assert run["test_interval"] == pytest.approx(wilson(right, len(mine)))
        rows += mine
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert report["pooled"]["correct"] == right and report["pooled"]["interval"] == pytest.approx(wilson(right, 1437))
    assert report["unseen"]["interval"] == pytest.approx(prediction_interval(accuracies, sizes, 1000))
    seen = Counter((row["label"], row["predicted"]) for row in rows)
    written = {(true, said): n for true, row in report["confusion"].items() for said, n in row.items()}
    assert written == seen
    for name, accuracy in report["class_accuracy"].items():
        n = sum(count for (true, _), count in seen.items() if true == name)
        assert accuracy == pytest.approx(seen[name, name] / n)
    worst = report["confused"][0]
    a, b = worst["classes"]
    assert (worst["first_as_second"], worst["second_as_first"]) == (seen[a, b], seen[b, a])
    assert report["settings"]["split"]["folds"] == K and report["settings"]["split"]["fold"] is None


def test_every_fold_is_a_run_that_can_be_read_back(finished):
    run = load_run(finished / "fold1")
    assert evaluate_run(run, "test").metrics["top1"] == run.results.test_score
    with pytest.raises(UserError, match="holds 3 folds, .*fold0"):
        load_run(finished)


def test_all_folds_are_evaluated_each_on_its_own_images(finished, tmp_path, monkeypatch, capsys):
    def tell(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eval.py", "--run", str(finished), *args])
        code = cli(eval_tool.main)
        return code, *capsys.readouterr()

    report = json.loads((finished / "folds.json").read_text())
    with redirect_stdout(io.StringIO()) as said:
        print_folds(report, finished)
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
        run = load_run(finished / f"fold{fold}")
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
        (["--run", str(finished / "fold0")], "fold0: is one run, and .*tiny holds folds; give folders of one kind"),
        (["--run", str(finished)], "tiny: given twice"),
        (["--sweep", "merge.r=[0]", "--tta", "flip"], "--sweep: takes a single --run, without --tta"),
    ):
        code, out, err = tell(*args)
        assert code == 2 and out == "" and len(err.splitlines()) == 1 and re.search(words, err), err


def test_several_runs_of_folds_are_evaluated_together(finished, tmp_path, monkeypatch, capsys):
    other = tmp_path / "tiny"  # the same folds, in another folder
    shutil.copytree(finished, other)
    monkeypatch.setattr(sys, "argv", ["eval.py", "--run", str(finished), "--run", str(other)])
    assert cli(eval_tool.main) == 0
    out = capsys.readouterr().out
    report = json.loads((finished / "folds.json").read_text())
    for fold, run in enumerate(results(finished)):
        assert f"{finished}/fold{fold} + {other}/fold{fold}, best.pt on 479" in out
        assert f"top1 {100 * run['test_top1']:.2f} %" in out
    assert f"\nmean            {100 * report['mean']:.2f} ± " in out


def test_another_fold_than_the_runs_own_is_no_test(finished, caplog):
    for override in ("split.fold=2", "split.test_seed=1", "seed=3"):
        caplog.clear()
        load_run(finished / "fold1", [override])
        assert "the model has seen images that test it now" in caplog.text
    caplog.clear()
    load_run(finished / "fold1", ["split.fold=1", "split.part=1"])
    assert "has seen" not in caplog.text


def test_pictures_and_events(finished):
    events = EventAccumulator(str(finished)).Reload().Tags()
    assert {"folds/confusion", "folds/confused"} <= set(events["images"])
    assert {"folds/mean", "folds/std", "fold/test_top1"} <= set(events["scalars"])
    assert "test/confusion" in EventAccumulator(str(finished / "fold0")).Reload().Tags()["images"]
    for picture in (finished / "confusion.png", finished / "confused.png", finished / "fold2" / "confusion.png"):
        with Image.open(picture) as image:
            assert len(np.unique(np.asarray(image))) > 10


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "tiny"))


def test_a_fold_by_itself_is_the_same_and_the_last_one_reports(finished, copied, capsys):
    """As if three processes ran them, out of order: two are still missing, then none."""
    shutil.rmtree(copied / "fold1")
    (copied / "fold0" / "results.json").unlink()  # stopped in its test
    old, fold2 = (copied / "folds.json").read_text(), stamps(copied / "fold2")
    train_folds(settings_of({"fold": 1}), RunFolder(copied), resume=False)
    said = capsys.readouterr().out
    assert "95 % interval   " in said
    assert f"folds           0 not finished; all of them: tools/train.py --resume {copied}\n" in said
    assert not (copied / "folds.json").exists()  # it was of another fold 1
    train_folds(settings_of({}), RunFolder(copied), resume=True)
    said = capsys.readouterr().out
    same = ("test_top1", "test_loss", "test_images", "data_sha256", "best_step", "class_accuracy")
    for one, other in zip(results(finished), results(copied)):
        assert {key: one[key] for key in same} == {key: other[key] for key in same}
    old, report = json.loads(old), json.loads((copied / "folds.json").read_text())
    for key in ("mean", "std", "interval", "pooled", "unseen", "confusion", "confused"):
        assert old[key] == report[key]
    assert stamps(copied / "fold2") == fold2  # passed over
    titles, *rows = read_markdown(said)
    assert titles[:3] == ["fold", "test accuracy, %", "95 % interval"] and [row[0] for row in rows] == ["0", "1", "2"]
    for words in (
        f"mean            {100 * report['mean']:.2f} ± ",
        "1,000 new images expect ",
        "worst classes   ",
        "most confused   ",
        "confused.png",
    ):
        assert words in said


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}


def test_other_settings_are_refused(copied):
    with pytest.raises(UserError, match="train.lr = 0.5: the run was begun with 0.01, in .*all folds have the same"):
        run_folds(settings_of({}, train={**SHORT["train"], "lr": 0.5}), copied, resume=True)
    with pytest.raises(UserError, match="train.epochs = 2: the run was begun with 1, in .*all folds have the same"):
        run_folds(settings_of({}, train={**SHORT["train"], "epochs": 2}), copied, resume=True)
    with pytest.raises(UserError, match="split.folds = 4: the run was begun with 3"):
        run_folds(settings_of({"folds": 4, "fold": 3}), copied)
    (copied / "folds.json").unlink()
    file = copied / "fold2" / "settings.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 7", 1))
    with pytest.raises(UserError, match="seed = 7|seed = 0: .*fold2; delete it"):
        summarise(settings_of({}), copied)


def test_folders_that_hold_something(copied, tmp_path):
    with pytest.raises(UserError, match="holds files already .*--resume"):
        run_folds(settings_of({}), copied)
    with pytest.raises(UserError, match="fold1: holds files already; .*--resume"):
        run_folds(settings_of({"fold": 1}), copied)
    with pytest.raises(UserError, match="no run to resume here"):
        run_folds(settings_of({}), tmp_path / "none", resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for split in ({}, {"fold": 0}):
        with pytest.raises(UserError, match=r"mine: holds files already \(thesis.tex\)"):
            run_folds(settings_of(split), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with RunFolder(copied / "fold1").lock(resume=True), pytest.raises(UserError, match="fold1: in use by process"):
        run_folds(settings_of({"fold": 1}), copied, resume=True)


def test_a_mistake_leaves_nothing_in_the_way(tmp_path, monkeypatch):
    """The corrected command runs, although another setting was tried first."""
    folder = tmp_path / "tiny"
    with redirect_stdout(io.StringIO()), pytest.raises(UserError, match="train.batch_size = 5000"):
        run_folds(settings_of({}, train={**SHORT["train"], "batch_size": 5000}), folder)
    monkeypatch.setattr(folds, "run_experiment", lambda settings, path, resume, begin: begin(settings) or {})
    assert list(run_folds(settings_of({}), folder)) == [0, 1, 2]
    assert load_settings(str(folder / "settings.yaml")) == settings_of({})


def test_a_signal_in_a_fold_ends_all(tmp_path, monkeypatch, capsys):
    ran = []

    def stopped(settings, path, resume, begin):
        ran.append(settings.split.fold)
        if len(ran) == 2:
            raise SystemExit(143)

    monkeypatch.setattr(folds, "run_experiment", stopped)
    with pytest.raises(SystemExit, match="143"):
        run_folds(settings_of({}), tmp_path / "tiny")
    assert ran == [0, 1]
    assert f"all folds go on with: tools/train.py --resume {tmp_path / 'tiny'}" in capsys.readouterr().out
    RunFolder(tmp_path / "tiny" / "fold1").lock(resume=True).close()  # nothing is locked


@pytest.mark.parametrize("text", ["", "{", "\ufffd"])
def test_a_damaged_report_is_written_again(copied, text):
    old = json.loads((copied / "folds.json").read_text())
    (copied / "folds.json").write_text(text)
    with redirect_stdout(io.StringIO()):
        again = summarise(settings_of({}), copied)
    assert {**again, "finished": 0} == {**old, "finished": 0}


def test_data_that_changed_since_are_refused(copied):
    (copied / "folds.json").unlink()
    file = copied / "fold1" / "predictions.csv"
    head, first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([head, *rest, first]) + "\n")
    with redirect_stdout(io.StringIO()), pytest.raises(UserError, match="fold1: its test images differ from those"):
        summarise(settings_of({}), copied)


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


def test_weights_that_have_seen_the_test_images_are_said(finished, tmp_path, caplog):
    model, words = {**TINY["model"], "weights": str(finished / "fold1")}, "has seen images that test this run"

    def said(**split):
        caplog.clear()
        warn_of_seen(settings_of(split, model=model))
        return words in caplog.text

    assert said(folds=None) and said(fold=1, test_seed=1) and not said(fold=1)
    quietly(settings_of({"fold": 0}, model=model), tmp_path / "runs")
    assert words in (tmp_path / "runs" / "fold0" / "log.txt").read_text()


def test_folds_are_one_row_of_a_comparison(finished, copied, capsys):
    (row,) = compare([finished])
    accuracies = [100 * run["test_top1"] for run in results(finished)]
    assert (row.name, row.seeds, row.folds) == ("tiny", [0], [0, 1, 2])
    assert 100 * row.value("test_score") == pytest.approx(mean(accuracies))
    assert 100 * row.spread("test_score") == pytest.approx(stdev(accuracies))
    compare_tool.main([str(finished)])
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].split("|")]
    assert cells[1:4] == ["tiny", "3 folds", f"{mean(accuracies):.2f} ± {stdev(accuracies):.2f}"]
    with pytest.raises(UserError, match="fold0: seed 0, fold 0, of this kind is given twice"):
        compare([finished, finished / "fold0"])
    (copied / "fold2" / "results.json").unlink()
    with pytest.raises(UserError, match="fold2: this fold is not finished; finish it with --resume .*tiny"):
        compare([copied])
    assert compare([copied / "fold0", copied / "fold1"])[0].folds == [0, 1]


def test_many_labels_have_a_mean_and_no_matrix(tmp_path):
    runs = [
        results_of(metric="map", test_metrics={"map": score, "f1": 0.5}, test_images=10, seconds=2.0, data_sha256="")
        for score in (0.5, 0.6, 0.7)
    ]
    report = folds.together(settings_of({}), runs)
    assert report["mean"] == pytest.approx(0.6) and report["pooled"] is None and report["unseen"] is None
    write_json_atomic(tmp_path / "report.json", report)
    with redirect_stdout(io.StringIO()) as said:
        print_folds(report, tmp_path)
    assert "confusion.png" not in said.getvalue()
    titles, *rows = read_markdown(said.getvalue())
    assert titles == ["fold", "test mAP, %", "95 % interval", "images", "training, s"]
    assert rows == [[str(i), score, "-", "10", "2"] for i, score in enumerate(("50.00", "60.00", "70.00"))]


def test_validation_images_are_of_the_run_and_test_images_of_the_folds():
    one, other = (build_data(s.data, s.split, seed) for seed in (0, 1) for s in [settings_of({"fold": 1})])
    assert one.test.pixels().tobytes() == other.test.pixels().tobytes()
    assert one.val.pixels().tobytes() != other.val.pixels().tobytes()
