"""Rows that tools/zeroshot.py --fit prints: they meet the budgets of the rows that they are fitted to."""

from __future__ import annotations

import pytest
import torch
import yaml

from engine.study.zeroshot.evaluate import evaluate_rows
from engine.study.zeroshot.fitting import fit_rows
from models.merging import fit_schedule
from models.settings import UserError
from tests.engine.study.zeroshot.test_evaluate import plain_model
from tools import zeroshot

BUDGET = ("methods=[tome]", "budgets=[{target_ratio: 1.15, first_block: 2}, {r: 4}]")


def printed(settings, kind, count):
    lines = []
    fit_rows(settings, kind, count, lines.append)
    return yaml.safe_load("\n".join(lines)), lines


def test_fitted_rows_are_evaluated_as_they_are_printed(load, session_files, tmp_path):
    """Of each row with a budget one, whose name is of another line in figures; --fit reads evenly spaced images."""
    rows, lines = printed(load(*BUDGET), "schedule", 6)
    assert list(rows) == ["tome from block 2 fitted, 1.15 times fewer MACs"] and "6 images" in lines[0]
    (row,) = rows.values()
    assert row.keys() == {"method", "r"} and row["r"][0] == 0
    settings = load("methods=[]", "budgets=[]", f"rows={yaml.safe_dump(rows, default_flow_style=True, width=999)}")
    images, found = evaluate_rows(settings, tmp_path, lambda line: None)
    assert found[1].gmacs == pytest.approx(found[0].gmacs / 1.15, rel=5e-3) and found[1].removed == row["r"]
    # What was fitted is what the library fits to the images 1, 4, 7 ... of 18.
    chosen = torch.cat([split.read(torch.arange(len(split))) for split in images.splits])[1::3].float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (images.mean, images.std))
    by_hand = fit_schedule(plain_model(session_files.parent), (chosen - mean) / std, target_ratio=1.15, first_block=2)
    assert by_hand.r == row["r"]


def test_thresholds_are_fitted_to_the_same_rows(load, tmp_path):
    rows, lines = printed(load(*BUDGET), "threshold", 100)
    (row,) = rows.values()
    assert row.keys() == {"method", "threshold", "first_block"} and "mean of 18 images" in lines[0]
    settings = load("methods=[]", "budgets=[]", f"rows={yaml.safe_dump(rows, default_flow_style=True, width=999)}")
    _, (unmerged, found) = evaluate_rows(settings, tmp_path, lambda line: None)
    assert found.gmacs == pytest.approx(unmerged.gmacs / 1.15, rel=5e-3) and found.gmacs_spread.images == 18


def test_the_tool_prints_rows_and_evaluates_nothing(session_files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(session_files.parent)
    out = tmp_path / "out"
    zeroshot.main(["--cfg", "small.yaml", f"out={out}", *BUDGET, "--fit", "threshold", "--images", "9"])
    assert list(yaml.safe_load(capsys.readouterr().out)) == ["tome from block 2 fitted, 1.15 times fewer MACs"]
    assert not out.exists()


def test_without_a_budget_there_is_nothing_to_fit(load):
    with pytest.raises(UserError, match=r"^budgets: none of multiply-adds, which --fit meets; give budgets="):
        fit_rows(load("budgets=[{r: 4}]"), "schedule", 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--fit", "schedule", "--images", "0"], "--images 0: must be at least 1"),
        (["--images", "9"], "--images 9: is for --fit; give that too"),
        (["--fit", "schedule", "--time", "3"], "--time: not with --fit, which evaluates nothing; leave it out"),
        (["--fit", "threshold", "--again"], "--again: not with --fit, which evaluates nothing; leave it out"),
    ],
)
def test_arguments_that_do_not_go_together(given, message, capsys):
    with pytest.raises(SystemExit):
        zeroshot.main(["--cfg", "small.yaml", *given])
    assert message in capsys.readouterr().err
