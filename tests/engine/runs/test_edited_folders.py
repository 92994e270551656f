"""A run folder whose settings or checkpoints were exchanged behind the run's back: every tool says which."""

from __future__ import annotations

import json
import os
import re
import shutil
from itertools import product
from pathlib import Path

import pytest

from engine.measure.reevaluate import load_groups
from engine.runs.checkpoints import checkpoint
from engine.runs.folder import RunFolder
from engine.runs.records.metrics import metrics_of
from engine.runs.restore import load_model, load_run
from engine.settings.changes import decisive
from engine.settings.layers import load_settings
from engine.settings.schema import RunSettings
from engine.study.curves import curves
from engine.study.table import compare
from engine.submit.ensemble import gather
from engine.train.experiment import run_experiment
from engine.train.session import train
from models.settings import UserError, check
from tests.engine.conftest import TINY
from tests.marks import mostly_slow
from tests.quiet import end_log

SHORT = {"epochs": 2, "batch_size": 32, "lr": 0.003}


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert re.search(old, text), old
    file.write_text(re.sub(old, new, text, count=1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("finished"))


def trained(parent: Path, **train) -> Path:
    """A run that draws no pictures."""
    folder = parent / "tiny"
    folder.mkdir()
    quiet = {**TINY["log"], "images": 0}
    run_experiment(check(RunSettings, {**TINY, "augment": {}, "train": {**SHORT, **train}, "log": quiet}), folder)
    end_log()
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "tiny"))


def resume(folder: Path, *overrides: str) -> None:
    stored = RunFolder(folder)
    train(stored.settings_with(overrides), stored, resume=True)


READERS = {
    "resume": resume,
    "eval": lambda folder: list(load_groups([folder])),
    "predict": lambda folder: gather([folder], None, []),
    "export": lambda folder: load_run(folder),
    "picture": lambda folder: load_model(folder),
    "compare": lambda folder: compare([folder]),
}

EDITS = {
    "train.lr": (r"lr: 0.003", "lr: 0.03", "train.lr = 0.03: the run was started with 0.003"),
    "train.epochs": ("epochs: 2", "epochs: 1", "train.epochs = 1: the run was started with 2"),
    "heads": ("num_heads: 2", "num_heads: 4", "model.num_heads = 4: the run was started with 2"),
    "r": ("r: 3", "r: 2", "model.merge.r = 2: the run was started with 3"),
    "r, other form": (
        "r: 3",
        "r: {first: 3, last: 3}",
        "model.merge.r.first = 3: the run was started with model.merge.r = 3",
    ),
    "cnn": ("bridge:", "cnn_: 1\n  bridge:", "model.cnn_: unknown key"),
    "drop_path_rate": ("drop_path_rate: 0.2", "drop_path_rate: 0.0", "model.drop_path_rate = 0.0: "),
    "seed": ("seed: 0", "seed: 1", "seed = 1: the run was started with 0"),
    "split": ("part: 0.25", "part: 0.5", "split.part = 0.5: the run was started with 0.25"),
    "data": ("name: digits", "name: cifar10", "data.name = 'cifar10': the run was started with 'digits'"),
    "finetune": (
        "finetune: null",
        "finetune: {mode: full}",
        "finetune.mode = 'full': the run was started with finetune = null",
    ),
    "a line removed": ("  num_heads: 2\n", "", "model.num_heads = 12: the run was started with 2"),
}


@pytest.mark.parametrize(
    ("edited", "reader"),
    [*((edited, "predict") for edited in EDITS), *(("heads", reader) for reader in READERS if reader != "predict")],
)
def test_an_edited_setting_is_named_by_every_tool(run, reader, edited):
    old, new, says = EDITS[edited]
    if edited == "a line removed":
        edit(run / "settings.yaml", "embed_dim: 16", "embed_dim: 24")  # still fits 12 heads
        says = "model.embed_dim = 24: the run was started with 16"
    edit(run / "settings.yaml", old, new)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(UserError) as error:
        READERS[reader](run)
    assert says in str(error.value)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != ".lock"} == {
        name: content for name, content in before.items() if name != ".lock"
    }


def test_what_may_change_may_be_edited(run):
    for old, new in (
        ("name: tiny", "name: other"),
        ("device: cpu", "device: auto"),
        ("every_steps: ", "every_steps: 1"),
    ):
        edit(run / "settings.yaml", old, new)
    for reader in READERS.values():
        reader(run)


def test_overrides_of_one_command_are_no_edits(run):
    assert load_run(run, ["merge.r=1"]).settings.model.merge.r == 1
    assert load_run(run, ["train.batch_size=7"]).settings.train.batch_size == 7


def test_epochs_may_be_raised_in_the_file_and_the_schedule_is_said(run, capsys):
    edit(run / "settings.yaml", "epochs: 2", "epochs: 3")
    assert load_run(run).settings.train.epochs == 3
    resume(run)
    said = capsys.readouterr().out
    assert "train.epochs = 3, started with 2: from step 20 on the learning rate follows the schedule" in said
    assert json.loads((run / "results.json").read_text())["epochs"] == 3
    assert checkpoint.load(run / "last.pt")["settings"]["train.epochs"] == 3
    with pytest.raises(
        UserError, match="train.epochs = 2: the run was started with 3, says .*; put the old value back"
    ):
        edit(run / "settings.yaml", "epochs: 3", "epochs: 2")
        resume(run)


def test_changes_that_are_allowed_are_logged(run, capsys):
    (run / "results.json").unlink()
    resume(run, "device=auto", "log.every_steps=3")
    said = capsys.readouterr().out
    assert "device = 'auto', before 'cpu'" in said and "log.every_steps = 3, before 1" in said


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A run with another learning rate."""
    return trained(tmp_path_factory.mktemp("other"), epochs=1, lr=0.1)


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_a_checkpoint_of_another_run_is_named(run, other, name):
    shutil.copy(other / name, run / name)
    for reader in READERS.values():
        says = f"train.lr = 0.003: the run was started with 0.1, says {run / name}; .* put the run's own {name} into"
        with pytest.raises(UserError, match=says) as error:
            reader(run)
        assert "old value" not in str(error.value), "another checkpoint agrees with settings.yaml"


def test_checkpoints_of_different_data_do_not_go_together(run):
    state = checkpoint.load(run / "best.pt")
    checkpoint.save(run / "best.pt", {**state, "data": "0" * 64})
    with pytest.raises(UserError, match="best.pt and last.pt were trained on different data"):
        load_run(run)


def test_a_damaged_checkpoint_is_called_damaged(run):
    content = bytearray((run / "best.pt").read_bytes())
    at = content.index(b"cosine") if b"cosine" in content else content.index(b"train.schedule")
    content[at] ^= 1
    (run / "best.pt").write_bytes(content)
    with pytest.raises(UserError, match="best.pt: damaged"):
        load_run(run)


def flip(file: Path, text: bytes, after: bytes = b"") -> None:
    """Flips a bit of the first such text in a file, behind another text."""
    content = bytearray(file.read_bytes())
    content[content.index(text, content.index(after)) + len(text) - 1] ^= 1
    file.write_bytes(content)


def test_best_weights_whose_fingerprint_is_damaged_are_damaged_and_not_of_other_data(run):
    results = RunFolder(run).read_results()
    flip(run / "best.pt", results.data_sha256.encode())
    assert checkpoint.peek(run / "best.pt")["data"] != results.data_sha256
    with pytest.raises(UserError, match="best.pt: damaged"):
        load_run(run)
    assert RunFolder(run).read_results() == results, "the results are not another run's"


def test_a_damaged_record_of_the_last_checkpoint_is_not_believed(run):
    flip(run / "last.pt", b"K\x02", after=b"train.epochs")
    assert checkpoint.peek(run / "last.pt")["settings"]["train.epochs"] == 3
    assert RunFolder(run).trained_settings["train.epochs"] == 2
    (run / "results.json").unlink()
    resume(run)
    assert RunFolder(run).read_results().epochs == 2 and (run / "last.pt.damaged").exists()


def test_a_damaged_record_does_not_decide_which_file_is_to_be_put_back(run):
    """The settings are edited and last.pt is damaged so that it agrees with them: best.pt is the run's own."""
    edit(run / "settings.yaml", "epochs: 2", "epochs: 1")
    for name in ("last.pt", "last-1.pt"):
        flip(run / name, b"K\x02", after=b"train.epochs")
    content = bytearray((run / "last.pt").read_bytes())
    content[content.index(b"K\x03", content.index(b"train.epochs")) + 1] = 1
    (run / "last.pt").write_bytes(content)
    with pytest.raises(
        UserError, match="train.epochs = 1: .* says .*best.pt; put the old value back into settings.yaml"
    ):
        load_run(run)


def test_checkpoints_without_settings_are_accepted_as_before(run):
    for name in ("best.pt", "last.pt", "last-1.pt"):
        state = checkpoint.load(run / name)
        del state["settings"]
        checkpoint.save(run / name, state)
    edit(run / "settings.yaml", "lr: 0.003", "lr: 0.03")
    for reader in READERS.values():
        reader(run)


def test_settings_of_a_later_version_are_no_edits(run):
    """A key that a version has removed, or added, is not a change."""
    for name in ("best.pt", "last.pt", "last-1.pt"):
        state = checkpoint.load(run / name)
        del state["settings"]["train.momentum"]
        checkpoint.save(run / name, {**state, "settings": {**state["settings"], "train.gone": 1}})
    for reader in READERS.values():
        reader(run)


def test_a_dictionary_of_options_is_one_setting(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("name: a\nmodel: {name: 'timm:test_vit', options: {depth: 2}}\ndata: {name: digits}\n")
    assert decisive(load_settings(str(file)))["model.options"] == {"depth": 2}


FILES = ["log.txt", "metrics.jsonl", "results.json", "predictions.csv", "confusion.png"]
REFUSED = [*product(FILES, ["folder", "pipe"]), ("results.json", "broken link")]
FOLLOWED = [(name, "broken link") for name in FILES if name != "results.json"]  # each run goes on to its end


@pytest.mark.parametrize(
    ("name", "kind"), mostly_slow(REFUSED + FOLLOWED, [*REFUSED, ("metrics.jsonl", "broken link")])
)
def test_something_else_in_the_place_of_a_file(run, tmp_path, name, kind):
    (run / "results.json").unlink()
    file = run / name
    file.unlink(missing_ok=True)
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(tmp_path / "nowhere")
    if kind == "broken link" and name != "results.json":
        resume(run)
        return
    with pytest.raises(UserError, match=f"{file}: (is a folder|is a pipe or device|cannot be read)"):
        resume(run)


def test_results_of_another_run_are_named(run):
    edit(run / "results.json", '"seed": 0', '"seed": 1')
    for name in ("resume", "eval", "export", "compare"):
        with pytest.raises(UserError, match="results.json: seed = 1, and the run has 0: of another run, or edited"):
            READERS[name](run)


def test_metrics_with_wrong_values_are_left_out(run):
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines()
    wrong = [
        '{"step": "x"}',
        '{"step": 1e999}',
        "[1]",
        "[" * 9999,
        '{"step": 5, "train/loss": "high"}',
        '{"step": -1}',
        "{",
    ]
    file.write_text("\n".join([*wrong, *lines]) + "\n")
    kept = [json.loads(line) for line in lines]
    assert [row for row in metrics_of(file) if len(row) > 1] == kept
    assert len(curves([run]).axes) == 2
    (run / "results.json").unlink()
    resume(run)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()][:1] == [5], "that line has a step"


@pytest.mark.parametrize(
    "change",
    mostly_slow(
        [
            {"fold": None},
            {"mean": "x"},
            {"confused": [{}]},
            {"class_accuracy": {"0": "x"}},
            {"metric": []},
            {"std": 0.5},
        ],
        [{"fold": None}, {"std": 0.5}],  # one that is no report, and one with a wrong number
    ),
)
def test_a_wrong_report_on_folds_is_written_again(copied_folds, change):
    file = copied_folds / "folds.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, **change}))
    resume(copied_folds)
    assert {**json.loads(file.read_text()), "finished": ""} == {**whole, "finished": ""}


def test_an_edited_folder_of_folds_or_fold_is_named(copied_folds):
    tools = ("resume", "eval", "predict", "compare")
    edit(copied_folds / "fold1" / "settings.yaml", "lr: 0.01", "lr: 0.1")
    for name in tools:
        with pytest.raises(UserError, match="train.lr = 0.1: the run was started with 0.01"):
            READERS[name](copied_folds)
    edit(copied_folds / "fold1" / "settings.yaml", "lr: 0.1", "lr: 0.01")
    for old, new, says in (("lr: 0.01", "lr: 0.1", "train.lr"), ("folds: 3", "folds: 2", "split.folds")):
        edit(copied_folds / "settings.yaml", old, new)
        for name in tools:
            with pytest.raises(UserError, match=says):
                READERS[name](copied_folds)
        edit(copied_folds / "settings.yaml", new, old)


def test_starting_weights_may_move_but_not_appear(run):
    edit(run / "settings.yaml", "weights: null", "weights: elsewhere.pth")
    with pytest.raises(UserError, match="model.weights = 'a file': the run was started with null"):
        resume(run)


def test_the_old_value_is_said_as_settings_files_write_it(run):
    edit(run / "settings.yaml", "clip_norm: [0-9.]+", "clip_norm: null")
    with pytest.raises(UserError, match="train.clip_norm = null: the run was started with 1.0"):
        resume(run)
    edit(run / "settings.yaml", "clip_norm: null", "clip_norm: 1.0")
    edit(run / "settings.yaml", "resize: null", "resize: 9")
    with pytest.raises(UserError, match="data.resize = 9: the run was started with null"):
        resume(run)


def test_a_setting_that_an_older_version_did_not_have_cannot_be_changed(run):
    for name in ("best.pt", "last.pt", "last-1.pt"):
        state = checkpoint.load(run / name)
        del state["settings"]["train.sampling"]
        checkpoint.save(run / name, state)
    with pytest.raises(UserError, match="train.sampling = 'balanced': the run was started with 'uniform'"):
        resume(run, "train.sampling=balanced", "train.epochs=3")
    resume(run, "train.epochs=3")


@pytest.mark.parametrize("name", ["best.pt", "last-1.pt"])
def test_a_folder_in_the_place_of_a_checkpoint_is_named_before_training(run, name):
    (run / "results.json").unlink()
    (run / name).unlink()
    (run / name).mkdir()
    before = (run / "log.txt").read_bytes()
    with pytest.raises(UserError, match=f"{run / name}: is a folder, where training writes a file; move it away"):
        resume(run)
    assert (run / "log.txt").read_bytes() == before
