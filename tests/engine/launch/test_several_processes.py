"""One run trained by several real processes: the same result as by one, and an end for all when one has ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from engine.launch import group as group_module
from engine.launch.group import ALONE, Group, said_once
from engine.runs.checkpoints import checkpoint
from models.settings import UserError
from tests.engine.data.conftest import save_image
from tests.engine.launch.runs import HYBRID, assert_same, config, ended, started, trained, wait_for
from tests.engine.train.tuned_runs import MODES, PLAIN, VIT
from tests.marks import mostly_slow
from tests.paths import ROOT
from tests.processes import ENVIRONMENT, finish


@pytest.mark.parametrize("size", mostly_slow([2, 4], [2]))
def test_the_number_of_processes_does_not_change_the_result(alone, size, tmp_path):
    """With mixed images, gradients accumulated and averaged weights; the last batch of validation images is smaller."""
    run = trained(tmp_path, "--cfg", config(tmp_path), size=size)
    assert_same(alone, run)
    assert len((run / "predictions.csv").read_text().splitlines()) == 361


@pytest.mark.parametrize("mode", mostly_slow(MODES, ["head"]))
def test_nor_in_any_mode_of_fine_tuning(mode, tmp_path):
    """Gradual fine-tuning lets other parameters learn in the second epoch; head learns from kept features."""
    finetune = {key: value for key, value in MODES[mode].items() if key != "dropout"}  # each process drops its own
    sections = {"model": VIT, "augment": PLAIN, "finetune": finetune, "train": {"epochs": 2, "batch_size": 16}}
    done = finish("train.py", "--cfg", config(tmp_path, **sections), "name=one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "one", trained(tmp_path, "--cfg", config(tmp_path, **sections), "name=two"))


def test_folds_follow_one_another(tmp_path):
    sections = {"split": {"folds": 2, "part": 0.2, "val": 0.1}, "train": {"epochs": 1, "batch_size": 16}}
    with ExitStack() as stack:
        first, second = ended(started(stack, tmp_path, "--cfg", config(tmp_path, **sections)))
    assert first[0] == second[0] == 0 and second[1:] == ("", ""), (first, second)
    assert "folds" in first[1] and (tmp_path / "together" / "folds.json").exists()


CHANGES = [("2 ddp", "1 ddp"), ("1 ddp", "2 fsdp"), ("2 fsdp", "2 ddp")]


@pytest.mark.parametrize(("before", "after"), mostly_slow(CHANGES, [("2 ddp", "1 ddp"), ("2 fsdp", "2 ddp")]))
def test_a_stopped_run_goes_on_with_another_number_of_processes(alone, before, after, tmp_path):
    """Split over them or not: checkpoints hold whole tensors."""
    run, (before, how), (after, then) = tmp_path / "together", before.split(), after.split()
    with ExitStack() as stack:
        args = "--cfg", config(tmp_path, checkpoint={"every_steps": 1}), f"train.parallel={how}"
        processes = started(stack, tmp_path, *args, size=int(before))
        wait_for(run / "last.pt")
        for process in processes:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)  # torchrun sends on what the terminal has sent to all
        first, *others = ended(processes)
    assert first[0] == 143 and f"stopped; continue with: tools/train.py --resume {run}" in first[1], first
    assert all(other == (143, "", "") for other in others), others
    assert 0 < checkpoint.load(run / "last.pt")["progress"]["step"] < 20
    assert_same(alone, trained(tmp_path, "--resume", str(run), f"train.parallel={then}", size=int(after)))


@pytest.mark.parametrize("killed", [0, 1])
def test_when_a_process_is_killed_the_others_end(killed, tmp_path):
    with ExitStack() as stack:
        args = "--cfg", config(tmp_path, train={**HYBRID["train"], "epochs": 500})
        processes = started(stack, tmp_path, *args)
        wait_for(tmp_path / "together" / "last.pt")
        processes[killed].kill()
        then = time.monotonic()
        codes = ended(processes, timeout=30)
    assert time.monotonic() - then < 10
    assert codes.pop(killed)[0] == -signal.SIGKILL
    for number, (code, _, errors) in enumerate(codes):
        assert code == 2
        if killed and number == 0:
            assert errors.startswith("error: a process of this run has ended") and errors.count("\n") == 1
            assert "--resume" in errors
        else:
            assert errors == ""


def test_a_loss_that_is_no_number_ends_all_with_one_message(tmp_path):
    with ExitStack() as stack:
        args = "--cfg", config(tmp_path), "train.lr=1000", "train.clip_norm=null", "train.optimizer=sgd"
        first, second = ended(started(stack, tmp_path, *args))
    assert first[0] == second[0] == 2 and second[1:] == ("", "")
    assert first[2].count("\n") == 1 and "train.lr = 1000.0: the " in first[2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size=15", "train.batch_size = 15: cannot be divided equally among 2 processes; use 14 or 16"),
        ("train.batch_size=1", "train.batch_size = 1: cannot be divided equally among 2 processes; use 2"),
        ("device=cuda:0", "device = 'cuda:0': each of 2 processes has its own; use auto, cuda or cpu"),
        ("device=cuda", "device = 'cuda': not available here; use auto or cpu"),
        ("train.batch_szie=3", "train.batch_szie: unknown key"),
        ("name=full", "full: holds files already"),
    ],
)
def test_a_mistake_is_said_once(override, message, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with ExitStack() as stack:
        found = ended(started(stack, tmp_path, "--cfg", config(tmp_path), override))
    assert [code for code, _, _ in found] == [2, 2]
    assert found[0][2].count("\n") == 1 and message in found[0][2], found
    assert found[1][2] == "", found


@pytest.mark.parametrize("under_torchrun", [True, False])
def test_the_first_process_speaks_before_torchrun_ends_it(under_torchrun, monkeypatch):
    """torchrun sends SIGTERM to all others as soon as one process has failed."""
    waits: list[float] = []
    monkeypatch.setattr(group_module.time, "sleep", waits.append)
    monkeypatch.setenv("RANK", "1")
    if under_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    with pytest.raises(SystemExit), said_once():
        raise UserError("train.lr: unknown")
    assert waits == [group_module.SPEAKS] * under_torchrun


def test_shares_of_a_batch():
    images = list(range(12))
    shares = [images[Group(rank, 3).share(12, "train.batch_size")] for rank in range(3)]
    assert sorted(image for share in shares for image in share) == images and {len(share) for share in shares} == {4}
    assert images[ALONE.share(12, "train.batch_size")] == images
    with pytest.raises(UserError, match="use 9 or 12"):
        Group(0, 3).share(11, "train.batch_size")


def test_a_process_that_fails_alone_is_named(tmp_path):
    """An image that cannot be read any more is in one share; what becomes of the others is said beside it."""
    for i in range(32):
        save_image(tmp_path / "images" / "ab"[i % 2] / f"{i}.png", i, (8, 8))
    data = {"name": "folder", "path": str(tmp_path / "images"), "size": 8, "cache": "none", "workers": 0}
    sections = {"data": data, "split": {"val": 0.25, "test": 0.25}, "augment": PLAIN}
    model = {**HYBRID["model"], "in_chans": 3}
    train = {**HYBRID["train"], "epochs": 500, "batch_size": 8, "accumulate": 1}
    with ExitStack() as stack:
        processes = started(stack, tmp_path, "--cfg", config(tmp_path, **sections, model=model, train=train))
        wait_for(tmp_path / "together" / "last.pt")
        for image in (tmp_path / "images").rglob("*.png"):
            image.write_bytes(b"")
        found = ended(processes, timeout=30)
    assert [code for code, _, _ in found] == [2, 2]
    said = [errors for _, _, errors in found if errors]
    assert 1 <= len(said) <= 2 and any("can no longer be read" in errors for errors in said), found
    assert all(errors.count("\n") == 1 for errors in said)
    assert not found[1][2] or found[1][2].startswith("error: process 1: ")


def test_an_estimate_is_that_of_all_processes(tmp_path):
    with ExitStack() as stack:
        args = "--cfg", config(tmp_path), "--estimate", "--json", str(tmp_path / "estimate.json")
        first, second = ended(started(stack, tmp_path, *args))
    assert first[0] == 0 and second == (0, "", ""), (first, second)
    assert ", 2 processes\n" in first[1] and first[1].startswith("time            about ")
    found = json.loads((tmp_path / "estimate.json").read_text())
    assert found["processes"] == 2 and found["steps"] == 20 and found["step_seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_torchrun_starts_a_failed_run_again_from_its_last_checkpoint(alone, size, tmp_path):
    args = ["--standalone", f"--nproc_per_node={size}", "--max-restarts=1"]
    tool = [str(ROOT / "tools" / "train.py"), "--cfg", config(tmp_path, checkpoint={"every_steps": 1})]
    run = tmp_path / "together"
    with subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *args, *tool],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(run / "last.pt", 120)
        holder = (run / ".lock").read_text().split()[1]
        os.kill(int(holder), signal.SIGKILL)
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, (out, err)
    assert "from step 0 of" in out and out.count("from step") == 2
    assert_same(alone, run)


@pytest.mark.slow
def test_torchrun_continues_no_run_that_it_did_not_start(alone, tmp_path):
    """Started a second time because the folder holds files, it must not take that for its own stopped run."""
    shutil.copytree(alone, tmp_path / "together")
    before = (alone / "results.json").read_text()
    args = ["--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    tool = [str(ROOT / "tools" / "train.py"), "--cfg", config(tmp_path), "train.epochs=3"]
    command = [sys.executable, "-m", "torch.distributed.run", *args, *tool]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode != 0 and done.stderr.count("holds files already") == 2, done.stderr
    assert (tmp_path / "together" / "results.json").read_text() == before
