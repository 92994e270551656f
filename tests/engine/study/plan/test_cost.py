"""What runs of a study cost: which of them take equally long, and whose error it is if one cannot be counted."""

from __future__ import annotations

import pytest

from engine.study.plan import cost
from engine.study.plan.folders import place
from engine.study.plan.rows import planned_runs
from models.settings import UserError
from tests.engine.study.plans import TINY, plan_of


def test_runs_of_other_data_are_of_another_kind(tmp_path):
    """Each is measured: one dataset may be a hundred times as large as the other."""
    rows = "rows: {a: {set: {data: {name: npz, path: a.npz}}}, b: {set: {data: {name: npz, path: b.npz}}}}\nseeds: 2\n"
    kinds = {run.title: cost.kind(run) for run in planned_runs(plan_of(tmp_path, TINY + rows))}
    assert kinds["a_s0"] == kinds["a_s1"] != kinds["b_s0"] == kinds["b_s1"]


def test_the_time_of_several_at_a_time_is_that_of_the_last_one_to_end():
    runs = [{"seconds": seconds} for seconds in (10, 10, 10)]
    assert [cost.at_once(runs, jobs) for jobs in (1, 2, 3, 8)] == [30, 20, 10, 10]
    assert cost.at_once([{"seconds": 1}, {"seconds": 50}], 8) == 50


def test_jobs_that_need_more_processors_than_there_are_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "processors", lambda: 4)
    runs = place(planned_runs(plan_of(tmp_path, TINY + "seeds: 3\n")), tmp_path / "none").runs
    values = {"seconds": 60, "gmacs": 1.0, "images": 10, "timed_steps": 8, "kept_features": False, "device": "cpu (x)"}
    for threads, slow in ((2, False), (3, True)):
        measured = {cost.kind(runs[0].run): cost.Measured({**values, "threads": threads})}
        lines = cost.summary(runs, measured, 2)
        assert any(line.startswith("2 at a time: 2 min") for line in lines), lines
        assert ("they will: 2 x 3 threads on 4 processors; give fewer jobs= or threads=" in lines) == slow


def test_a_model_that_cannot_be_counted_is_named_with_its_row(tmp_path):
    rows = "rows: {a: {}, tiny budget: {cfg: digits/vit, set: {merge.target_gmacs: 1e-9}}}\n"
    run = planned_runs(plan_of(tmp_path, TINY + rows))[1]
    with pytest.raises(UserError, match="row 'tiny budget': model.merge.target_gmacs = 1e-09: out of reach"):
        cost.work_of(run)
