"""Which folder a planned run has: that of its resolved settings, whatever the name."""

from __future__ import annotations

import os

import pytest

from engine.runs.folder import RunFolder
from engine.runs.folds import of_all
from engine.study.plan.folders import place
from engine.study.plan.rows import planned_runs
from tests.engine.study.plans import TINY, plan_of
from tests.results import results_of


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Plans a study in an empty folder, and puts runs there as if they had been trained."""
    monkeypatch.chdir(tmp_path)

    class Study:
        def plan(self, rows: str = "rows: {a: {}, b: {set: {train.lr: 0.5}}}", *arguments: str):
            return planned_runs(plan_of(tmp_path, TINY + rows + "\n", *arguments))

        def place(self, *arguments: str):
            return place(self.plan(*arguments), tmp_path / "runs" / "tiny")

        def train(self, placed, *, done: bool = True) -> None:
            settings = placed.run.settings.with_classes(10)
            placed.folder.path.mkdir(parents=True)
            placed.top.write_settings(of_all(settings))
            placed.folder.write_settings(settings)
            if done:
                results = results_of(name=settings.name, seed=settings.seed, fold=settings.split.fold)
                placed.folder.write_results(results)

    return Study()


def states(placing) -> list[tuple[str, str, str]]:
    return [(placed.run.row, placed.top.path.name, placed.state) for placed in placing.runs]


def test_new_started_and_done(study):
    a, b = study.place().runs
    assert states(study.place()) == [("a", "a_s0", "new"), ("b", "b_s0", "new")]
    study.train(a)
    study.train(b, done=False)
    assert states(study.place()) == [("a", "a_s0", "done"), ("b", "b_s0", "started")]


def test_a_renamed_row_is_not_trained_again_and_a_changed_one_is(study):
    for placed in study.place().runs:
        study.train(placed)
    renamed = study.place("rows: {x: {}, a: {set: {train.lr: 0.5}}}")
    assert states(renamed) == [("x", "a_s0", "done"), ("a", "b_s0", "done")]
    changed = study.place("rows: {a: {}, b: {set: {train.lr: 0.25}}}")
    assert states(changed) == [("a", "a_s0", "done"), ("b", "b_s0-2", "new")]
    assert [path.name for path in changed.others] == ["b_s0"]
    seeds = study.place("rows: {a: {}}", "seeds=2")
    assert [(placed.run.seed, placed.state) for placed in seeds.runs] == [(0, "done"), (1, "new")]


@pytest.mark.parametrize("change", ["threads=3", "device=auto", "log.every_steps=7", "checkpoint.keep=5", "data={}"])
def test_what_does_not_decide_the_result_may_differ(study, change):
    study.train(study.place("rows: {a: {}}").runs[0])
    overrides = [] if change == "data={}" else [change]
    assert study.place("rows: {a: {}}", *overrides).runs[0].state == "done"


@pytest.mark.parametrize(
    "change", ["train.lr=0.1", "train.epochs=3", "split.val=0.2", "train.weight_decay=0.1", "augment.crop=0"]
)
def test_what_decides_the_result_may_not(study, change):
    study.train(study.place("rows: {a: {}}").runs[0])
    placed = study.place("rows: {a: {}}", change).runs[0]
    assert (placed.state, placed.top.path.name) == ("new", "a_s0-2")


def test_other_data_are_another_run_and_moved_data_are_not(study, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    rows = "rows: {a: {set: {data: {name: folder, path: one}, model.in_chans: 3}}}"
    study.train(study.place(rows).runs[0])
    assert study.place(rows).runs[0].state == "done"
    assert study.place(rows, "data.path=two").runs[0].state == "new"
    os.rename("one", "moved")
    moved = study.place(rows, "data.path=moved").runs[0]
    assert moved.state == "done" and moved.moved == "data.path"
    more = rows.replace("{a:", "{b: {set: {data: {name: folder, path: two}, model.in_chans: 3}}, a:")
    both = study.place(more.replace("path: one", "path: moved"))
    assert states(both) == [("b", "b_s0", "new"), ("a", "a_s0", "done")]  # a run is not taken for two


def test_weights_of_a_hub_are_no_path(study):
    rows = "rows: {a: {cfg: zoo/resnet18, set: {data: {name: digits}, model.in_chans: 1}}}"
    study.train(study.place(rows, "model.weights=timm:resnet18.a1_in1k").runs[0])
    assert study.place(rows, "model.weights=timm:resnet18.a2_in1k").runs[0].state == "new"


def test_folds_share_a_folder_and_are_done_one_by_one(study):
    runs = study.place("rows: {a: {}}", "folds=2").runs
    study.train(runs[0])
    assert [placed.state for placed in study.place("rows: {a: {}}", "folds=2").runs] == ["done", "new"]
    other = study.place("rows: {a: {}}", "folds=2", "train.lr=0.5").runs
    assert [placed.top.path.name for placed in other] == ["a_s0-2", "a_s0-2"]
    assert [placed.state for placed in other] == ["new", "new"]


def test_a_folder_in_which_no_run_began_is_used(study):
    placed = study.place().runs[0]
    placed.top.path.mkdir(parents=True)
    (placed.top.path / ".lock").touch()
    (placed.top.path / "log.txt").touch()
    assert study.place().runs[0].top.path == placed.top.path
    (placed.top.path / "notes.txt").touch()  # somebody else's
    assert study.place().runs[0].top.path.name == "a_s0-2"


def test_damaged_folders_are_named(study):
    for placed in study.place().runs:
        study.train(placed)
    a, b = study.place().runs
    a.folder.results_file.write_text("{")
    b.folder.settings_file.write_text("model: {")
    placing = study.place()
    assert placing.runs[0].state == "started" and "a_s0/results.json" in placing.runs[0].problem
    assert states(placing)[1] == ("b", "b_s0-2", "new")
    [(path, problem)] = placing.damaged.items()
    assert path.name == "b_s0" and "settings.yaml" in problem and RunFolder(path).is_run
    b.folder.settings_file.write_text("{}")
    [(path, problem)] = study.place().damaged.items()
    assert problem.startswith(f"{path}: name: missing")
