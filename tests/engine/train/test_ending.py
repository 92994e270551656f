"""The end of a run, stopped at each of its steps and resumed: TensorBoard shows it once, and never not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import engine.train.experiment
import engine.train.final_test
from engine.runs.folder import RunFolder
from engine.runs.tracking import Tracker
from engine.settings.schema import RunSettings
from engine.train import folds_report
from engine.train.experiment import run_experiment
from models.settings import check
from tests.engine.conftest import TINY
from tests.engine.train.loop.test_trainer import Crash, metrics
from tests.marks import mostly_slow
from tests.quiet import end_log

SETTINGS = check(RunSettings, {**TINY, "augment": {}, "train": {"epochs": 1, "batch_size": 64, "lr": 0.01}})
HPARAMS = "_hparams_/session_start_info"


def crashes(*_, **__):
    raise Crash


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run that has come to its last step, and was stopped before it was tested."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(engine.train.experiment, "test_best", crashes)
        run_experiment(SETTINGS, folder)
    end_log()
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def shown(folder: Path) -> Counter:
    """How often TensorBoard shows each picture and number of the end, and the entry of the hyperparameters."""
    board = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()
    tags = board.Tags()
    count = Counter({tag: len(board.Images(tag)) for tag in tags["images"] if tag.startswith(("test/", "folds/"))})
    count.update({tag: len(board.Images(tag)) for tag in tags["images"] if tag == "wrong/test"})
    count.update({tag: len(board.Tensors(tag)) for tag in tags["tensors"] if tag == "results"})
    count["loss/train"] = len(board.Scalars("loss/train")) if "loss/train" in tags["scalars"] else 0
    for file in folder.glob("*tfevents*"):
        for event in EventFileLoader(str(file)).Load():
            count[HPARAMS] += sum(value.tag == HPARAMS for value in event.summary.value)
    return count


def expected(folder: Path) -> Counter:
    end = ("test/confusion", "test/confused", "wrong/test", "results")
    losses = sum("train/loss" in line for line in metrics(folder))
    return Counter({**dict.fromkeys(end, 1), HPARAMS: 1, "loss/train": losses})


def crash_in(patch: pytest.MonkeyPatch, owner, name: str, number: int = 1, *, after: bool = False) -> None:
    """Makes the call with this number of a function crash, before or after it does its work."""
    function, calls = getattr(owner, name), []

    def crashing(*args, **options):
        calls.append(name)
        if len(calls) == number and not after:
            raise Crash
        result = function(*args, **options)
        if len(calls) == number:
            raise Crash
        return result

    patch.setattr(owner, name, crashing)


FINAL = engine.train.final_test
POINTS = {
    "the weights are loaded": lambda patch: crash_in(patch, FINAL, "load_trained", after=True),
    "tested": lambda patch: crash_in(patch, FINAL, "evaluate_split", after=True),
    "predictions are written": lambda patch: crash_in(patch, FINAL, "write_predictions", after=True),
    "the first picture": lambda patch: crash_in(patch, FINAL, "draw", after=True),
    "the second picture": lambda patch: crash_in(patch, FINAL, "draw", 2, after=True),
    "the third picture": lambda patch: crash_in(patch, FINAL, "mistakes_figure", after=True),
    "before hparams": lambda patch: crash_in(patch, Tracker, "hparams"),
    "after hparams": lambda patch: crash_in(patch, Tracker, "hparams", after=True),
    "before the events": lambda patch: crash_in(patch, engine.runs.trackers.tensorboard, "write_end"),
    "after the events": lambda patch: crash_in(patch, engine.runs.trackers.tensorboard, "write_end", after=True),
    "before the results": lambda patch: crash_in(patch, RunFolder, "write_results"),
    "after the results": lambda patch: crash_in(patch, RunFolder, "write_results", after=True),
}


QUICK = ("the weights are loaded", "the third picture", "before the events", "after the results")


@pytest.mark.parametrize("point", mostly_slow(POINTS, QUICK))
def test_a_run_stopped_in_its_end_shows_it_once(run, monkeypatch, point):
    with monkeypatch.context() as patch, pytest.raises(Crash):
        POINTS[point](patch)
        run_experiment(SETTINGS, run, resume=True)
    end_log()
    run_experiment(SETTINGS, run, resume=True)
    assert shown(run) == expected(run)
    assert len(list(run.glob("*tfevents*.end"))) == 1


@pytest.mark.slow
def test_a_run_stopped_three_times_in_its_end_shows_it_once(run, monkeypatch):
    for point in ("the first picture", "before the results", "after the events"):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            POINTS[point](patch)
            run_experiment(SETTINGS, run, resume=True)
        end_log()
    run_experiment(SETTINGS, run, resume=True)
    assert shown(run) == expected(run)


def test_a_process_killed_while_it_writes_the_end_leaves_no_events(run, monkeypatch):
    """TensorBoard reads every file that has tfevents in its name."""
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(
            os, "replace", lambda source, target: crashes() if "tfevents" in str(target) else os.rename(source, target)
        )
        run_experiment(SETTINGS, run, resume=True)
    assert not [path.name for path in run.iterdir() if "tfevents" in path.name and "end" in path.name]
    assert shown(run)[HPARAMS] == 0 and shown(run)["test/confusion"] == 0


def test_a_run_that_goes_on_shows_its_new_end_alone(run):
    run_experiment(SETTINGS, run, resume=True)
    longer = SETTINGS.model_copy(update={"train": SETTINGS.train.model_copy(update={"epochs": 2})})
    results = run_experiment(longer, run, resume=True)
    assert shown(run) == expected(run)
    board = EventAccumulator(str(run)).Reload()
    assert [image.step for image in board.Images("test/confusion")] == [results.steps]


def test_a_report_on_folds_that_was_stopped_shows_its_pictures_once(copied_folds, monkeypatch):
    settings = RunFolder(copied_folds).settings
    for target, name in ((folds_report, "draw"), (RunFolder, "write_folds_report")):
        (copied_folds / "folds.json").unlink(missing_ok=True)
        with monkeypatch.context() as patch, pytest.raises(Crash):
            crash_in(patch, target, name, after=name == "draw")
            folds_report.summarise(settings, copied_folds)
    report = folds_report.summarise(settings, copied_folds)
    assert json.loads((copied_folds / "folds.json").read_text()) == report.to_json()
    count = shown(copied_folds)
    assert count["folds/confusion"] == count["folds/confused"] == 1
