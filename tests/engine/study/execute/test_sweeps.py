"""The sweep of a plan is checked before anything is trained."""

from __future__ import annotations

import re

import pytest

from engine.study.execute.study import Study
from engine.study.plan.rows import planned_runs
from models.settings import UserError
from tests.engine.study.plans import plan_of

BOTH = "name: s\nconfigs: [digits/lenet5, digits/vit]\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOTH + "sweep: merge.rr=[0, 1]\n", "plan.yaml: sweep: row 'digits_vit': model.merge.rr: unknown key"),
        (BOTH + "sweep: merge.r=[0, -1]\n", "plan.yaml: sweep: row 'digits_vit': model.merge.r = -1: "),
        (BOTH + "sweep: merge.r=4\n", "plan.yaml: sweep: merge.r=4: no list of values"),
        ("name: s\ncfg: digits/lenet5\nsweep: merge.r=[0]\n", "plan.yaml: sweep: merge.r=[0]: no model of the plan"),
    ],
)
def test_a_sweep_that_no_run_could_be_evaluated_with(tmp_path, text, says):
    plan = plan_of(tmp_path, text)
    with pytest.raises(UserError, match=re.escape(says)):
        Study(plan, planned_runs(plan))


def test_rows_that_do_not_merge_have_no_part_in_it(tmp_path):
    plan = plan_of(tmp_path, BOTH + "sweep: merge.method=[tome, grid]\nfolds: 2\n")
    Study(plan, planned_runs(plan))
