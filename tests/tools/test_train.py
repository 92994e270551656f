"""The command line as a user has it: processes, exit codes, what is printed and what is left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml

from engine.cli import cli
from engine.runs.checkpoints import checkpoint
from engine.runs.records.results import Results
from engine.train.report import print_run
from engine.wording import shown
from tests.engine.data.conftest import save_image
from tests.paths import OF_RUNS
from tests.processes import ENVIRONMENT, Process, command, finish
from tests.results import FIRST_VERSION
from tools import compare as compare_tool
from tools import eval as eval_tool
from tools import train as train_tool

QUICK = [
    "split.part=0.25",
    "train.epochs=2",
    "train.batch_size=16",
    "model.embed_dim=16",
    "model.depth=2",
    "threads=1",
    "model.drop_path_rate=0.1",
    "model.patch_size=2",
    "model.merge.r=2",
    "device=cpu",
]


@contextmanager
def training(*args: str, cwd: Path, until: Path) -> Iterator[Process]:
    """A training process that has come so far that the file `until` is there. It is killed where a test fails."""
    with Process("train.py", *args, cwd=cwd) as process:
        deadline = time.monotonic() + 60
        while not until.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        yield process


def run_inside(tool, *args: str, monkeypatch) -> int:
    """A tool's exit code, in this process."""
    monkeypatch.setattr(sys, "argv", ["tool", *args])
    return cli(tool.main)


@pytest.mark.slow
def test_train_then_evaluate_then_refuse(tmp_path):
    """From a folder that is not the project's: names under configs/ are found, the run folder is made here."""
    trained = finish("train.py", "--cfg", "digits/hybrid", *QUICK, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr == ""
    folder = tmp_path / "runs" / "digits_hybrid"
    results = json.loads((folder / "results.json").read_text())
    for words in (
        f"test accuracy   {100 * results['test_top1']:.2f} %",
        "parameters",
        "GMACs",
        "run folder      runs/digits_hybrid",
        "curves          tensorboard --logdir runs/digits_hybrid",
        "tokens removed by each block: [2, 2]",
    ):
        assert words in trained.stdout

    evaluated = finish("eval.py", "--run", str(folder), cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"top1 {100 * results['test_top1']:.2f} %" in evaluated.stdout and ": the same" in evaluated.stdout

    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
    again = finish("train.py", "--cfg", "digits/hybrid", *QUICK, cwd=tmp_path)
    assert again.returncode == 2 and again.stderr.count("\n") == 1
    assert again.stderr.startswith("error: ") and "--resume" in again.stderr and "name=" in again.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"} == before


@pytest.mark.precision
@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    """A real process, kill -9 in the middle of an epoch, and the same weights in the end."""
    args = ["--cfg", "digits/hybrid", *QUICK, "train.epochs=4", "log.every_steps=1", "checkpoint.every_steps=7"]
    whole = finish("train.py", *args, "name=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr

    folder = tmp_path / "runs" / "killed"
    with training(*args, "name=killed", cwd=tmp_path, until=folder / "best.pt") as process:  # the first epoch is over
        process.send_signal(signal.SIGKILL)
    step = checkpoint.load(folder / "last.pt")["progress"]["step"]
    assert 0 < step < 4 * 20 and not (folder / "results.json").exists()

    resumed = finish("train.py", "--resume", str(folder), cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"from step {step} of 80" in resumed.stdout
    for name in ("last.pt", "best.pt"):
        one, other = (checkpoint.load(tmp_path / "runs" / run / name)["model"] for run in ("whole", "killed"))
        assert all(torch.equal(one[key], other[key]) for key in one), name


@pytest.mark.slow
def test_folds_killed_and_resumed_equal_uninterrupted(tmp_path, monkeypatch, capsys):
    """kill -9 in the second of two folds; the first is passed over, the second goes on from its checkpoint."""
    monkeypatch.chdir(tmp_path)
    args = ["--cfg", "digits/hybrid", *QUICK, "split.part=0.1", "split.folds=2", "checkpoint.every_steps=2"]
    folder = tmp_path / "runs" / "killed"
    with training(*args, "name=killed", cwd=tmp_path, until=folder / "fold1" / "last.pt") as process:
        process.send_signal(signal.SIGKILL)
    step = checkpoint.load(folder / "fold1" / "last.pt")["progress"]["step"]
    assert (folder / "fold0" / "results.json").exists() and not (folder / "fold1" / "results.json").exists()
    first = (folder / "fold0" / "results.json").read_bytes()

    assert run_inside(train_tool, "--resume", str(folder), "train.lr=0.5", monkeypatch=monkeypatch) == 2
    assert "train.lr = 0.5: the run was started with" in capsys.readouterr().err
    assert run_inside(train_tool, "--resume", str(folder), monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert "killed, fold 1 of 2 on cpu" in said and f"from step {step} of" in said and "fold 0 of 2 on" not in said
    assert (folder / "fold0" / "results.json").read_bytes() == first

    assert run_inside(train_tool, *args, "name=whole", monkeypatch=monkeypatch) == 0
    killed, whole = (json.loads((tmp_path / "runs" / name / "folds.json").read_text()) for name in ("killed", "whole"))
    for key in ("mean", "std", "interval", "pooled", "unseen", "class_accuracy", "confusion"):
        assert killed[key] == whole[key]
    for fold in ("fold0", "fold1"):
        one, other = (checkpoint.load(folder.parent / run / fold / "last.pt")["model"] for run in ("whole", "killed"))
        assert all(torch.equal(one[key], other[key]) for key in one), fold
    capsys.readouterr()

    # a fold's own folder is resumed as that fold; as another it is refused
    assert run_inside(train_tool, "--resume", str(folder / "fold1"), monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert said.count("95 % interval") >= 3 and f"run folder      {folder / 'fold1'}" in said and "mean   " in said
    wrong = ["--resume", str(folder / "fold1"), "split.fold=0"]
    assert run_inside(train_tool, *wrong, monkeypatch=monkeypatch) == 2
    assert f"split.fold = 0: {folder / 'fold1'} is fold 1; resume {folder}" in capsys.readouterr().err


def test_training_on_everything_measures_nothing_and_breaks_nothing(tmp_path, monkeypatch, capsys):
    """split.test=0 of a dataset without test images, as for a submission: every tool says that there are none."""
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        save_image(tmp_path / "images" / "ab"[i % 2] / f"{i}.png", i, (8, 8))
    args = [
        "--cfg",
        "digits/hybrid",
        *QUICK,
        "data.name=folder",
        "data.path=images",
        "data.size=8",
        "model.in_chans=3",
        "model.num_classes=2",
        "split.part=1",
        "split.val=0.2",
        "split.test=0",
        "train.epochs=1",
        "train.batch_size=8",
        "name=all",
    ]
    assert run_inside(train_tool, *args, monkeypatch=monkeypatch) == 0
    said, folder = capsys.readouterr().out, Path("runs/all")
    results = json.loads((folder / "results.json").read_text())
    assert results["test_images"] == 0 and results["train_images"] == 32 and results["val_images"] == 8
    assert [results[f"test_{key}"] for key in ("top1", "top5", "loss", "interval")] == [None] * 4
    assert not (folder / "predictions.csv").exists() and not (folder / "confusion.png").exists()
    assert "the accuracy is not measured" in (folder / "log.txt").read_text()
    assert "test accuracy   not measured" in said and f"val accuracy    {100 * results['val_top1']:.2f} %" in said
    assert "\n95 % interval   " in said[said.index("val accuracy") :]
    assert run_inside(eval_tool, "--run", str(folder), monkeypatch=monkeypatch) == 2
    assert "--split test: the run has no such images (split.test = 0)" in capsys.readouterr().err
    assert run_inside(eval_tool, "--run", str(folder), "--split", "val", monkeypatch=monkeypatch) == 0
    capsys.readouterr()
    assert run_inside(compare_tool, str(folder), monkeypatch=monkeypatch) == 0
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].split("|")]
    assert cells[1:4] == ["all", "1", "-"]


def test_two_processes_in_one_folder(tmp_path):
    args = ["--cfg", "digits/hybrid", *QUICK, "train.epochs=1000", "name=shared"]
    folder = tmp_path / "runs" / "shared"
    with training(*args, cwd=tmp_path, until=folder / "last.pt") as first:
        second = finish("train.py", "--resume", str(folder), cwd=tmp_path)
        assert second.returncode == 2 and "in use" in second.stderr
        first.send_signal(signal.SIGINT)  # Ctrl-C
        output, errors = first.communicate(timeout=60)
    assert first.returncode == 130 and errors == ""
    assert f"continue with: tools/train.py --resume {Path('runs/shared')}" in output
    assert checkpoint.load(folder / "last.pt")["progress"]["step"] > 0


def test_a_second_ctrl_c_ends_at_once_and_quietly(tmp_path):
    """Mostly in the middle of a save, because there is one after each step; the last good checkpoint stays."""
    args = ["--cfg", "digits/hybrid", *QUICK, "train.epochs=1000", "name=twice", "checkpoint.every_steps=1"]
    folder = tmp_path / "runs" / "twice"
    with training(*args, cwd=tmp_path, until=folder / "last.pt") as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == ""
    checkpoint.load(folder / "last.pt")
    assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))


def test_ctrl_c_before_anything_began_is_quiet(tmp_path):
    with subprocess.Popen(
        command("train.py", "--cfg", "digits/hybrid", *QUICK),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        maps, patience = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 30
        while maps.exists() and "/torch/" not in maps.read_text() and time.monotonic() < patience:
            time.sleep(0.05)  # until libraries are imported, which begins late on a busy machine
        if not maps.exists():  # no Linux
            time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT) and errors == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--cfg", "hybrid_mrege"], ["hybrid_merge"]),
        (["--cfg", "digits/hybrid", "train.lrr=1"], ["train.lrr", "lr"]),
        (["--cfg", "digits/hybrid", "train.lr=-1"], ["train.lr", "-1", "greater than 0"]),
        (["--cfg", "digits/hybrid", "model.name=hybird"], ["model.name", "hybird", "hybrid"]),
        (["--cfg", "digits/hybrid", "data.name=digit"], ["data.name", "digit", "digits"]),
        (["--cfg", "digits/hybrid", "model.merge.r=-3"], ["merge.r", "-3"]),
        (["--cfg", "digits/hybrid", "train.epochs=true"], ["train.epochs", "True"]),
        (["--cfg", "digits/hybrid", "data.name=npz", "data.path=absent.npz"], ["absent.npz"]),
        (["--resume", "absent"], ["--resume absent", "no run"]),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_inside(train_tool, *args, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for word in words:
        assert word in error
    assert not list(tmp_path.rglob("last.pt"))


def test_a_mistake_in_the_data_leaves_nothing_in_the_way(tmp_path, monkeypatch, capsys):
    """The corrected command runs: the first attempt's folder does not block it."""
    monkeypatch.chdir(tmp_path)
    args = ["--cfg", "digits/hybrid", *QUICK, "name=again", "train.epochs=1"]
    assert run_inside(train_tool, *args, "model.num_classes=7", monkeypatch=monkeypatch) == 2
    assert "model.num_classes=10" in capsys.readouterr().err
    assert run_inside(train_tool, *args, monkeypatch=monkeypatch) == 0


def test_a_name_of_two_lines_takes_one():
    assert shown("new\nline") == "'new\\nline'" and shown("é, ü") == "é, ü"


def test_a_run_finished_by_an_older_version_is_reported(capsys):
    measured = {"test_top1": 0.975, "test_top5": 1.0, "params": 293_000, "gmacs": 0.0164, "seconds": 34.0}
    old = {**FIRST_VERSION, **measured, "images_per_second": 763.0}
    print_run(Results.from_json(old), Path("runs/old"))
    out = capsys.readouterr().out
    assert out.startswith("\ntest accuracy   97.50 %  (top-5 100.00 %, 360 images)\nparameters      0.293 M\n")
    many = {"test_images": 12, "test_map": 0.5, "test_f1": 0.25, "metric": "map", "trained_share": 0.125}
    without = {key: value for key, value in old.items() if key not in ("test_top1", "test_top5", "val_top1")}
    print_run(Results.from_json({**without, **many}), Path("runs/many"))
    out = capsys.readouterr().out
    assert out.startswith("\ntest mAP        50.00 %  (F1 25.00 %, 12 images)\n")
    assert "\nparameters      0.293 M, 12.50 % trained\n" in out


def test_print_shows_what_would_run_and_stops(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_inside(train_tool, "--cfg", "digits/hybrid", "train.lr=1e-4", "--print", monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["train"]["lr"] == 1e-4
    (tmp_path / "shown.yaml").write_text(shown)
    assert run_inside(train_tool, "--cfg", "shown.yaml", "--print", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == shown and not (tmp_path / "runs").exists()


def test_the_schema_accepts_every_config_and_catches_a_typo(tmp_path, monkeypatch):
    target = tmp_path / "schema.json"
    assert run_inside(train_tool, "--schema", str(target), monkeypatch=monkeypatch) == 0
    validator = jsonschema.Draft202012Validator(json.loads(target.read_text()))
    for path in OF_RUNS:
        assert validator.is_valid(yaml.safe_load(path.read_text().replace("e-", ".0e-"))), path
    assert not validator.is_valid({"train": {"epoch": 3}})
    assert not validator.is_valid({"model": {"name": "vit", "embed_dimm": 3}})


def test_evaluating_what_is_no_run(tmp_path, monkeypatch, capsys):
    assert run_inside(eval_tool, "--run", str(tmp_path), monkeypatch=monkeypatch) == 2
    assert "not a run folder" in capsys.readouterr().err
