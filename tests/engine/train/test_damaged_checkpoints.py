"""Damaged, missing and incomplete checkpoints of a stopped run: it ends as if nothing had happened, or says why not."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from engine.runs.checkpoints import checkpoint
from engine.runs.folder import RunFolder
from engine.runs.restore import load_run
from engine.runs.tracking import Tracker
from engine.settings.schema import RunSettings
from engine.train.experiment import run_experiment
from engine.train.loop.trainer import Trainer
from models.settings import UserError, check
from tests.engine.conftest import TINY
from tests.engine.train.loop.test_trainer import Crash, assert_same_run
from tests.marks import mostly_slow
from tests.quiet import end_log

pytestmark = pytest.mark.usefixtures("no_pictures")

SHORT = {"epochs": 4, "batch_size": 64, "lr": 0.02, "ema": 0.5}  # 5 steps in an epoch


def settings(**checkpoints) -> RunSettings:
    return check(RunSettings, {**TINY, "augment": {}, "train": SHORT, "checkpoint": checkpoints})


def crash_at(step: int, folder: Path, made: RunSettings) -> Path:
    """Runs until the line of a step is to be written."""
    scalars = Tracker.scalars

    def crashing(self, at, values):
        if at == step and "train/loss" in values:
            raise Crash
        scalars(self, at, values)

    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Tracker, "scalars", crashing)
        run_experiment(made, folder)
    end_log()
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    folder.mkdir()
    run_experiment(settings(), folder)
    end_log()
    return folder


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory) -> Path:
    return crash_at(18, tmp_path_factory.mktemp("stopped") / "run", settings(every_steps=2, keep=3))


@pytest.fixture
def stopped(stopped_once, tmp_path) -> Path:
    """A run that was stopped after step 17, with checkpoints of 16, 15 and 14."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


def steps(folder: Path) -> list[int]:
    return [checkpoint.load(file)["progress"]["step"] for file in RunFolder(folder).last_checkpoints]


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def resume(folder: Path, made: RunSettings | None = None):
    return run_experiment(made or settings(every_steps=2, keep=3), folder, resume=True)


def said(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def test_the_checkpoints_before_are_kept(stopped, whole):
    assert steps(stopped) == [16, 15, 14]
    assert sorted(path.name for path in stopped.glob("*.pt")) == ["best.pt", "last-1.pt", "last-2.pt", "last.pt"]
    assert all(RunFolder(stopped).owns(file) for file in RunFolder(stopped).last_checkpoints)
    assert steps(whole) == [20, 15], "two by default"
    resume(stopped, settings(every_steps=2, keep=1))
    assert steps(stopped) == [20] and len(list(stopped.glob("last*.pt"))) == 1
    assert_same_run(whole, stopped)


@pytest.mark.parametrize(
    "how", mostly_slow(["flipped", "empty", "cut", "text", "folder", "gone", "two"], ["cut", "folder", "gone", "two"])
)
def test_a_damaged_last_checkpoint_is_named_and_the_one_before_is_used(stopped, whole, how):
    last = stopped / "last.pt"
    if how == "flipped":
        damage(last)
    elif how == "two":
        damage(last)
        damage(stopped / "last-1.pt")
    else:
        content = last.read_bytes()
        last.unlink()
        if how == "folder":
            last.mkdir()
        elif how != "gone":
            last.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"hello"}[how])
    resume(stopped)
    assert_same_run(whole, stopped)
    if how != "gone":
        assert f"{last}: " in said(stopped) and "renamed to last.pt.damaged" in said(stopped)
        assert (stopped / "last.pt.damaged").exists()
    assert f"from step {14 if how == 'two' else 15} of 20" in said(stopped)
    assert len(steps(stopped)) == 3, "none of them is a damaged one"


def test_checkpoints_that_are_all_damaged_are_one_line(stopped):
    before = (stopped / "metrics.jsonl").read_bytes()
    for file in RunFolder(stopped).last_checkpoints:
        damage(file)
    with pytest.raises(
        UserError, match=r"last.pt: damaged, .* and 2 older likewise: nothing is left to continue from; "
    ):
        resume(stopped)
    assert (stopped / "metrics.jsonl").read_bytes() == before and (stopped / "last.pt").exists()


def test_no_checkpoint_is_no_silent_start_over_old_files(stopped):
    for file in RunFolder(stopped).last_checkpoints:
        file.unlink()
    before = {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"last.pt: missing, although the run came to step 17; put it back, or start "):
        resume(stopped)
    assert {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file()} == before
    (stopped / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="came to step 15"):  # best.pt says so
        resume(stopped)
    (stopped / "best.pt").unlink()
    (stopped / "predictions.csv").touch()
    with pytest.raises(UserError, match=r"last.pt: missing, although it has predictions.csv; put it back"):
        resume(stopped)


def test_a_run_stopped_before_its_first_checkpoint_starts_again_and_says_so(tmp_path, whole):
    folder = crash_at(4, tmp_path / "run", settings())
    assert not RunFolder(folder).last_checkpoints
    resume(folder, settings())
    assert "no checkpoint had been written yet: the run starts again" in said(folder)
    assert_same_run(whole, folder)


@pytest.mark.parametrize(
    ("keep", "number"), mostly_slow([(1, 1), (2, 1), (2, 2), (2, 3), (3, 3), (3, 4), (3, 5)], [(1, 1), (2, 2), (3, 5)])
)
def test_killed_between_any_two_operations_of_saving(tmp_path, whole, monkeypatch, number, keep):
    """Renaming what is kept, and the new file, takes a few steps; the process may end before each."""
    folder, made = tmp_path / "run", settings(keep=keep)
    folder.mkdir()
    replace, unlink, calls = os.replace, os.unlink, []

    def killed(operation):
        def counted(path, *others, **options):
            if "last" in str(path) and len(list(folder.glob("last*.pt"))) >= min(2, keep):
                calls.append(path)
                if len(calls) == number:
                    raise Crash
            return operation(path, *others, **options)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed(replace))
        patch.setattr(os, "unlink", killed(unlink))
        with suppress(Crash):
            run_experiment(made, folder)
    end_log()
    resume(folder, made)
    assert_same_run(whole, folder)


@pytest.mark.parametrize("how", mostly_slow(["flipped", "gone", "old"], ["gone", "old"]))
def test_lost_best_weights_are_made_again_from_an_older_checkpoint(stopped, whole, how):
    best = stopped / "best.pt"
    state = checkpoint.load(best)
    assert state["step"] == 15 and checkpoint.load(stopped / "last.pt")["progress"]["best_step"] == 15
    if how == "flipped":
        damage(best)
    elif how == "gone":
        best.unlink()
    else:
        checkpoint.save(best, {**state, "step": 10})
    resume(stopped)
    assert_same_run(whole, stopped)
    assert f"{best}: " in said(stopped) and "it is made again, from last-1.pt on" in said(stopped)


def test_lost_best_weights_that_cannot_be_made_again_are_found_at_the_start(stopped, monkeypatch):
    damage(stopped / "best.pt")
    for number in (1, 2):
        (stopped / f"last-{number}.pt").unlink()
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("it trains"))
    with pytest.raises(
        UserError, match=r"best.pt: damaged, .* cannot be made again; put a copy back, delete it to keep "
    ):
        resume(stopped)


def test_a_run_whose_best_weights_were_deleted_keeps_the_best_of_what_is_left(stopped):
    for name in ("best.pt", "last-1.pt", "last-2.pt"):
        (stopped / name).unlink()
    results = resume(stopped)
    assert results.best_step == 20 and "best.pt: missing: the best of the epochs that are left is kept" in said(stopped)


def test_nothing_is_left_to_train_and_the_best_weights_are_lost(whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    state = checkpoint.load(folder / "last.pt")
    for name in ("results.json", "best.pt", "last-1.pt"):
        (folder / name).unlink()
    checkpoint.save(folder / "last.pt", {**state, "progress": {**state["progress"], "best_step": 15}})
    with pytest.raises(UserError, match=r"put a copy back, train with a larger train.epochs, or start"):
        run_experiment(settings(), folder, resume=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, "gone") for key in ("model", "optimizer", "progress", "lines", "classes", "data")),
        ("model", {}),
        ("optimizer", {}),
        ("optimizer", {"state": {}, "param_groups": []}),
        ("progress", {"step": "x"}),
        ("progress", {"steps": 1}),
        ("classes", None),
        ("data", "x"),
    ],
)
def test_a_checkpoint_that_lacks_something_is_one_line(stopped, key, value):
    for number in (1, 2):
        (stopped / f"last-{number}.pt").unlink()
    last = stopped / "last.pt"
    state = checkpoint.load(last)
    state.pop(key) if value == "gone" else state.update({key: value})
    checkpoint.save(last, state)
    with pytest.raises(UserError) as error:
        resume(stopped)
    assert str(last) in str(error.value) or str(stopped) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["model", "classes"])
def test_best_weights_that_lack_something_are_one_line(whole, tmp_path, key):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    state = checkpoint.load(folder / "best.pt")
    del state[key]
    checkpoint.save(folder / "best.pt", state)
    with pytest.raises(UserError, match=f"best.pt: incomplete, it has no {key}"):
        load_run(folder)


def test_a_newer_format_is_not_taken_for_damage(stopped):
    file = stopped / "last.pt"
    state = checkpoint.load(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 2)
        checkpoint.save(file, state)
    with pytest.raises(UserError, match="format 2, this version reads up to 1; update"):
        resume(stopped)


def test_best_weights_in_a_newer_format_are_not_made_again(stopped, monkeypatch):
    best, state = stopped / "best.pt", checkpoint.load(stopped / "best.pt")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 2)
        checkpoint.save(best, state)
    content = best.read_bytes()
    with pytest.raises(UserError, match="best.pt: format 2, this version reads up to 1; update"):
        resume(stopped)
    assert best.read_bytes() == content


def test_a_path_with_a_semicolon_is_named_whole(stopped, capsys):
    folder = stopped.rename(stopped.with_name("lr 1e-3; seed 0"))
    damage(folder / "last.pt")
    damage(folder / "best.pt")
    resume(folder)
    for name in ("last.pt", "best.pt"):
        assert f"{folder / name}: damaged, its bytes do not match its SHA-256; " in said(folder)


def test_a_full_disk_leaves_the_checkpoints_as_they_were(stopped, monkeypatch):
    before = {file.name: file.read_bytes() for file in RunFolder(stopped).last_checkpoints}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="no space left"):
        resume(stopped)
    assert {file.name: file.read_bytes() for file in RunFolder(stopped).last_checkpoints} == before


def test_a_missing_last_checkpoint_is_said(stopped, whole):
    (stopped / "last.pt").unlink()
    resume(stopped)
    assert f"{stopped / 'last.pt'}: missing; the run goes on from last-1.pt" in said(stopped)
    assert_same_run(stopped, whole)


def test_a_finished_run_without_its_last_checkpoint_trains_for_longer_from_the_one_before(whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    (folder / "last.pt").unlink()
    longer = check(RunSettings, {**TINY, "augment": {}, "train": {**SHORT, "epochs": 5}})
    assert resume(folder, longer).epochs == 5
    assert "the run goes on from last-1.pt" in said(folder)


@pytest.mark.parametrize("kind", mostly_slow(["damaged", "missing"], ["damaged"]))
def test_a_lost_best_checkpoint_of_a_finished_run_is_said_and_made_again(whole, tmp_path, capsys, kind):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    results = (folder / "results.json").read_bytes()
    damage(folder / "best.pt") if kind == "damaged" else (folder / "best.pt").unlink()
    resume(folder, settings())
    printed = capsys.readouterr().out
    assert f"{folder / 'best.pt'}: {kind}" in printed
    assert f"or delete {folder / 'results.json'} and resume again, which makes it again" in printed
    assert (folder / "results.json").read_bytes() == results
    (folder / "results.json").unlink()  # as the message says
    resume(folder, settings())
    assert_same_run(folder, whole)


def test_results_are_not_to_be_deleted_where_nothing_makes_the_best_checkpoint_again(whole, tmp_path, capsys):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    for file in folder.glob("*.pt"):
        file.unlink()
    assert resume(folder, settings()).epochs == 4
    assert "best.pt: missing; put a copy back\n" in capsys.readouterr().out
