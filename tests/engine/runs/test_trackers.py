"""The trackers of `log.trackers`: what they are told, once each, and what happens where one is missing or fails."""

from __future__ import annotations

import logging
import sys
from threading import Thread
from typing import get_args

import numpy as np
import pytest
from matplotlib.figure import Figure

from engine.runs.trackers import TRACKERS, check_installed
from engine.runs.trackers import mlflow as mlflow_module
from engine.runs.trackers.sink import kept_id
from engine.runs.tracking import Tracker
from engine.settings.schema import TrackerName
from engine.train.experiment import run_experiment
from models.settings import UserError

SETTINGS = {"train": {"lr": 1e-3, "betas": [0.9, 0.999]}, "seed": 0}


def tracker(folder, *resumed, trackers=("tensorboard",), **options) -> Tracker:
    return Tracker(folder, *resumed, trackers=trackers, title="a run", settings=SETTINGS, **options)


def test_the_settings_name_the_table():
    assert get_args(TrackerName) == tuple(TRACKERS)


class Recorder:
    """A tracker that keeps what it is told."""

    discards = False

    def __init__(self, about) -> None:
        self.about, self.told, self.fails = about, [], False

    def scalars(self, step, values):
        if self.fails:
            raise ConnectionError("no server\nat all")
        self.told.append((step, dict(values)))

    def text(self, step, tag, markdown):
        self.told.append((step, tag, markdown))

    def picture(self, step, tag, pixels):
        self.told.append((step, tag, pixels.shape))

    def results(self, step, results, settings):
        self.told.append((step, dict(results), dict(settings)))

    def ending(self):
        return self

    def __enter__(self):
        self.told.append("the end begins")

    def __exit__(self, *_):
        self.told.append("ended")

    def flush(self):
        self.told.append("flush")

    def close(self, *, finished):
        self.told.append(("closed", finished))


@pytest.fixture
def recorders(monkeypatch) -> list[Recorder]:
    """The tracker of each session, under the name `mlflow`."""
    made: list[Recorder] = []

    def make(about) -> Recorder:
        made.append(Recorder(about))
        return made[-1]

    monkeypatch.setitem(TRACKERS, "mlflow", make)
    return made


def test_a_tracker_is_told_everything_once(tmp_path, recorders):
    with tracker(tmp_path, trackers=["mlflow"]) as writer:
        writer.scalars(1, {"train/loss": 1.0})
        lines = writer.flush()  # the checkpoint of step 1
        writer.scalars(2, {"train/loss": 0.5})
        writer.scalars(2, {"val/top1": 0.5})
    assert recorders[0].about.settings == {"train.lr": 1e-3, "train.betas": "[0.9, 0.999]", "seed": 0}
    assert recorders[0].about.title == "a run" and not list(tmp_path.glob("events.*"))
    with pytest.raises(KeyboardInterrupt), tracker(tmp_path, 1, lines, trackers=["mlflow"]) as writer:
        writer.scalars(2, {"train/loss": 0.5})
        writer.scalars(2, {"val/top1": 0.5})
        writer.scalars(3, {"train/loss": 0.25})
        writer.text(3, "run", "text")
        writer.figure(3, "val/wrong", Figure((2, 1), dpi=50))
        with writer.ending():
            writer.hparams(3, {"Accuracy": 50.0}, SETTINGS)
        raise KeyboardInterrupt
    assert recorders[0].told == [
        (1, {"train/loss": 1.0}),
        "flush",
        (2, {"train/loss": 0.5}),
        (2, {"val/top1": 0.5}),
        ("closed", True),
    ]
    assert recorders[1].about.start == 2
    assert recorders[1].told == [
        (3, {"train/loss": 0.25}),
        (3, "run", "text"),
        (3, "val/wrong", (50, 100, 3)),
        "the end begins",
        (3, {"Accuracy": 50.0}, recorders[1].about.settings),
        "ended",
        ("closed", False),
    ]


def test_a_tracker_that_fails_is_left_out(tmp_path, recorders, caplog):
    with caplog.at_level(logging.WARNING), tracker(tmp_path, trackers=["tensorboard", "mlflow"]) as writer:
        recorders[0].fails = True
        writer.scalars(1, {"train/loss": 1.0})
        writer.scalars(2, {"train/loss": 0.5})
    assert recorders[0].told == []
    assert [record.message for record in caplog.records] == ["log.trackers: mlflow gets nothing more: no server"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_one_that_cannot_begin_ends_the_run_before_it_trains(tmp_path, monkeypatch):
    def broken(about):
        raise ConnectionError("no server")

    monkeypatch.setitem(TRACKERS, "mlflow", broken)
    with pytest.raises(UserError, match="log.trackers: mlflow cannot begin: no server; mend this, or leave it out"):
        tracker(tmp_path, trackers=["tensorboard", "mlflow"])


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_what_is_not_installed_is_named_with_its_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"^log\.trackers: {name} is not installed; pip install -e '\.\[{name}\]'$"):
        check_installed(["tensorboard", name])


def test_a_tracker_that_is_named_twice_begins_once(tmp_path, recorders):
    with tracker(tmp_path, trackers=["mlflow", "mlflow"]):
        pass
    assert [recorder.told for recorder in recorders] == [[("closed", True)]]


def test_runs_that_begin_at_once_make_one_database(tmp_path):
    """One after the other: MLflow's own first steps in a new database fail when two take them together."""
    began: list[str] = []

    def begin() -> None:
        with mlflow_module._alone(tmp_path):
            began.append("second")

    second = Thread(target=begin)
    with mlflow_module._alone(tmp_path):
        second.start()
        second.join(0.1)
        began.append("first")
    second.join(10)
    assert began == ["first", "second"]


def test_mlflow_keeps_one_run_without_a_server(tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    with tracker(folder, trackers=["mlflow"]) as writer:
        writer.scalars(1, {"train/loss": 1.0})
        lines = writer.flush()
        writer.scalars(2, {"train/loss": 0.5})
    with tracker(folder, 1, lines, trackers=["mlflow"]) as writer:
        writer.scalars(2, {"train/loss": 0.5})
        writer.scalars(3, {"train/loss": float("nan")})
        writer.figure(3, "val/wrong", Figure((2, 1), dpi=50))
        writer.text(3, "results", "# done")
        writer.hparams(3, {"Accuracy (test), %": 50.5, "Model": "vit"}, SETTINGS)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    [experiment] = [one for one in client.search_experiments() if one.name == "hybridmerge"]
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == kept_id(folder, "mlflow") and run.info.status == "FINISHED"
    assert run.info.run_name == "a run" and run.data.params == {
        "train.lr": "0.001",
        "train.betas": "[0.9, 0.999]",
        "seed": "0",
    }
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in history] == [1, 2, 3] and np.isnan(history[-1].value)
    assert run.data.metrics["Accuracy test"] == 50.5 and run.data.tags["Model"] == "vit"
    artifacts = {path.name for path in (tmp_path / "runs" / "mlartifacts").rglob("*") if path.is_file()}
    assert artifacts == {"results.md", "wrong_0000003.png"}


def test_wandb_keeps_one_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="extra wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for resumed in ([], [1, 1]):
        with tracker(tmp_path, *resumed, trackers=["wandb"]) as writer:
            writer.scalars(len(resumed), {"train/loss": 1.0})
            writer.figure(len(resumed), "val/wrong", Figure((2, 1), dpi=50))
            writer.hparams(3, {"Accuracy (test), %": 50.5, "Model": "vit"}, SETTINGS)
    kept = kept_id(tmp_path, "wandb")
    sessions = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(sessions) >= 1 and all(session.name.endswith(f"-{kept}") for session in sessions)
    assert all((session / f"run-{kept}.wandb").stat().st_size for session in sessions)


def test_a_run_tells_its_trackers_what_it_measures(tiny, tmp_path, recorders):
    settings = tiny(train={"epochs": 1}, log={"trackers": ["mlflow"], "images": 0})
    results = run_experiment(settings, made(tmp_path / "tiny"))
    [recorder] = recorders
    assert recorder.about.title == "tiny" and recorder.about.settings["train.epochs"] == 1
    steps = [entry[0] for entry in recorder.told if entry[0] in range(100) and "train/loss" in entry[1]]
    assert steps == list(range(1, results.steps + 1))
    assert recorder.told[-1] == ("closed", True) and "ended" in recorder.told


def made(folder):
    folder.mkdir()
    return folder
