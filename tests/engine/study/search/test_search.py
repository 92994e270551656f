"""Search: trials by validation scores alone, stopped early, continued, and what is refused. Training is a stand-in."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from engine.launch import child
from engine.runs.folder import RunFolder
from engine.study.execute import pool
from engine.study.execute.study import Study
from engine.study.plan.rows import planned_runs
from engine.study.search.search import JOURNAL, Search
from engine.study.search.space import checked
from models.settings import UserError
from tests.engine.study import stand_in
from tests.engine.study.plans import TINY, plan_of

SEARCH = "search: {space: {train.lr: {low: 1e-5, high: 1.0, log: true}, train.batch_size: [8, 16]}, trials: %d%s}\n"


@pytest.fixture
def searching(tmp_path, monkeypatch):
    """Opens a search in the current folder; training is the stand-in, whose end is seen at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pool, "PAUSE", 0.01)
    monkeypatch.setattr(child, "TOOLS", stand_in.install(tmp_path))

    def search(trials: int, *arguments: str, more: str = "", text: str = TINY) -> Search:
        plan = plan_of(tmp_path, text + SEARCH % (trials, more), *arguments)
        study = Study(plan, planned_runs(plan))
        study.open().close()
        return Search(study)

    return search


def points(search: Search) -> list[dict]:
    return [trial.params for trial in search.trials.trials]


def states(search: Search) -> list[str]:
    return [trial.state.name for trial in search.trials.trials]


def test_the_best_is_the_best_on_the_validation_images(searching):
    search = searching(4)
    assert search.execute() == []
    assert states(search) == ["COMPLETE"] * 4
    runs = [RunFolder(f"runs/tiny/runs/trial_{number:04d}") for number in range(4)]
    tested = [run.read_results().test_score for run in runs]
    values = [trial.value for trial in search.trials.trials]
    assert values == pytest.approx([1 - score for score in tested])
    best = values.index(max(values))
    lines = search.report()
    assert f"trial {best}: train.lr={runs[best].settings.train.lr}" in lines[0]
    assert f"train.lr={runs[best].settings.train.lr} " in lines[-1] and "--cfg digits/lenet5" in lines[-1]
    table = Path("runs/tiny/table.md").read_text()
    assert table.splitlines()[2].startswith(f"|     {best} | complete") and "test" not in table


def test_a_search_that_goes_on_tries_what_it_would_have_tried(searching):
    straight = searching(4, "out=straight")
    straight.execute()
    first = searching(2, "out=parts")
    first.execute()
    second = searching(4, "out=parts")
    second.execute()
    assert points(second) == points(straight) and states(second) == ["COMPLETE"] * 4
    other = searching(2, "out=other", more=", seed: 1")
    other.execute()
    assert points(other) != points(first)


def test_a_trial_that_was_killed_is_continued(searching):
    killed = searching(2)
    job = killed._next()  # asked and begun, and then the power fails
    assert states(killed) == ["RUNNING"]
    again = searching(2)
    again.execute()
    assert states(again) == ["COMPLETE", "COMPLETE"] and points(again)[0] == points(killed)[0]
    assert again.trials.trials[0].value is not None and job.title == "trial_0000"
    searching(2).execute()
    assert len(searching(2).trials.trials) == 2


@pytest.mark.slow
def test_runs_that_fall_behind_are_stopped_early_and_saved(searching, monkeypatch):
    monkeypatch.setenv("EPOCH_SECONDS", "0.25")
    search = searching(12, "train.epochs=8")
    assert search.execute() == []
    pruned = [trial for trial in search.trials.trials if trial.state.name == "PRUNED"]
    assert pruned and len(pruned) < 8
    for trial in pruned:
        run = RunFolder(f"runs/tiny/runs/trial_{trial.number:04d}")
        assert (run.path / "saved").exists() and not run.is_finished
        assert 2 <= len(trial.intermediate_values) < 8  # never in its first epochs
    best = max(trial.value for trial in search.trials.trials if trial.value is not None)
    for trial in pruned:  # none of them would have been the best
        assert best >= max(trial.intermediate_values.values())


def test_without_pruning_all_come_to_their_end(searching):
    search = searching(6, more=", prune: false")
    search.execute()
    assert states(search) == ["COMPLETE"] * 6


def test_a_failed_trial_is_told_and_passed_over(searching):
    text = TINY.replace("name: tiny", "name: tiny\nseeds: [3]")
    search = searching(3, text=text)
    search.search.space["train.lr"] = search.search.space["train.lr"].model_copy(update={"low": 150.0, "high": 900.0})
    failures = search.execute()
    assert states(search) == ["FAIL"] * 3 and len(failures) == 3 and "diverged" in failures[0].error
    assert search.report() == ["no trial has come to its end"]


def test_values_that_are_not_allowed_together_are_no_end(searching, capsys):
    text = TINY.replace("split: {part: 0.2}", "split: {part: 0.2}\n  train.warmup_epochs: 2")
    more = ", metric: top5"
    search = searching(4, text=text, more=more)
    search.search.space["train.epochs"] = [1, 2]  # one epoch is shorter than the warm-up
    search.execute()
    assert len(search.trials.trials) == 4 and "FAIL" in states(search)
    assert "warmup_epochs = 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        (TINY + "rows: {a: {}, b: {set: {train.lr: 1}}}\n", [], "search: changes one row, and there are 2"),
        (TINY + "vary: {merge.r: [1]}\n", [], "vary: not beside search"),
        (TINY, ["seeds=2"], "seeds = 2: a search has one seed"),
        (TINY, ["train.lr=0.1"], "train.lr=0.1: search.space has other values for train.lr; leave one of the two out"),
        (TINY, ["split.val=0"], "search: needs validation images"),
    ],
)
def test_what_does_not_fit_a_search(searching, text, arguments, says):
    with pytest.raises(UserError, match=re.escape(says)):
        searching(2, *arguments, text=text.replace("merge.r", "augment.crop"))


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ("{train.lrr: [1, 2], train.batch_size: [8, 16]}", "search.space: no values are allowed, since train.lrr: "),
        ("{seed: [1, 2]}", "search.space.seed: not here; use the plan's seeds:"),
    ],
)
def test_a_misspelt_key_is_found_before_the_first_trial(tmp_path, space, says):
    plan = plan_of(tmp_path, TINY + f"search: {{space: {space}, trials: 30}}\n")
    with pytest.raises(UserError, match=re.escape(says)):
        checked(plan)


def test_a_full_disk_is_not_taken_for_settings_that_are_not_allowed(searching, monkeypatch):
    search = searching(5)

    def full(*_):
        raise UserError("settings/trial_0000.yaml: cannot be written, no space left on device")

    monkeypatch.setattr("engine.study.execute.study.write_text_atomic", full)
    with pytest.raises(UserError, match="no space left"):
        search.execute()
    assert states(search) == ["RUNNING"]


@pytest.mark.parametrize("lost", [1, 20])
def test_a_journal_whose_last_line_was_cut_off_goes_on(searching, lost):
    """As a full disk leaves it. Optuna alone would append to the line, and never read it again."""
    searching(2).execute()
    journal = Path("runs/tiny") / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-lost])
    (journal.parent / f"{JOURNAL}.lock").touch()
    for trials in (2, 3, 3):
        search = searching(trials)
        search.execute()
    assert states(search) == ["COMPLETE"] * 3


def test_a_damaged_journal_is_named(searching):
    searching(1).execute()
    journal = Path("runs/tiny") / JOURNAL
    for content in (b"\xff\xfe\n", b"{}\n", b"x\ny\n", journal.read_bytes().replace(b'"op_code"', b'"op', 1)):
        journal.write_bytes(content)
        with pytest.raises(UserError, match=f"^runs/tiny/{JOURNAL}: damaged, "):
            searching(1)


def test_the_command_of_the_best_can_be_pasted(searching):
    search = searching(1, "data.name=npz", "data.path=my file.npz")
    search.execute()
    words = shlex.split(search.report()[-1].removeprefix("train it"))
    assert "data.path=my file.npz" in words and words[:3] == ["tools/train.py", "--cfg", "digits/lenet5"]


def test_scores_of_other_settings_are_not_mixed(searching):
    searching(2).execute()
    with pytest.raises(UserError, match="train.epochs = 3: the trials there have 2"):
        searching(2, "train.epochs=3")
    with pytest.raises(UserError, match="metric = 'top5': the trials there have 'top1'"):
        searching(2, more=", metric: top5")
    with pytest.raises(UserError, match=r"search.metric = 'acc'"):
        searching(2, "out=new", more=", metric: acc")
    changed = searching(3)
    changed.search.space["train.batch_size"] = [8, 32]
    with pytest.raises(UserError, match=r"search.space: not the one of the trials"):
        changed.execute()
