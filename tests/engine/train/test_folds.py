"""Folds: each is an ordinary run, together they test every image once, and a finished fold is not trained again."""

import csv
import io
import json
import shutil
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.data import build_data
from engine.measure.ensembles import evaluate_run
from engine.measure.intervals import mean_interval, prediction_interval, wilson
from engine.runs.folder import RunFolder
from engine.runs.restore import load_run
from engine.settings.layers import load_settings
from engine.study.table import compare
from engine.train import folds
from engine.train.experiment import warn_of_seen
from engine.train.folds import run_folds
from engine.train.folds_report import summarise, together
from engine.train.loop.trainer import Trainer
from engine.train.report import print_folds
from engine.train.session import train_folds
from models.settings import UserError
from tests.engine.conftest import TINY
from tests.engine.fold_runs import SHORT, K, quietly, results, settings_of
from tests.results import results_of
from tests.tools.tables import read_markdown
from tools import compare as compare_tool

pytestmark = pytest.mark.precision


def test_the_report_is_what_the_folds_say(finished_folds):
    report, runs = json.loads((finished_folds / "folds.json").read_text()), results(finished_folds)
    accuracies, sizes = [run["test_top1"] for run in runs], [run["test_images"] for run in runs]
    assert [fold["test_top1"] for fold in report["fold"]] == accuracies and sum(sizes) == report["images"] == 1437
    assert (report["mean"], report["std"]) == pytest.approx((mean(accuracies), stdev(accuracies)))
    assert report["interval"] == pytest.approx(mean_interval(accuracies, sizes))
    rows = []
    for fold, run in enumerate(runs):
        with open(finished_folds / f"fold{fold}" / "predictions.csv", newline="") as file:
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


def test_every_fold_is_a_run_that_can_be_read_back(finished_folds):
    run = load_run(finished_folds / "fold1")
    assert evaluate_run(run, "test").metrics["top1"] == run.results.test_score
    with pytest.raises(UserError, match="holds 3 folds, .*fold0"):
        load_run(finished_folds)


def test_pictures_and_events(finished_folds):
    board = EventAccumulator(str(finished_folds)).Reload()
    events = board.Tags()
    assert {"folds/confusion", "folds/confused"} <= set(events["images"])
    assert events["scalars"] == [], "charts with one dot"
    (card,) = board.Tensors("folds")
    report = json.loads((finished_folds / "folds.json").read_text())
    scores = [*(fold["test_top1"] for fold in report["fold"]), report["mean"], report["std"]]
    said = read_markdown(card.tensor_proto.string_val[0].decode())[1:]
    assert [row[1] for row in said] == [f"{100 * score:.2f}" for score in scores]
    assert "test/confusion" in EventAccumulator(str(finished_folds / "fold0")).Reload().Tags()["images"]
    for picture in (
        finished_folds / "confusion.png",
        finished_folds / "confused.png",
        finished_folds / "fold2" / "confusion.png",
    ):
        with Image.open(picture) as image:
            assert len(np.unique(np.asarray(image))) > 10


def test_a_fold_by_itself_is_the_same_and_the_last_one_reports(finished_folds, copied_folds, capsys):
    """As if three processes ran them, out of order: two are still missing, then none."""
    shutil.rmtree(copied_folds / "fold1")
    (copied_folds / "fold0" / "results.json").unlink()  # stopped in its test
    old, fold2 = (copied_folds / "folds.json").read_text(), stamps(copied_folds / "fold2")
    train_folds(settings_of({"fold": 1}), RunFolder(copied_folds), resume=False)
    said = capsys.readouterr().out
    assert "95 % interval   " in said
    assert f"folds           0 not finished; to finish them: tools/train.py --resume {copied_folds}\n" in said
    assert not (copied_folds / "folds.json").exists()  # it was of another fold 1
    train_folds(settings_of({}), RunFolder(copied_folds), resume=True)
    said = capsys.readouterr().out
    same = ("test_top1", "test_loss", "test_images", "data_sha256", "best_step", "class_accuracy")
    for one, other in zip(results(finished_folds), results(copied_folds)):
        assert {key: one[key] for key in same} == {key: other[key] for key in same}
    old, report = json.loads(old), json.loads((copied_folds / "folds.json").read_text())
    for key in ("mean", "std", "interval", "pooled", "unseen", "confusion", "confused"):
        assert old[key] == report[key]
    assert stamps(copied_folds / "fold2") == fold2  # passed over
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


def test_other_settings_are_refused(copied_folds):
    with pytest.raises(UserError, match="train.lr = 0.5: the run was started with 0.01, in .*all folds have the same"):
        run_folds(settings_of({}, train={**SHORT["train"], "lr": 0.5}), copied_folds, resume=True)
    with pytest.raises(UserError, match="train.epochs = 2: the run was started with 1, in .*all folds have the same"):
        run_folds(settings_of({"fold": 1}, train={**SHORT["train"], "epochs": 2}), copied_folds)
    with pytest.raises(UserError, match="split.folds = 4: the run was started with 3"):
        run_folds(settings_of({"folds": 4, "fold": 3}), copied_folds)
    (copied_folds / "folds.json").unlink()
    file = copied_folds / "fold2" / "settings.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 7", 1))
    with pytest.raises(UserError, match="seed = 7|seed = 0: .*fold2; delete it"):
        summarise(settings_of({}), copied_folds)


def test_all_folds_go_on_for_more_epochs(copied_folds, monkeypatch, capsys):
    """Stopped in the second fold and resumed without giving the epochs again: every fold trains for longer."""
    longer, old = settings_of({}, train={**SHORT["train"], "epochs": 2}), results(copied_folds)
    end_epoch, scores = Trainer._end_epoch, []

    def stopped_in_the_second_fold(self, epoch):
        scores.append(end_epoch(self, epoch))
        if len(scores) == 2:
            raise SystemExit(143)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Trainer, "_end_epoch", stopped_in_the_second_fold)
        train_folds(longer, RunFolder(copied_folds), resume=True)
    assert f"to resume all folds: tools/train.py --resume {copied_folds}\n" in capsys.readouterr().out
    run = RunFolder(copied_folds)
    assert run.settings.train.epochs == 2 and run.unfinished_folds() == [1, 2] and not run.folds_file.exists()
    with pytest.raises(UserError, match="fold1: this fold is not finished"):
        compare([copied_folds])
    with pytest.raises(UserError, match="train.epochs = 1: the run was started with 2"):
        run_folds(settings_of({}), copied_folds, resume=True)
    train_folds(run.settings, run, resume=True)
    new, report = results(copied_folds), json.loads(run.folds_file.read_text())
    assert [result["steps"] for result in new] == [2 * result["steps"] for result in old]
    assert report["epochs"] == 2 and [fold["test_top1"] for fold in report["fold"]] == [r["test_top1"] for r in new]
    assert "training, s" in capsys.readouterr().out


def test_folds_go_on_only_if_all_can(copied_folds):
    """One that cannot is refused before the first one is trained."""
    (copied_folds / "fold2" / "last.pt").unlink()
    before = stamps(copied_folds / "fold0")
    with pytest.raises(UserError, match="train.epochs = 2, .*fold2 has no last.pt to continue from"):
        run_folds(settings_of({}, train={**SHORT["train"], "epochs": 2}), copied_folds, resume=True)
    assert stamps(copied_folds / "fold0") == before and (copied_folds / "folds.json").exists()


def test_folders_that_hold_something(copied_folds, tmp_path):
    with pytest.raises(UserError, match="holds files already .*--resume"):
        run_folds(settings_of({}), copied_folds)
    with pytest.raises(UserError, match="fold1: holds files already; .*--resume"):
        run_folds(settings_of({"fold": 1}), copied_folds)
    with pytest.raises(UserError, match="no run to resume here"):
        run_folds(settings_of({}), tmp_path / "none", resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for split in ({}, {"fold": 0}):
        with pytest.raises(UserError, match=r"mine: holds files already \(thesis.tex\)"):
            run_folds(settings_of(split), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with (
        RunFolder(copied_folds / "fold1").lock(resume=True),
        pytest.raises(UserError, match="fold1: in use by process"),
    ):
        run_folds(settings_of({"fold": 1}), copied_folds, resume=True)


def test_a_mistake_leaves_nothing_in_the_way(tmp_path, monkeypatch):
    """The corrected command runs, although another setting was tried first."""
    folder = tmp_path / "tiny"
    with redirect_stdout(io.StringIO()), pytest.raises(UserError, match="train.batch_size = 5000"):
        run_folds(settings_of({}, train={**SHORT["train"], "batch_size": 5000}), folder)
    monkeypatch.setattr(folds, "run_experiment", lambda settings, path, begin, **options: begin(settings) or {})
    assert list(run_folds(settings_of({}), folder)) == [0, 1, 2]
    assert load_settings(str(folder / "settings.yaml")) == settings_of({})


def test_a_signal_in_a_fold_ends_all(tmp_path, monkeypatch, capsys):
    ran = []

    def stopped(settings, path, **options):
        ran.append(settings.split.fold)
        if len(ran) == 2:
            raise SystemExit(143)

    monkeypatch.setattr(folds, "run_experiment", stopped)
    with pytest.raises(SystemExit, match="143"):
        run_folds(settings_of({}), tmp_path / "tiny")
    assert ran == [0, 1]
    assert f"to resume all folds: tools/train.py --resume {tmp_path / 'tiny'}" in capsys.readouterr().out
    RunFolder(tmp_path / "tiny" / "fold1").lock(resume=True).close()  # nothing is locked


@pytest.mark.parametrize("text", ["", "{", "\ufffd"])
def test_a_damaged_report_is_written_again(copied_folds, text):
    old = json.loads((copied_folds / "folds.json").read_text())
    (copied_folds / "folds.json").write_text(text)
    with redirect_stdout(io.StringIO()):
        again = summarise(settings_of({}), copied_folds)
    assert again == RunFolder(copied_folds).read_folds_report()
    assert {**again.to_json(), "finished": 0} == {**old, "finished": 0}


def test_data_that_changed_since_are_refused(copied_folds):
    (copied_folds / "folds.json").unlink()
    file = copied_folds / "fold1" / "predictions.csv"
    head, first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([head, *rest, first]) + "\n")
    with redirect_stdout(io.StringIO()), pytest.raises(UserError, match="fold1: its test images differ from those"):
        summarise(settings_of({}), copied_folds)


def test_weights_that_have_seen_the_test_images_are_said(finished_folds, tmp_path, caplog):
    model, words = {**TINY["model"], "weights": str(finished_folds / "fold1")}, "has seen images that test this run"

    def said(**split):
        caplog.clear()
        settings = settings_of(split, model=model)
        warn_of_seen(settings, "model.weights", settings.model.weights)
        return words in caplog.text

    assert said(folds=None) and said(fold=1, test_seed=1) and not said(fold=1)
    quietly(settings_of({"fold": 0}, model=model), tmp_path / "runs")
    assert words in (tmp_path / "runs" / "fold0" / "log.txt").read_text()


def test_folds_are_one_row_of_a_comparison(finished_folds, copied_folds, capsys):
    (row,) = compare([finished_folds])
    accuracies = [100 * run["test_top1"] for run in results(finished_folds)]
    assert (row.name, row.seeds, row.folds) == ("tiny", [0], [0, 1, 2])
    assert 100 * row.value("test_score") == pytest.approx(mean(accuracies))
    assert 100 * row.spread("test_score") == pytest.approx(stdev(accuracies))
    compare_tool.main([str(finished_folds)])
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].split("|")]
    assert cells[1:4] == ["tiny", "3 folds", f"{mean(accuracies):.2f} ± {stdev(accuracies):.2f}"]
    with pytest.raises(UserError, match="fold0: seed 0, fold 0, of this kind is given twice"):
        compare([finished_folds, finished_folds / "fold0"])
    (copied_folds / "fold2" / "results.json").unlink()
    with pytest.raises(UserError, match="fold2: this fold is not finished; finish it with --resume .*tiny"):
        compare([copied_folds])
    assert compare([copied_folds / "fold0", copied_folds / "fold1"])[0].folds == [0, 1]


def test_many_labels_have_a_mean_and_no_matrix(tmp_path):
    runs = [
        results_of(metric="map", test_metrics={"map": score, "f1": 0.5}, test_images=10, seconds=2.0, data_sha256="")
        for score in (0.5, 0.6, 0.7)
    ]
    report = together(settings_of({}), runs)
    assert report.spread.mean == pytest.approx(0.6) and report.spread.pooled is None and report.spread.unseen is None
    RunFolder(tmp_path).write_folds_report(report)
    assert RunFolder(tmp_path).read_folds_report() == report
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
