"""What runs of a study cost: which of them take equally long, and whose error it is if one cannot be counted."""

from __future__ import annotations

import pytest

from engine.study.plan import cost
from engine.study.plan.rows import planned_runs
from models.settings import UserError
from tests.engine.study.plans import TINY, plan_of


def test_runs_of_other_data_are_of_another_kind(tmp_path):
    """Each is measured: one dataset may be a hundred times as large as the other."""
    rows = "rows: {a: {set: {data: {name: npz, path: a.npz}}}, b: {set: {data: {name: npz, path: b.npz}}}}\nseeds: 2\n"
    kinds = {run.title: cost.kind(run) for run in planned_runs(plan_of(tmp_path, TINY + rows))}
    assert kinds["a_s0"] == kinds["a_s1"] != kinds["b_s0"] == kinds["b_s1"]


def test_a_model_that_cannot_be_counted_is_named_with_its_row(tmp_path):
    rows = "rows: {a: {}, tiny budget: {cfg: digits/vit, set: {merge.target_gmacs: 1e-9}}}\n"
    run = planned_runs(plan_of(tmp_path, TINY + rows))[1]
    with pytest.raises(UserError, match="row 'tiny budget': model.merge.target_gmacs = 1e-09: out of reach"):
        cost.work_of(run)
